"""Where inf and nan come from, and whole numbers that ran over: remarks on a step that was carried out."""

import re
from collections.abc import Sequence

from pytorch_00_tensor_gpu_basics.src.calculator.values import Step

import torch

LARGEST_LOOKED_AT = 10_000  # elements; beyond it a look costs more than it tells
MAY_WRAP = ("+", "-", "*", "**", "@", "sum", "prod", "cumsum", "matmul", "einsum", "abs")
CAUSES = {  # of inf, and of nan, where everything that went in was finite
    "/": ("a division by 0", "0 / 0"),
    "//": ("a division by 0", "0 / 0"),
    "%": ("", "a division by 0"),
    "log": ("the logarithm of 0", "a negative number has no logarithm"),
    "sqrt": ("", "a negative number has no square root"),
    "**": ("0 to a negative power, or a result beyond the largest number", "a negative number to a broken power"),
    "grad": ("a slope that is vertical there", "0 * inf on the way back"),
}


def notes_on(step: Step) -> list[str]:
    """Remarks on what came out; none on large tensors."""
    inputs = [node.tensor for node in step.plan.inputs]
    if any(tensor.numel() > LARGEST_LOOKED_AT for tensor in [step.node.tensor, *inputs]):
        return []
    return [*not_finite(step, inputs), *wrapped(step, inputs)]


def not_finite(step: Step, inputs: Sequence[torch.Tensor]) -> list[str]:
    """Says at the step where inf or nan first appears what it comes from."""
    result = step.node.tensor
    if not result.is_floating_point() or bool(torch.isfinite(result).all()) or step.plan.notes:
        return []
    infinite, undefined = int(result.isinf().sum()), int(result.isnan().sum())
    if any(bool(x.isnan().any()) for x in inputs):
        return []  # it came in
    if any(bool(x.isinf().any()) for x in inputs):
        return [f"{counted(undefined, 'nan')}: inf - inf, 0 * inf and inf / inf have no value"] if undefined else []
    if re.search(r"\b(inf|nan)\b", step.source):
        return []  # it was asked for
    sign = "-" if infinite and bool((result[result.isinf()] < 0).all()) else ""
    largest = f"{torch.finfo(result.dtype).max:.2g}, the largest number of {step.node.dtype_name}"
    largest = f"below -{largest}" if sign else f"above {largest}"
    why_infinite, why_undefined = CAUSES.get(step.kind, ("", ""))
    notes = [f"{counted(infinite, f'{sign}inf')}: {why_infinite or largest}"] if infinite else []
    return notes + (
        [f"{counted(undefined, 'nan')}: {why_undefined or 'no value is defined there'}"] if undefined else []
    )


def counted(count: int, what: str) -> str:
    return f"{count:,} element{'s are' if count > 1 else ' is'} {what}"


def wrapped(step: Step, inputs: Sequence[torch.Tensor]) -> list[str]:
    """Whether int64 ran over: the same in float64, which has room, tells."""
    if (
        step.kind not in MAY_WRAP
        or step.node.tensor.dtype != torch.int64
        or any(x.dtype != torch.int64 for x in inputs)
    ):
        return []
    expected = step.plan.compute(*(x.double() for x in inputs))
    count = int(((expected - step.node.tensor.double()).abs() > 2.0**62).sum())  # off by a multiple of 2^64
    return (
        []
        if not count
        else [
            f"{count:,} result{'s' * (count > 1)} passed 2^63 - 1 and wrapped around: int64 has no inf; x.double() goes further"
        ]
    )
