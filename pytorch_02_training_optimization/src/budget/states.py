"""What each parameter costs: weights, gradients and the state of every optimizer, by shape and dtype."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shared.lesson import Lesson
from shared.units import bytes_text

import torch

GIB = 2**30
Shape = tuple[int, ...]


def numel(shape: Shape) -> int:
    return torch.Size(shape).numel()


@dataclass(frozen=True)
class Kind:
    """An optimizer, what it keeps for a parameter of a shape (in numbers, its step counter apart), and why."""

    make: Callable[[Sequence[torch.Tensor]], torch.optim.Optimizer]
    state_numbers: Callable[[Shape], int]
    keeps: str
    has_counter: bool = True


OPTIMIZERS = {
    "SGD": Kind(lambda p: torch.optim.SGD(p, lr=0.1), lambda shape: 0, "nothing", has_counter=False),
    "SGD with momentum": Kind(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), numel, "an average of gradients",
                              has_counter=False),
    "Muon": Kind(lambda p: torch.optim.Muon(p, lr=0.1), numel, "the same", has_counter=False),
    "RMSprop": Kind(torch.optim.RMSprop, numel, "an average of their squares"),
    "Adagrad": Kind(torch.optim.Adagrad, numel, "the sum of their squares"),
    "Adam, AdamW": Kind(torch.optim.AdamW, lambda shape: 2 * numel(shape), "both averages"),
    "Adam with amsgrad": Kind(lambda p: torch.optim.Adam(p, amsgrad=True), lambda shape: 3 * numel(shape),
                              "both, and the largest of the second"),
    "Adafactor": Kind(torch.optim.Adafactor, lambda shape: shape[0] + shape[1],
                      "squares by row and by column"),
}  # fmt: skip
COUNTER_BYTES = 4  # the number of steps, one float32 for each parameter tensor


def state_bytes(kind: Kind, shapes: Sequence[Shape], dtype: torch.dtype) -> int:
    """What optimizer.state will hold for matrices of these shapes, before there is an optimizer."""
    numbers = sum(kind.state_numbers(shape) for shape in shapes)
    return numbers * dtype.itemsize + COUNTER_BYTES * len(shapes) * kind.has_counter


def held_by(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in optimizer.state."""
    return sum(x.nbytes for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor))


def state_after_a_step(kind: Kind, shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device) -> int:
    parameters = [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = kind.make(parameters)
    optimizer.step()
    return held_by(optimizer)


@dataclass(frozen=True)
class Recipe:
    """Bytes of each parameter in one way of training with Adam."""

    weight: float
    gradient: float
    state: float
    copy: float  # a second weight: of 2 bytes for the products, or of 4 for the update

    @property
    def total(self) -> float:
        return self.weight + self.gradient + self.state + self.copy


RECIPES = {
    "float32": Recipe(4, 4, 8, 0),
    "autocast": Recipe(4, 4, 8, 2),
    "bf16 beside float32": Recipe(2, 2, 8, 4),
    "float32, 8-bit Adam": Recipe(4, 4, 2, 0),
    "all in bf16": Recipe(2, 2, 4, 0),
    "all in bf16, 8-bit Adam": Recipe(2, 2, 2, 0),
    "bf16 frozen, 1 % adapters": Recipe(2, 0.04, 0.08, 0.04),
}


def show_states(lesson: Lesson) -> None:
    lesson.section(
        "What each parameter costs",
        "A parameter is paid for three or four times: its weight, its gradient, what the optimizer remembers of earlier "
        "gradients, and sometimes a copy in another dtype. memory_profiling of project 00 counted the 16 bytes of Adam. "
        "Here are eight optimizers, predicted from shapes alone and then looked up in optimizer.state after a step.",
    )
    width = lesson.pick(full=512, cpu=256, quick=64)
    shapes = [(4 * width, width), (width, 4 * width), (10, width)]
    count = sum(map(numel, shapes))
    dtypes = [torch.float32, torch.bfloat16] if lesson.device.type != "mps" else [torch.float32]
    right, rows, held = 0, [], {}
    for name, kind in OPTIMIZERS.items():
        for dtype in dtypes:
            held[name, dtype] = state_after_a_step(kind, shapes, dtype, lesson.device)
            right += held[name, dtype] == state_bytes(kind, shapes, dtype)
        each = held[name, torch.float32] / count
        lesson.record("optimizer state", held[name, torch.float32], "B", optimizer=name, parameters=count)
        rows.append({"optimizer": name, "remembers": kind.keeps, "state, bytes": f"{each:.2f}",
                     "weight, gradient, state": f"{8 + each:.2f}"})  # fmt: skip
    lesson.table(rows)
    lesson.check("every state is what its shapes predict", right == len(held),
                 f"{right} of {len(held)} to the byte, {len(dtypes)} dtypes")  # fmt: skip
    factored, adam, momentum = (held[name, torch.float32] for name in ("Adafactor", "Adam, AdamW", "SGD with momentum"))
    rows_and_columns = sum(sum(shape) for shape in shapes)
    lesson.check("Adafactor keeps a number for each row and column", factored < adam / 20,
                 f"{rows_and_columns:,} numbers for {count:,} weights")  # fmt: skip
    if len(dtypes) > 1:
        counters = COUNTER_BYTES * len(shapes)
        half = held["Adam, AdamW", torch.bfloat16] - counters
        lesson.check("weights in bfloat16 make their averages bfloat16", 2 * half == adam - counters,
                     f"{bytes_text(half)} instead of {bytes_text(adam - counters)}, nobody asked")  # fmt: skip
    lesson.text(
        "From there to recipes: bytes of each parameter with Adam, and what 7 billion parameters take. The copy is a weight "
        "in the other dtype. An 8-bit Adam stores its averages in blocks of one byte a number, each block with a scale of its "
        "own (bitsandbytes and torchao have it). Adapters are small matrices beside frozen weights (LoRA). What is all in bf16 "
        "loses small updates, as mixed_precision shows."
    )
    best = min(RECIPES, key=lambda name: RECIPES[name].total)
    lesson.table([{"recipe": name, "weight": f"{recipe.weight:g}", "gradient": f"{recipe.gradient:g}",
                   "Adam": f"{recipe.state:g}", "copy": f"{recipe.copy:g}", "sum": f"{recipe.total:g}",
                   "7 billion": f"{recipe.total * 7e9 / GIB:.0f} GiB"}
                  for name, recipe in RECIPES.items()])  # fmt: skip
    full, mixed = RECIPES["float32"].total, RECIPES["bf16 beside float32"].total
    lesson.check("16-bit training with float32 weights saves nothing here", mixed == full and RECIPES["autocast"].total > full,
                 f"{mixed:g} bytes as well; autocast {RECIPES['autocast'].total:g}")  # fmt: skip
    lesson.shows(
        f"mixed precision halves activations, never this sum: {full:g} bytes of each parameter are {full:g} bytes in any "
        f"safe recipe, and Adam's state is half of them. So where it is the parameters that do not fit, look at the "
        f"optimizer first: Adam costs {adam / count:.0f} bytes each, momentum {momentum / count:.0f}, Adafactor "
        f"{factored / count:.2f}. The smallest sum is that of '{best}', which trains hardly any of its parameters."
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Any]:
    """All tensors that an optimizer remembers."""
    return [x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
