"""What is a tensor made of, and what follows from that for memory, numbers, devices and NumPy?

A tensor is a row of numbers in memory and a small header that says how to read it. You will see that row drawn in
characters, the number formats with the amounts at which each one breaks (in basics/number_formats.py), what moves
between devices and what does not, what is shared with NumPy, and from which size on which of the two is faster here.

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
    "torch.zeros(64, 10)": ("matrix", "64 samples, a score for each of 10 classes"),
    "torch.zeros(8, 128, 300)": ("tensor", "8 sentences of 128 words"),
    "torch.zeros(32, 3, 224, 224)": ("tensor", "32 colour images of 224 x 224 pixels"),
}


def show_ranks(lesson: Lesson) -> None:
    lesson.section(
        "What a tensor is, and what it is not",
        "A scalar is one number, a vector a row of numbers, a matrix a table, and a tensor has any number of axes. "
        "PyTorch has one type for all of them. When a shape surprises you, count the axes first: many bugs are an axis "
        "too many, one too few, or two in the wrong order, and nothing but the shape tells.",
    )
    made = {call: evaluate(call) for call in RANKS}
    lesson.table([{"call": call, "name": RANKS[call][0], "axes": x.ndim, "numbers": x.numel(), "for example": RANKS[call][1]}
                  for call, x in made.items()])  # fmt: skip
    bare, bracketed = torch.tensor(0.25), torch.tensor([0.25])
    lesson.check("one number in brackets is a vector, not a scalar", (bare.ndim, bracketed.ndim) == (0, 1),
                 f"shapes {tuple(bare.shape)} and {tuple(bracketed.shape)}")  # fmt: skip
    x = torch.tensor(3.0, requires_grad=True)
    (x**2).backward()
    lesson.check("a tensor knows its device and its gradient", x.grad is not None and x.grad == 6,
                 f"on {x.device}; d(x²)/dx at 3 is {x.grad}")  # fmt: skip
    lesson.text(
        "In mathematics a tensor is more than its numbers: it describes something that is there without any axes, and "
        "when you turn the axes its numbers change by a rule. The length of a vector fits that picture. Much of a neural "
        "network does not. Turn [3, -4] by 90 degrees, before or after ReLU (which makes negative numbers 0):"
    )
    quarter_turn, v = torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.tensor([3.0, -4.0])
    turned_first, turned_last = torch.relu(quarter_turn @ v), quarter_turn @ torch.relu(v)
    lesson.check("the length is the same after the turn", (quarter_turn @ v).norm() == v.norm(), f"{v.norm():g}")
    lesson.check("ReLU before the turn is not ReLU after it", not torch.equal(turned_first, turned_last),
                 f"{turned_last.tolist()} and {turned_first.tolist()}")  # fmt: skip
    images = made["torch.zeros(32, 3, 224, 224)"]
    lesson.shows(
        f"here a tensor is an array: {images.numel():,} numbers in {images.ndim} axes that know where they are and how "
        "they were computed, and nothing about what an axis means. Write that beside the shape yourself: "
        "(image, channel, row, column)."
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
    functions = [name for name in dir(np) if isinstance(getattr(np, name), np.ufunc)]
    shared = [name for name in functions if hasattr(torch, name)]
    lesson.check("most of NumPy's element-wise functions exist in PyTorch by the same name",
                 len(shared) > len(functions) / 2, f"{len(shared)} of {len(functions)}")  # fmt: skip
    lesson.shows(
        f"what you know of NumPy carries over, {percent(len(shared) / len(functions))} of it by name. PyTorch adds "
        "gradients and other devices. Where you need neither, NumPy is often the better tool; the end of this script "
        "measures when."
    )


# Making tensors

CREATION = (
    "torch.tensor([[1, 2], [3, 4]])",
    "torch.tensor([1.0, 2.0])",
    "torch.zeros(2, 3)",
    "torch.ones(3, dtype=torch.int8)",
    "torch.full((2, 2), 7)",
    "torch.eye(2)",
    "torch.arange(0, 10, 3)",
    "torch.linspace(0, 1, 5)",
    "torch.rand(4)",
    "torch.randn(4)",
    "torch.randint(0, 10, (4,))",
    "torch.ones_like(torch.tensor([5, 6]))",
    "torch.as_tensor([True, False])",
    "torch.from_numpy(np.arange(3.0))",
)


def in_one_line(x: torch.Tensor) -> str:
    """The numbers of `x` with two decimals, without line breaks."""
    return " ".join(np.array2string(x.cpu().numpy(), precision=2, separator=", ").split())


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
        "Each call decides what is in the tensor, the type of its numbers (dtype) and the device on which it lives. Make "
        "it where it will be used: with device=, or inside `with device:`, as this table was. xxx_like copies shape, "
        "dtype and device of another tensor, so code that uses it runs on any device.",
    )
    with lesson.device:
        made = {call: evaluate(call) for call in CREATION}
    lesson.table([{"call": call, "dtype": dtype_name(x.dtype), "gives": in_one_line(x)} for call, x in made.items()])
    whole, point = (dtype_name(made[call].dtype) for call in CREATION[:2])
    lesson.check("whole numbers become int64, others float32", (whole, point) == ("int64", "float32"), "NumPy's are float64")  # fmt: skip
    last, end = made["torch.arange(0, 10, 3)"][-1].item(), made["torch.linspace(0, 1, 5)"][-1].item()
    lesson.check(
        "arange stops before its end, linspace on it", last == 9 and end == 1, f"{last} of 10, and {end:g} of 1"
    )
    steps, counted = steps_by_adding(1, 1.3, 0.1), steps_by_counting(1, 0.1, 3)
    lesson.check("unless a rounding error lets the end in", len(steps) == 4 and len(counted) == 3,
                 f"arange(1, 1.3, 0.1) is {in_one_line(steps)}")  # fmt: skip
    n = lesson.pick(full=1_000_000, quick=100_000)
    normal, uniform = torch.randn(n, device=lesson.device), torch.rand(n, device=lesson.device)
    errors = normal.mean().abs().item(), (normal.var() - 1).abs().item(), (uniform.mean() - 0.5).abs().item()
    bounds = [5 * spread / math.sqrt(n) for spread in (1, math.sqrt(2), math.sqrt(1 / 12))]  # five standard errors
    lesson.check("randn has mean 0 and variance 1, to 5 standard errors", errors[0] < bounds[0] and errors[1] < bounds[1],
                 f"off by {errors[0]:.4f}, {errors[1]:.4f}; n = {n:,}")  # fmt: skip
    lesson.check("rand has mean 1/2 and stays in [0, 1)", errors[2] < bounds[2] and 0 <= uniform.min() and uniform.max() < 1,
                 f"off by {errors[2]:.5f}; up to {uniform.max():.7f}")  # fmt: skip
    drawn = [torch.randn(1000, generator=torch.Generator().manual_seed(lesson.options.seed)) for _ in range(2)]
    lesson.check("the same seed draws the same numbers", torch.equal(*drawn), f"{len(drawn[0]):,} of them, twice")
    array = np.zeros(3)
    copied, wrapped = torch.tensor(array), torch.from_numpy(array)
    array[0] = 7
    lesson.check("torch.tensor copies, torch.from_numpy shares", copied[0] == 0 and wrapped[0] == 7,
                 f"array[0] = 7 arrives as {copied[0]:g} and {wrapped[0]:g}")  # fmt: skip
    left = read_before_writing(10_000, lesson.device)
    lesson.shows(
        "only torch.empty does not say what it holds: a tensor full of 42 was deleted, another asked for, and "
        + (f"{percent(left)} of it was 42 again. " if left else "this time other memory came. ")
        + "It saves the time of clearing; use it where you write every element yourself."
    )


# Header and storage


def storage_of(x: torch.Tensor) -> torch.Tensor:
    """All numbers of the storage behind `x`, in the order in which they lie in memory."""
    return torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def position(x: torch.Tensor, index: Sequence[int]) -> int:
    """The place of x[index] in its storage: all that a tensor adds to a row of numbers."""
    return x.storage_offset() + sum(i * stride for i, stride in zip(index, x.stride(), strict=True))


def address(x: torch.Tensor, index: Sequence[int]) -> int:
    """The byte in memory at which x[index] begins, computed from the header alone."""
    return x.untyped_storage().data_ptr() + position(x, index) * x.element_size()


def draw_walk(name: str, x: torch.Tensor) -> str:
    """The storage of the matrix `x` in boxes; below, for each row of `x`, its column numbers where they are read."""
    values = storage_of(x).tolist()
    lines = [
        f"{name}   shape {tuple(x.shape)}   stride {x.stride()}   offset {x.storage_offset()}",
        "storage │" + "│".join(f"{value:>2}" for value in values) + "│",
    ]
    for i in range(len(x)):
        columns = {position(x, (i, j)): j for j in range(x.shape[1])}
        lines.append(f"row {i}    " + " ".join(f"{columns.get(place, ''):>2}" for place in range(len(values))))
    return "\n".join(line.rstrip() for line in lines)


ATTRIBUTES = {
    "shape": "elements along each axis",
    "dtype": "how the bits of each element are to be read",
    "device": "whose memory they lie in",
    "stride()": "places to go for the next row, for the next column",
    "storage_offset()": "the place of the first element",
    "is_contiguous()": "are the rows one after another, without gaps?",
    "nbytes": "elements times bytes of each",
    "requires_grad": "is what happens to it remembered for backward()?",
}


def show_storage(lesson: Lesson) -> None:
    lesson.section(
        "The header and the storage",
        "The numbers lie in memory one after another: the storage. The tensor is a header in front of it. Its strides "
        "say how many places to go for the next element along each axis, its offset where to begin.",
    )
    x = torch.arange(12, dtype=torch.int32).view(3, 4)
    lesson.table([{"attribute": f"x.{name}", "value": evaluate(f"x.{name}", x=x), "says": says} for name, says in ATTRIBUTES.items()])  # fmt: skip
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
                 f"{right} of {len(elements)} elements")  # fmt: skip
    lesson.check("all four share one storage", len({view.untyped_storage().data_ptr() for view in views.values()}) == 1,
                 f"{x.untyped_storage().nbytes()} bytes at {hex(x.untyped_storage().data_ptr())}")  # fmt: skip
    copy = x.T.contiguous()
    lesson.check("contiguous() copies the transpose into its own order", copy.data_ptr() != x.data_ptr() and copy.equal(x.T),
                 f"stride {x.T.stride()} becomes {copy.stride()}")  # fmt: skip
    x[0] = -1
    lesson.check("a write to x[0] is a write to all its views, not to the copy", views["x.T"][0, 0] == -1 and copy[0, 0] == 0,
                 f"x.T[0, 0] is {views['x.T'][0, 0]}, the copy's {copy[0, 0]}")  # fmt: skip
    big = torch.zeros(1_000_000)
    held, cloned = (part.untyped_storage().nbytes() for part in (big[:10], big[:10].clone()))
    lesson.check("a small slice keeps the whole storage alive, its clone does not", held == big.nbytes and cloned == 40,
                 f"ten numbers hold {held:,} and {cloned} bytes")  # fmt: skip
    lesson.shows(
        f"four tensors, {len(elements)} elements, {x.numel()} numbers. Views cost nothing, whatever their size. In "
        "return, a write shows up in every view, and what you keep of a large tensor should be a clone."
    )


def show_memory_format(lesson: Lesson) -> None:
    lesson.section(
        "One image in two memory formats",
        "A batch of images has the shape (image, channel, row, column). By default all red numbers lie together, then "
        "all green, then all blue. In channels_last the three numbers of a pixel lie together, as in an image file, and "
        "as many convolution kernels want them. Shape and indices stay the same; only the strides tell.",
    )
    planes = (
        torch.arange(3).view(1, 3, 1, 1).expand(1, 3, 2, 2).contiguous()
    )  # 2 x 2 pixels; each number is its channel
    pixels = planes.contiguous(memory_format=torch.channels_last)
    lesson.items(
        {name: f"│{'│'.join('RGB'[channel] for channel in storage_of(x))}│ stride {x.stride()}"
         for name, x in {"default": planes, "channels_last": pixels}.items()}
    )  # fmt: skip
    lesson.check("both are the same image", torch.equal(planes, pixels), f"shape {tuple(pixels.shape)}")
    lesson.check("in channels_last the channels of a pixel are neighbours", (planes.stride(1), pixels.stride(1)) == (4, 1),
                 f"{planes.stride(1)} places apart by default, then {pixels.stride(1)}")  # fmt: skip
    lesson.shows(
        f"the format is nothing but strides. Ask for it by name: x.is_contiguous() is {pixels.is_contiguous()}, and "
        f"x.is_contiguous(memory_format=torch.channels_last) is "
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


class RemembersItsMean(ForgetsItsMean):
    """Right: a buffer moves with the module, and is saved with it."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.register_buffer("mean", torch.ones(3))


def show_devices(lesson: Lesson) -> None:
    lesson.section(
        "Devices",
        "A tensor lives in the memory of one device, and an operation runs where its inputs are. Pick the device once, "
        "at the top, and pass it on; a device named in the middle of the code is a bug on the next machine.",
    )
    here = pick_device()
    other = here if lesson.device.type != "cpu" else torch.device("meta")
    lesson.table([
        {"device": "cpu", "here": "yes", "what it is": "the processor and main memory"},
        {"device": "cuda", "here": "yes" if torch.cuda.is_available() else "no", "what it is": "an NVIDIA GPU (or AMD's, in PyTorch's ROCm build)"},
        {"device": "mps", "here": "yes" if torch.backends.mps.is_available() else "no", "what it is": "the GPU of Apple silicon"},
        {"device": "meta", "here": "yes", "what it is": "no memory at all: shape and type without numbers"},
    ])  # fmt: skip
    if other.type == "meta":
        lesson.note("This run uses no GPU, so meta stands in for one below: it keeps the same rules.")
    x, model = torch.ones(3), torch.nn.Linear(3, 1)
    forgotten, moved = move_and_forget(x, other), x.to(other)
    lesson.check("tensor.to() returns a new tensor and leaves the old one", forgotten is x and x.device == CPU and moved.device.type == other.type,
                 f"x stays on {x.device}, x.to() is on {moved.device}")  # fmt: skip
    lesson.check("where nothing has to move, nothing is copied", x.to(CPU) is x, "x.to('cpu') is x")
    lesson.check("module.to() moves the module itself", model.to(other) is model and model.weight.device.type == other.type,
                 f"its weight is now on {model.weight.device}")  # fmt: skip
    forgets, remembers = ForgetsItsMean().to(other), RemembersItsMean().to(other)
    message, cured = complaint(lambda: forgets(moved)), complaint(lambda: remembers(moved))
    lesson.check("a tensor that the module does not know stays behind", forgets.mean.device == CPU and remembers.mean.device.type == other.type,
                 f"attribute on {forgets.mean.device}, buffer on {remembers.mean.device}")  # fmt: skip
    lesson.check("inputs on two devices are refused, and both are named", "cpu" in message and other.type in message,
                 f"{message.split(':')[0]}, without the mistake {'none' if not cured else cured}")  # fmt: skip
    lesson.items({"here": message} if other.type != "meta" else {"here": message, "on a GPU": "RuntimeError: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"})  # fmt: skip
    scalar = torch.tensor(2.0)
    lesson.check("only a scalar on the CPU may meet any device", (scalar * moved).device == moved.device,
                 f"{scalar.device} x {moved.device} gives {(scalar * moved).device}")  # fmt: skip
    lesson.shows(
        f"of {len([name for name, _ in remembers.named_buffers()])} mean that was registered and one that was not, one "
        "moved. When you read this error, look for the tensor that was made inside a function without device=, or kept "
        "as a plain attribute: x.new_zeros(), torch.zeros_like(x) and register_buffer follow by themselves."
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
