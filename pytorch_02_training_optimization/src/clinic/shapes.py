"""Shape mismatches: what the message says, what it means, and a repair that needs nothing but the message."""

import re
from dataclasses import dataclass

from shared.lesson import Lesson
from shared.snippets import complaint, evaluate

import torch
from torch import nn

# What was written, what its message means, and what was wanted. x is (8, 3, 32, 32).
MISHAPS = {
    "Linear(512, 10)(x.flatten(1))": (
        "mat1 is what arrives, 8 rows of 3072 numbers; mat2 is the weight, transposed: 512 in, 10 out. The second number "
        "of mat1 has to be the first of mat2.", "Linear(3072, 10)(x.flatten(1))"),
    "Linear(3072, 10)(x.flatten())": (
        "mat1 has one row of 24,576 = 8 x 3072 numbers: the batch axis was flattened away with the rest. Where a message says "
        "vec, an axis was lost in the same way.", "Linear(3072, 10)(x.flatten(1))"),
    "Conv2d(3, 8, 3)(x.permute(0, 2, 3, 1))": (
        "The axis that should hold 3 channels holds 32 columns or rows: the images are (B, H, W, C), as files and NumPy have "
        "them.", "Conv2d(3, 8, 3)(x)"),
    "BatchNorm2d(8)(Conv2d(3, 16, 3)(x))": (
        "A layer behind a changed one still has its old size: 16 channels come, it keeps averages for 8.",
        "BatchNorm2d(16)(Conv2d(3, 16, 3)(x))"),
    "x + Conv2d(3, 3, 3)(x)": (
        "a is the left side, b the right one, and axes are counted from 0: without padding the convolution made 30 columns of "
        "32.",
        "x + Conv2d(3, 3, 3, padding=1)(x)"),
    "torch.cat([x, x.flatten(1)], dim=1)": (
        "Only along dim may shapes differ, and here not even the number of axes is the same.",
        "torch.cat([x, x], dim=1)"),
}  # fmt: skip


@dataclass(frozen=True)
class Product:
    """The four numbers of a matrix product that does not fit: (rows x came) and (wanted x out)."""

    rows: int
    came: int
    wanted: int
    out: int


def read_product(message: str) -> Product | None:
    """From "… cannot be multiplied (8x3072 and 512x10)"; None where a message is about something else."""
    found = re.search(r"\((\d+)x(\d+) and (\d+)x(\d+)\)", message)
    return Product(*map(int, found.groups())) if found else None


def last_entered(model: nn.Module, x: torch.Tensor) -> tuple[str, str]:
    """The name of the innermost module that model(x) entered last, and what it complained of; "" where it did not."""
    entered: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda module, _, name=name: entered.append(name))
        for name, module in model.named_modules()
    ]
    try:
        message = complaint(lambda: model(x))
    finally:
        for handle in handles:
            handle.remove()
    return entered[-1] if message else "", message


def repair(model: nn.Module, x: torch.Tensor, attempts: int = 10) -> list[tuple[str, Product]]:
    """Exchanges each Linear whose input does not fit, as its message says; returns which ones, in order.

    Raises ValueError where a message is about something else than a matrix product.
    """
    repaired = []
    for _ in range(attempts):
        name, message = last_entered(model, x)
        if not message:
            break
        product = read_product(message)
        if product is None:
            raise ValueError(f"{name}: {message}")
        model.set_submodule(name, nn.Linear(product.came, product.out))
        repaired.append((name, product))
    return repaired


def misfit_network() -> nn.Sequential:
    """The mistake, twice: the sizes are from a network for 28 x 28 images and 64 hidden units."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 13 * 13, 128), nn.ReLU(), nn.Linear(64, 10)
    )


def show_shapes(lesson: Lesson) -> None:
    lesson.section(
        "A shape mismatch, read from its message",
        "The first error of most new networks. The message has all that you need, in the words of the operation and not of "
        "your layer, so learn to read it once. x is a batch of images, (8, 3, 32, 32). All of this runs on the CPU; on a GPU "
        "the numbers in the messages are the same.",
    )
    x = torch.randn(8, 3, 32, 32)
    names = {name: getattr(nn, name) for name in ("Linear", "Conv2d", "BatchNorm2d")}
    said = {written: complaint(lambda: evaluate(written, x=x, **names)) for written in MISHAPS}
    for written, (meaning, wanted) in MISHAPS.items():
        lesson.items({"you write": written, "it says": said[written], "it means": meaning, "you want": wanted})
    fit = [wanted for _, wanted in MISHAPS.values() if not complaint(lambda: evaluate(wanted, x=x, **names))]
    lesson.check("each mistake is refused, each cure runs", all(said.values()) and len(fit) == len(MISHAPS),
                 f"{sum(map(bool, said.values()))} and {len(fit)} of {len(MISHAPS)}")  # fmt: skip
    first = read_product(next(iter(said.values())))
    lesson.check("mat1 is (rows x came), mat2 (wanted x out)", first == Product(8, 3072, 512, 10), str(first))
    lesson.text(
        "So the message can repair the network. This one has two wrong sizes. A hook on every module says which was entered "
        "last before the error, the message says what came, and nn.Linear(came, out) takes its place, until it runs:"
    )
    model = misfit_network()
    repaired = repair(model, x)
    lesson.table(
        [
            {
                "module": f"model[{name}]",
                "came": product.came,
                "wanted": product.wanted,
                "out": product.out,
                "now": str(model.get_submodule(name)),
            }
            for name, product in repaired
        ]
    )
    lesson.check("two messages were enough for two repairs", [name for name, _ in repaired] == ["3", "5"]
                 and model(x).shape == (8, 10), f"scores {tuple(model(x).shape)}")  # fmt: skip
    prediction, price = torch.randn(50, 1), torch.randn(50)
    spread = (prediction - price).shape
    lesson.check("shapes that broadcast say nothing", spread == (50, 50) and not complaint(lambda: prediction - price),
                 f"(50, 1) - (50) is {tuple(spread)}")  # fmt: skip
    lesson.shows(
        f"{len(MISHAPS)} messages, and each says what was on one side and what on the other. The dangerous ones "
        f"are those that fit: a loss over {spread.numel():,} differences instead of {len(price)} trains without an error. "
        "Where two tensors must have one shape, write `assert a.shape == b.shape`."
    )
