"""What is a tensor made of, and what follows from that for memory, numbers, devices and NumPy?

A tensor is a row of numbers in memory and a small header that says how to read it. You will see that row drawn in
characters, the number formats with the amounts at which each one breaks (basics/number_formats.py), what moves
between devices and what stays, what is shared with NumPy, and which of the two is faster at which size on this
machine (basics/numpy_bridge.py).

    python src/tensor_basics.py            about 20 seconds
    python src/tensor_basics.py --quick    the same path with tiny sizes, a few seconds
"""

import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_00_tensor_gpu_basics.src.basics.number_formats import dtype_name, show_number_formats
from pytorch_00_tensor_gpu_basics.src.basics.numpy_bridge import show_numpy_bridge
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate
from shared.units import percent

import numpy as np
import torch

CPU = torch.device("cpu")


# What a tensor is

RANKS = {
    "torch.tensor(0.25)": ("scalar", "a loss"),
    "torch.zeros(300)": ("vector", "one word as 300 numbers"),
    "torch.zeros(64, 10)": ("matrix", "64 samples, scores for 10 classes"),
    "torch.zeros(8, 128, 300)": ("tensor", "8 sentences of 128 words"),
    "torch.zeros(32, 3, 224, 224)": ("tensor", "32 colour images, 224 x 224 pixels"),
}


def show_ranks(lesson: Lesson) -> None:
    lesson.section(
        "What a tensor is, and what it is not",
        "A scalar is one number, a vector a row of numbers, a matrix a table, and a tensor has any number of axes. "
        "PyTorch has one type for all of them. When a shape surprises you, count the axes first: many bugs are an axis "
        "too many, one too few, or two in the wrong order, and nothing but the shape tells.",
    )
    made = {call: evaluate(call) for call in RANKS}
    lesson.table(
        [
            {"call": call, "name": RANKS[call][0], "axes": x.ndim, "numbers": x.numel(), "for example": RANKS[call][1]}
            for call, x in made.items()
        ]
    )
    bare, bracketed = torch.tensor(0.25), torch.tensor([0.25])
    lesson.check("one number in brackets is a vector, not a scalar", (bare.ndim, bracketed.ndim) == (0, 1),
                 f"shapes {tuple(bare.shape)} and {tuple(bracketed.shape)}")  # fmt: skip
    x = torch.tensor(3.0, requires_grad=True)
    (x**2).backward()
    lesson.check("a tensor knows its device and its gradient", x.grad is not None and x.grad == 6,
                 f"on {x.device}; d(x²)/dx at 3 is {x.grad}")  # fmt: skip
    lesson.text(
        "In mathematics a tensor is more than its numbers: it describes something that is there without any axes, and "
        "when you turn the axes its numbers change by a rule. The length of a vector fits that picture. Much of a "
        "neural network does not. Turn [3, -4] by 90 degrees, before or after ReLU (which makes negative numbers 0):"
    )
    quarter_turn, v = torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.tensor([3.0, -4.0])
    turned_first, turned_last = torch.relu(quarter_turn @ v), quarter_turn @ torch.relu(v)
    lesson.check("the length is the same after the turn", (quarter_turn @ v).norm() == v.norm(), f"{v.norm():g}")
    lesson.check("ReLU after the turn is not ReLU before it", not torch.equal(turned_first, turned_last),
                 f"{turned_first.tolist()} and {turned_last.tolist()}")  # fmt: skip
    lesson.shows(
        "here a tensor is an array. It knows where it lies and how it was computed; of its axes it knows nothing but "
        f"their lengths, such as {tuple(made['torch.zeros(32, 3, 224, 224)'].shape)}. Write down beside them what they "
        "mean: (image, channel, row, column)."
    )


NEIGHBOURS = (
    ("NumPy", "none", "an array in main memory, spoken by all of Python's science"),
    ("PyTorch", "loss.backward()", "each line runs at once and is remembered; walk back from the loss"),
    ("TensorFlow", "GradientTape", "a Python function becomes a graph, to be optimised and shipped"),
    ("Keras", "inside fit()", "layers and a training loop on top of TensorFlow, JAX or PyTorch"),
    ("JAX", "jax.grad(f)", "pure functions and transformations of them: grad, vmap, jit"),
)


def show_neighbours(lesson: Lesson) -> None:
    lesson.section(
        "PyTorch beside NumPy, TensorFlow and JAX",
        "All of them compute with arrays, by nearly the same functions. Each has one idea of its own, which decides "
        "what is easy in it.",
    )
    lesson.table([dict(zip(("library", "gradients", "its idea"), row, strict=True)) for row in NEIGHBOURS])
    functions = [name for name, value in vars(np).items() if isinstance(value, np.ufunc)]
    known = [name for name in functions if hasattr(torch, name)]
    lesson.check("PyTorch has most of NumPy's element-wise functions", len(known) > len(functions) / 2,
                 f"{len(known)} of {len(functions)} by the same name")  # fmt: skip
    lesson.shows(
        f"what you know of NumPy carries over, {percent(len(known) / len(functions))} of these even by name. PyTorch "
        "adds gradients and other devices. Where you need neither, NumPy is often the better tool; the end of this "
        "script measures when."
    )


# Making tensors

CREATION = (
    "torch.tensor([[1, 2], [3, 4]])",
    "torch.tensor([1.0, 2.0])",
    "torch.zeros(2, 3)",
    "torch.ones(3, dtype=torch.int8)",
    "torch.full((2, 2), 7)",
    "torch.eye(2)",
    "torch.arange(0, 9, 3)",
    "torch.linspace(0, 9, 4)",
    "torch.rand(4)",
    "torch.randn(4)",
    "torch.randint(0, 10, (4,))",
    "torch.ones_like(torch.eye(2))",
    "torch.as_tensor([True, False])",
    "torch.from_numpy(np.ones(3))",
)


def in_one_line(x: torch.Tensor) -> str:
    """The numbers of `x` to two decimals, without line breaks."""
    form = {"float_kind": lambda value: str(round(float(value), 2)), "bool": str}
    return " ".join(np.array2string(x.cpu().numpy(), separator=", ", formatter=form).split())


def steps_by_adding(start: float, end: float, step: float) -> torch.Tensor:
    """The mistake: arange rounds (end - start) / step up, so a rounding error decides whether the end is in it."""
    return torch.arange(start, end, step)


def steps_by_counting(start: float, step: float, count: int) -> torch.Tensor:
    """Right: count in whole numbers, which are exact, and scale afterwards."""
    return start + step * torch.arange(count)


def read_before_writing(count: int, device: torch.device) -> float:
    """The mistake: torch.empty promises memory, not zeros. Returns how much of it still holds a dead tensor's 42s."""
    dead = torch.full((count,), 42.0, device=device)
    del dead
    return (torch.empty(count, device=device) == 42).float().mean().item()


def show_creation(lesson: Lesson) -> None:
    lesson.section(
        "Making tensors",
        "Each call decides what is in the tensor, the type of its numbers (dtype) and the device on which it lives. "
        "Make it where it will be used: with device=, or inside `with device:`, as this table was. The calls in _like "
        "copy shape, dtype and device of another tensor, so code that uses them runs on any device.",
    )
    with lesson.device:
        made = {call: evaluate(call) for call in CREATION}
    lesson.table([{"call": call, "dtype": dtype_name(x.dtype), "gives": in_one_line(x)} for call, x in made.items()])
    whole, point = (dtype_name(made[call].dtype) for call in CREATION[:2])
    lesson.check("whole numbers become int64, others float32", (whole, point) == ("int64", "float32"),
                 f"NumPy makes the others {np.array([1.0]).dtype}")  # fmt: skip
    last, end = made["torch.arange(0, 9, 3)"][-1].item(), made["torch.linspace(0, 9, 4)"][-1].item()
    lesson.check("arange stops before its end, linspace on it", last == 6 and end == 9, f"{last} and {end:g}, of 9")
    steps, counted = steps_by_adding(1, 1.3, 0.1), steps_by_counting(1, 0.1, 3)
    lesson.check("a rounding error can let the end into arange", len(steps) == 4 and len(counted) == 3,
                 f"from 1 below 1.3 by 0.1: {in_one_line(steps)}")  # fmt: skip
    n = lesson.pick(full=1_000_000, quick=100_000)
    normal, uniform = torch.randn(n, device=lesson.device), torch.rand(n, device=lesson.device)
    errors = normal.mean().abs().item(), (normal.var() - 1).abs().item(), (uniform.mean() - 0.5).abs().item()
    bounds = [5 * spread / math.sqrt(n) for spread in (1, math.sqrt(2), math.sqrt(1 / 12))]  # five standard errors
    lesson.check("randn has mean 0 and variance 1, to 5 standard errors",
                 errors[0] < bounds[0] and errors[1] < bounds[1],
                 f"off by {errors[0]:.4f} and {errors[1]:.4f}, n = {n:,}")  # fmt: skip
    lesson.check("rand has mean 1/2 and stays in [0, 1)",
                 errors[2] < bounds[2] and uniform.min() >= 0 and uniform.max() < 1,
                 f"off by {errors[2]:.5f}, largest {uniform.max():.7f}")  # fmt: skip
    drawn = [torch.randn(1000, generator=torch.Generator().manual_seed(lesson.options.seed)) for _ in range(2)]
    lesson.check("the same seed draws the same numbers", torch.equal(*drawn), f"{len(drawn[0]):,} of them, twice")
    array = np.zeros(3)
    copied, wrapped = torch.tensor(array), torch.from_numpy(array)
    array[0] = 7
    lesson.check("torch.tensor copies, torch.from_numpy shares", copied[0] == 0 and wrapped[0] == 7,
                 f"array[0] = 7 arrives as {copied[0]:g} and {wrapped[0]:g}")  # fmt: skip
    left = read_before_writing(10_000, lesson.device)
    lesson.shows(
        "one call is missing in the table: torch.empty does not say what it holds. A tensor full of 42 was deleted, "
        + (f"and {percent(left)} of the next torch.empty was 42. " if left else "and this time other memory came. ")
        + "It saves the time of clearing; use it where you write every element yourself."
    )


# Header and storage


def storage_of(x: torch.Tensor) -> torch.Tensor:
    """All numbers of the storage behind `x`, in the order in which they lie in memory."""
    return torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def position(x: torch.Tensor, index: Sequence[int]) -> int:
    """The place of x[index] in its storage: this rule is all that a tensor adds to a row of numbers."""
    return x.storage_offset() + sum(i * stride for i, stride in zip(index, x.stride(), strict=True))


def address(x: torch.Tensor, index: Sequence[int]) -> int:
    """The byte in memory at which x[index] begins, computed from the header alone."""
    return x.untyped_storage().data_ptr() + position(x, index) * x.element_size()


def draw_walk(name: str, x: torch.Tensor) -> str:
    """The storage of the matrix `x` in boxes; below, for each row of `x`, its column numbers where they are read."""
    values = storage_of(x).tolist()
    lines = [
        f"{name}  shape {tuple(x.shape)}  stride {x.stride()}  offset {x.storage_offset()}",
        "storage │" + "│".join(f"{value:>2}" for value in values) + "│",
    ]
    for i in range(len(x)):
        columns = {position(x, (i, j)): j for j in range(x.shape[1])}
        lines.append(f"row {i}    " + " ".join(f"{columns.get(place, ''):>2}" for place in range(len(values))))
    return "\n".join(line.rstrip() for line in lines)


ATTRIBUTES = {
    "x.shape": "elements along each axis",
    "x.dtype": "how the bits of each element are to be read",
    "x.device": "whose memory they lie in",
    "x.stride()": "places to go for the next row, for the next column",
    "x.storage_offset()": "the place of the first element",
    "x.is_contiguous()": "are the rows one after another, without gaps?",
    "x.nbytes": "elements times bytes of each",
    "x.requires_grad": "is what happens to it remembered for backward()?",
}


def show_storage(lesson: Lesson) -> None:
    lesson.section(
        "The header and the storage",
        "The numbers lie in memory one after another: the storage. The tensor is a header in front of it. Its strides "
        "say how many places to go for the next element along each axis, its offset where to begin.",
    )
    x = torch.arange(12, dtype=torch.int32).view(3, 4)
    lesson.table([{"attribute": name, "value": evaluate(name, x=x), "says": says} for name, says in ATTRIBUTES.items()])
    lesson.text(
        "Transposing, slicing and expanding write a new header and move nothing. In the drawings each line is one row "
        "of the tensor, and a number under a box is the column that is read from there."
    )
    views = {name: evaluate(name, x=x) for name in ("x", "x.T", "x[:, ::2]", "x[1].expand(3, 4)")}
    for name, view in views.items():
        lesson.drawing(draw_walk(name, view))
    elements = [(view, index) for view in views.values() for index in itertools.product(*map(range, view.shape))]
    right = sum(address(view, index) == view[index].data_ptr() for view, index in elements)
    lesson.check("address = storage + (offset + sum of index x stride) x bytes", right == len(elements),
                 f"for {right} of {len(elements)} elements")  # fmt: skip
    starts = {view.untyped_storage().data_ptr() for view in views.values()}
    lesson.check(
        "all four share one storage", len(starts) == 1, f"{x.untyped_storage().nbytes()} bytes at {min(starts):#x}"
    )
    copy = x.T.contiguous()
    lesson.check("contiguous() copies the transpose into its own order",
                 copy.data_ptr() != x.data_ptr() and copy.equal(x.T),
                 f"stride {x.T.stride()} becomes {copy.stride()}")  # fmt: skip
    x[0] = -1
    lesson.check("a write to x[0] reaches its views and not the copy", views["x.T"][0, 0] == -1 and copy[0, 0] == 0,
                 f"at [0, 0]: {views['x.T'][0, 0]} and {copy[0, 0]}")  # fmt: skip
    big = torch.zeros(1_000_000)
    held, cloned = (part.untyped_storage().nbytes() for part in (big[:10], big[:10].clone()))
    lesson.check("a slice keeps the whole storage alive, a clone does not", held == big.nbytes and cloned == 40,
                 f"ten numbers: {held:,} and {cloned} bytes")  # fmt: skip
    lesson.shows(
        f"four tensors with {len(elements)} elements share {x.numel()} numbers. A view costs the same whatever its "
        "size. In return a write shows up in every view, and what you keep of a large tensor should be a clone."
    )


def show_memory_format(lesson: Lesson) -> None:
    lesson.section(
        "One image in two memory formats",
        "A batch of images has the shape (image, channel, row, column). By default all red numbers lie together, then "
        "all green, then all blue. In channels_last the three numbers of a pixel lie together, as in an image file, "
        "and as many convolution kernels want them. Shape and indices stay the same; only the strides tell.",
    )
    channels = torch.arange(3).view(1, 3, 1, 1)  # each number says which channel it is
    planes = channels.expand(1, 3, 2, 2).contiguous()
    pixels = planes.contiguous(memory_format=torch.channels_last)
    lesson.items(
        {
            name: f"│{'│'.join('RGB'[channel] for channel in storage_of(x))}│ stride {x.stride()}"
            for name, x in {"default": planes, "channels_last": pixels}.items()
        }
    )
    lesson.check("both are the same image", torch.equal(planes, pixels), f"shape {tuple(pixels.shape)}")
    lesson.check("in channels_last the channels are neighbours", (planes.stride(1), pixels.stride(1)) == (4, 1),
                 f"{pixels.stride(1)} place apart, {planes.stride(1)} by default")  # fmt: skip
    lesson.shows(
        f"the format is nothing but strides. Ask for it by name: x.is_contiguous() is {pixels.is_contiguous()}, and "
        "x.is_contiguous(memory_format=torch.channels_last) is "
        f"{pixels.is_contiguous(memory_format=torch.channels_last)}."
    )


# Devices


def pick_device() -> torch.device:
    """The fastest device here; what every script of the lab does with --device auto."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def move_and_forget(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The mistake: tensor.to() returns the moved tensor, and here nobody keeps it."""
    x.to(device)
    return x


class ForgetsItsMean(torch.nn.Module):
    """The mistake: a plain attribute stays on the CPU when the module moves."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.ones(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.mean


class RemembersItsMean(torch.nn.Module):
    """Right: a buffer moves with the module, and is saved with it."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.mean


def show_devices(lesson: Lesson) -> None:
    lesson.section(
        "Devices",
        "A tensor lives in the memory of one device, and an operation runs where its inputs are. Pick the device once, "
        "at the top, and pass it on; a device named in the middle of the code is a bug on the next machine.",
    )
    devices = (
        ("cpu", True, "the processor and main memory"),
        ("cuda", torch.cuda.is_available(), "an NVIDIA GPU, or one of AMD in PyTorch's ROCm build"),
        ("mps", torch.backends.mps.is_available(), "the GPU of Apple silicon"),
        ("meta", True, "nowhere: shape and type without numbers"),
    )
    lesson.table(
        [{"device": name, "here": "yes" if here else "no", "what it is": what} for name, here, what in devices]
    )
    picked = pick_device()
    lesson.check(
        "two questions find the fastest one", torch.ones(2, device=picked).sum() == 2, f"{picked}, where 1 + 1 is 2"
    )
    other = lesson.device
    if other.type == "cpu":
        other = torch.device("meta")
        lesson.note("Without a GPU, meta stands in for one; in what follows it obeys the same rules. Its first "
                    "operation loads a part of PyTorch, which takes some seconds.")  # fmt: skip
    x, model = torch.ones(3), torch.nn.Linear(3, 1)
    forgotten, moved = move_and_forget(x, other), x.to(other)
    lesson.check("tensor.to() returns a new tensor, the old one stays",
                 forgotten.device == CPU and moved.device.type == other.type,
                 f"x on {x.device}, what was returned on {moved.device}")  # fmt: skip
    lesson.check("where nothing has to move, nothing is copied", x.to(CPU) is x, "x.to('cpu') is x")
    lesson.check("module.to() moves the module itself",
                 model.to(other) is model and model.weight.device.type == other.type,
                 f"its weight is now on {model.weight.device}")  # fmt: skip
    forgets, remembers = ForgetsItsMean().to(other), RemembersItsMean().to(other)
    lesson.check("a buffer moves along, a plain attribute stays behind",
                 remembers.mean.device.type == other.type and forgets.mean.device == CPU,
                 f"on {remembers.mean.device} and on {forgets.mean.device}")  # fmt: skip
    message = complaint(lambda: forgets(moved))
    lesson.check("so its inputs are on two devices, and that is refused", "cpu" in message and other.type in message,
                 message.partition(":")[0])  # fmt: skip
    answers = {f"on {other.type}": message}
    if other.type == "meta":
        answers["on a GPU"] = ("RuntimeError: Expected all tensors to be on the same device, but found at least two "
                               "devices, cuda:0 and cpu!")  # fmt: skip
    lesson.items(answers)
    lesson.check("with the buffer it runs", complaint(lambda: remembers(moved)) == "", f"on {remembers(moved).device}")
    scalar = torch.tensor(2.0)
    lesson.check("only a scalar on the CPU may meet any device", (scalar * moved).device == moved.device,
                 f"{scalar.device} x {moved.device} gives {(scalar * moved).device}")  # fmt: skip
    lesson.shows(
        f"the mean that was kept as a plain attribute is still on {forgets.mean.device}. When you read this error, "
        "look for a tensor that was made inside a function without device=, or kept without register_buffer. "
        "torch.zeros_like(x) and x.new_zeros(3) are made where x is, on every machine."
    )


def main(argv: list[str] | None = None) -> int:
    title = "What a tensor is made of: memory, numbers, devices, and the bridge to NumPy."
    with Lesson(__file__, argv, title=title) as lesson:
        show_ranks(lesson)
        show_neighbours(lesson)
        show_creation(lesson)
        show_storage(lesson)
        show_memory_format(lesson)
        show_number_formats(lesson)
        show_devices(lesson)
        show_numpy_bridge(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
