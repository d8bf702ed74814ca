"""How few bits does training need, where do they run out, and what do they save?

You will see what three formats make of the numbers of a real training, which gradients become 0 in float16, and the rule
that saves them: a GradScaler of thirty lines that equals PyTorch's to the last bit (precision/scaling.py). You will ask
autocast what it does to which operation, see weights in bfloat16 stand still and move again, train one network in
seven ways, and measure memory and time on this machine, where 16 bits help and where they do not (precision/costs.py).

    python src/mixed_precision.py            about 40 seconds
    python src/mixed_precision.py --quick    the same path with tiny sizes, a few seconds
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.precision.casting import show_backward, show_copies, show_rules
from pytorch_02_training_optimization.src.precision.costs import (
    float32_as,
    show_memory,
    show_products,
    show_residual_network,
    show_small_models,
)
from pytorch_02_training_optimization.src.precision.scaling import (
    relative_error,
    show_order,
    show_scale,
    show_scaler,
)
from pytorch_02_training_optimization.src.precision.training import show_training
from pytorch_02_training_optimization.src.precision.underflow import show_underflow
from pytorch_02_training_optimization.src.precision.weights import show_half, show_stochastic_rounding, show_updates
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import percent

import torch
import torch.nn.functional as F

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# The formats


def smallest_number(dtype: torch.dtype) -> float:
    """The smallest number above 0, found by halving; it lies below `finfo.tiny`, where each halving costs a digit."""
    x = torch.ones((), dtype=dtype)
    while (half := x / 2) != 0:
        x = half
    return x.item()


def format_row(name: str, bits: int, fraction: int, largest: float, smallest: float) -> dict[str, object]:
    return {"format": name, "bits": bits, "exponent": bits - 1 - fraction, "fraction": fraction,
            "largest": f"{largest:.3g}", "smallest > 0": f"{smallest:.1e}", "step at 1": f"{2.0**-fraction:.1e}"}  # fmt: skip


NUMBERS_OF_A_TRAINING = {
    "a loss summed over a batch": 70_000.0,
    "a mask for attention": -1e9,
    "a weight after one step, 1 - 0.001": 0.999,
    "a gradient": 2e-8,
    "Adam's eps": 1e-8,
}


def show_formats(lesson: Lesson) -> None:
    lesson.section(
        "Three formats, and what they make of a training",
        "tensor_basics of project 00 takes the formats apart; here is what a training needs of them. Exponent bits buy "
        "range, fraction bits buy digits, and 16 bits have to choose. TF32 is no type of a tensor: it is float32 whose "
        "digits are cut while a GPU multiplies (custom_modules of project 01 does it by hand).",
    )
    table = []
    for name, dtype in FORMATS.items():
        info = torch.finfo(dtype)
        table.append(
            format_row(name, info.bits, round(-math.log2(info.eps)), info.max, info.smallest_normal * info.eps)
        )
    table.insert(1, format_row("TF32", 19, 10, (2 - 2**-10) * 2.0**127, 2.0**-126 * 2**-10))
    lesson.table(table)
    lesson.text("Five numbers that a training may meet, and what is left of each in a format:")
    lesson.table([{"number": what, "written": f"{value:g}",
                   **{name: f"{torch.tensor(value).to(dtype).item():g}" for name, dtype in FORMATS.items()}}
                  for what, value in NUMBERS_OF_A_TRAINING.items()])  # fmt: skip
    found = {name: smallest_number(dtype) for name, dtype in FORMATS.items()}
    foretold = {name: torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for name, dtype in FORMATS.items()}
    lesson.check("halving 1 ends at smallest_normal x eps of finfo", found == foretold,
                 f"2^{math.log2(found['float16']):.0f} in float16, 2^{math.log2(found['bfloat16']):.0f} in bfloat16")  # fmt: skip
    half = torch.finfo(torch.float16)
    kept, lost = (torch.tensor(found["float16"] * part).half().item() for part in (0.51, 0.5))
    lesson.check("float16: half of the smallest number is 0", lost == 0 and kept == found["float16"],
                 f"{0.5 * found['float16']:.1e} becomes {lost:g}, a little more becomes {kept:.1e}")  # fmt: skip
    over, last = torch.tensor([65520.0, 65519.0]).half().tolist()
    lesson.check("float16: from 65520 on everything is inf", over == math.inf and last == half.max,
                 f"65519 becomes {last:g}")  # fmt: skip
    same = [torch.tensor(value).bfloat16().item() for value in (0.999, 1 - 2.0**-9)]
    lesson.check(
        "bfloat16: 1 - 0.001 is 1", same == [1, 1], f"its step below 1 is {torch.finfo(torch.bfloat16).eps / 2:g}"
    )
    lesson.shows(
        f"between its smallest and its largest number float16 has {math.log2(half.max / found['float16']):.0f} powers of "
        f"two, bfloat16 {math.log2(torch.finfo(torch.bfloat16).max / found['bfloat16']):.0f}. float16 fails by range, and "
        "its cure is to scale; bfloat16 fails by digits, and its cure is to keep sums and weights elsewhere. Both follow."
    )


# One product


def product_error_bound(dtype: torch.dtype, terms: int) -> float:
    """The most by which an entry of x @ w may be off, as a share of |x| @ |w| (Higham 2002, section 3.5).

    x and w are rounded to `dtype`, their products summed in float32, and the sum rounded to `dtype` again. A rounding is
    off by eps / 2 at most; each of the `terms` additions is allowed a whole eps, since tensor cores cut off.
    """
    rounding = torch.finfo(dtype).eps / 2
    return float((1 + rounding) ** 3 * (1 + torch.finfo(torch.float32).eps) ** terms - 1)


def product_errors(x: torch.Tensor, w: torch.Tensor, dtype: torch.dtype, precision: str = "ieee"
                   ) -> tuple[torch.Tensor, float]:  # fmt: skip
    """How far each entry of x @ w in `dtype` is from float64, as a share of |x| @ |w|, and how far the whole is.

    The whole by length: |found - right| / |right| of all entries together.
    """
    with float32_as(precision):
        found = (x.to(dtype) @ w.to(dtype)).cpu().double()
    wide_x, wide_w = x.cpu().double(), w.cpu().double()  # MPS has no float64
    right = wide_x @ wide_w
    return (found - right).abs() / (wide_x.abs() @ wide_w.abs()), relative_error([found], [right])


def dot_summed_in(x: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mistake: x (M, K) times w (K, N) with a running sum that has `dtype` as well; what no hardware does."""
    total = torch.zeros(len(x), w.shape[1], dtype=dtype, device=x.device)
    for column, row in zip(x.to(dtype).T, w.to(dtype), strict=True):
        total += torch.outer(column, row)
    return total


def show_product_errors(lesson: Lesson) -> None:
    lesson.section(
        "The error of a product",
        "Nearly all of a network's arithmetic is in products of matrices. In 16 bits each input is rounded, and the result. "
        "The sum in between is kept in float32, by the units of a GPU and by a CPU's. That is why the error does not grow "
        "with the length of the sum, and why a network survives it. The product is compared with float64; the bound of one "
        "entry is a share of |x| @ |w|, the sum if nothing cancelled.",
    )
    n, device = lesson.pick(full=128, quick=64), lesson.device
    lengths = lesson.pick(full=[64, 1024, 16384], quick=[64, 1024])
    formats = {name: (dtype, "ieee") for name, dtype in FORMATS.items()}
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        formats["TF32"] = torch.float32, "tf32"
    table, shares, off = [], {}, {}
    for length in lengths:
        x, w = torch.randn(n, length, device=device), torch.randn(length, n, device=device)
        for name, (dtype, precision) in formats.items():
            errors, off[name, length] = product_errors(x, w, dtype, precision)
            rounded_to = torch.float16 if name == "TF32" else dtype  # both have 10 bits behind the point
            bound = product_error_bound(rounded_to, length)
            shares[name, length] = errors.max().item() / bound
            lesson.record("error of a product", off[name, length], "share", format=name, length=length)
            table.append({"format": name, "terms": length, "product off by": f"{off[name, length]:.1e}",
                          "worst entry": f"{errors.max().item():.1e}", "its bound": f"{bound:.1e}",
                          "share": percent(shares[name, length])})  # fmt: skip
    table.sort(key=lambda row: list(formats).index(str(row["format"])))
    lesson.table(table)
    lesson.check("no entry is further off than the bound", max(shares.values()) <= 1,
                 f"{percent(max(shares.values()))} of it at worst")  # fmt: skip
    shortest, longest = lengths[0], lengths[-1]
    finer = off["bfloat16", shortest] / off["float16", shortest]
    lesson.check("float16 is about 8 times as exact as bfloat16", 4 < finer < 16,
                 f"{finer:.1f} times; its steps are 8 times finer")  # fmt: skip
    growth = max(off[name, longest] / off[name, shortest] for name in ("bfloat16", "float16"))
    lesson.check("in 16 bits a longer sum is hardly worse", growth < 3,
                 f"{growth:.2f} times the error for {longest // shortest} times the terms")  # fmt: skip
    x, w = torch.randn(16, 4096, device=device), torch.randn(4096, 16, device=device)
    by_hand = dot_summed_in(x, w, torch.bfloat16).cpu().double()
    narrow = relative_error([by_hand], [x.cpu().double() @ w.cpu().double()])
    wide = product_errors(x, w, torch.bfloat16)[1]
    lesson.check("summed in bfloat16 as well, it would be far worse", narrow > 5 * wide,
                 f"{percent(narrow)} off after 4,096 terms, the library {percent(wide)}")  # fmt: skip
    lesson.shows(
        f"a product in bfloat16 is off by {percent(off['bfloat16', shortest])} with {shortest} terms and by "
        f"{percent(off['bfloat16', longest])} with {longest:,}: errors of both signs cancel, so no entry comes near its "
        "bound. Gradient descent lives with noise, from the choice of each batch. It does not live with errors of one "
        "sign, nor with numbers that are gone. Those come next."
    )


# Sums and losses


def running_total_in(losses: torch.Tensor, dtype: torch.dtype) -> float:
    """The mistake where `dtype` has 16 bits: once a loss is below half a step of the total, nothing is added any more."""
    total = torch.zeros((), dtype=dtype)
    for loss in losses.to(dtype):
        total += loss
    return total.item()


def loss_in_half(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mistake: outside of autocast a loss is computed in the type of what the model gave, here with a square."""
    return F.mse_loss(prediction.half(), target.half())


def loss_in_float32(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Right: widen first. Inside autocast F.mse_loss does so by itself."""
    return F.mse_loss(prediction.half().float(), target.half().float())


def mask_with_a_billion(scores: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The mistake: -1e9 for "never" is -inf in float16, and 0 times that is nan where nothing was hidden."""
    return torch.softmax(scores + hidden * torch.tensor(-1e9).to(scores.dtype), -1)


def mask_with_the_smallest(scores: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Right: the most negative number of the format that is there."""
    return torch.softmax(scores.masked_fill(hidden, torch.finfo(scores.dtype).min), -1)


def show_sums(lesson: Lesson) -> None:
    lesson.section(
        "Totals that stop, losses that overflow, masks that are infinite",
        "Three places in a training loop where 16 bits fail outside of any product. They are your own lines, so nothing "
        "protects them: the total of an epoch's losses, a loss on the output of model.half(), and a constant such as -1e9 "
        "that was chosen for float32. All of it runs on the CPU; a format means the same everywhere.",
    )
    steps = 5000
    losses = 0.55 + 0.4 * torch.rand(steps)
    right = losses.double().mean().item()
    totals = {name: running_total_in(losses, dtype) for name, dtype in FORMATS.items()}
    lesson.table([{"total kept in": name, f"after {steps:,} steps": total, "mean loss": total / steps, "right": right}
                  for name, total in totals.items()])  # fmt: skip
    lesson.check("float16: the total stops at 2048, where steps are 2", totals["float16"] == 2048,
                 f"mean loss {totals['float16'] / steps:.3f}, right is {right:.3f}")  # fmt: skip
    lesson.check("bfloat16: it stops at 256", totals["bfloat16"] == 256, f"mean loss {totals['bfloat16'] / steps:.3f}")
    ones = torch.ones(100_000, dtype=torch.float16)
    lesson.check("float16: a sum overflows where the mean would not", ones.sum() == math.inf and ones.mean() == 1,
                 f"100,000 ones: sum {ones.sum().item()}, mean {ones.mean().item():g}")  # fmt: skip
    prediction, target = torch.full((4,), 300.0), torch.zeros(4)
    half, wide = loss_in_half(prediction, target).item(), loss_in_float32(prediction, target).item()
    lesson.check("an error of 300 is a squared loss of inf in float16", half == math.inf and wide == 90_000,
                 f"{half}, widened first {wide:,.0f}")  # fmt: skip
    scores, hidden = torch.zeros(1, 3, dtype=torch.float16), torch.tensor([[True, False, False]])
    billion, smallest = mask_with_a_billion(scores, hidden), mask_with_the_smallest(scores, hidden)
    lesson.check("hidden x -1e9: the whole row is nan", bool(billion.isnan().all()),
                 f"0 x -inf; with torch.finfo(dtype).min it is {', '.join(f'{p:g}' for p in smallest[0].tolist())}")  # fmt: skip
    refusal = complaint(lambda: scores.masked_fill(hidden, -1e9))
    lesson.check("masked_fill(-1e9) is refused in float16", "overflow" in refusal, refusal.partition(":")[0])
    lesson.shows(
        f"an epoch's mean loss of {right:.3f} reads {totals['bfloat16'] / steps:.3f} in bfloat16, and looks like progress. "
        "Call .item() or .float() on a loss before you add it up, leave the loss to autocast or widen its input, and take "
        "constants from torch.finfo(x.dtype)."
    )


def main(argv: Sequence[str] | None = None) -> int:
    title = "Mixed precision: what 16 bits lose, how scaling saves it, and what they save in memory and time."
    with Lesson(__file__, argv, title=title) as lesson:
        show_formats(lesson)
        show_product_errors(lesson)
        show_sums(lesson)
        show_underflow(lesson)
        show_scale(lesson)
        show_scaler(lesson)
        show_order(lesson)
        show_rules(lesson)
        show_copies(lesson)
        show_backward(lesson)
        show_updates(lesson)
        show_stochastic_rounding(lesson)
        show_half(lesson)
        show_training(lesson)
        show_memory(lesson)
        show_products(lesson)
        show_small_models(lesson)
        show_residual_network(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
