"""Right first, on hostile numbers and layouts; then what Python reads and what is made is counted, so no GPU is needed."""

from typing import Any

from shared.device import pick_device
from shared.practice import expect
from shared.traps import expect_bool, largest_made, operations

import torch

Tensors = list[torch.Tensor]
READS = ("_local_scalar_dense.default",)


def make(seed: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(6, 5), (), (0, 3), (4,), (2, 3, 2), *((n % 4 + 1, 3) for n in range(20))]
    made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    made[0] = made[0].t()
    return made


def check(answer: Any, seed: int) -> None:
    inf, nan = float("inf"), float("nan")
    # What stands in which gradient, at which place when it is laid out in a row.
    planted: dict[str, list[tuple[int, int, float]]] = {
        "all of them finite": [],
        "inf in the first": [(0, 3, inf)],
        "-inf in the last": [(24, 0, -inf)],
        "a NaN in the middle": [(9, 1, nan)],
        "inf as a single number": [(1, 0, inf)],
        "inf and -inf in one": [(4, 0, inf), (4, 1, -inf)],
        "several bad ones": [(0, 0, nan), (3, 2, inf), (24, 1, nan)],
        "1e30 in one of them, which is finite": [(0, 0, 1e30)],
        "3e38 four times over, which is finite": [(3, n, 3e38) for n in range(4)],
        "3e38 and -3e38, both finite": [(3, 0, 3e38), (3, 1, -3e38)],
        "3e38 in several of them, all finite": [(n, 0, 3e38) for n in (0, 3, 4, 6, 9)],
    }
    for case, places in planted.items():
        gradients = make(seed)
        for number, place, value in places:
            gradient = gradients[number]
            in_a_row = (gradient if gradient.is_contiguous() else gradient.t()).view(-1)
            in_a_row[place] = value
        expect_unscaled(answer, gradients, 4.0, case)
    for scale in (1.0, 2.0**16, 0.25):
        expect_unscaled(answer, make(seed), scale, "all of them finite")
    expect_unscaled(answer, make(seed, torch.float16), 8.0, "all of them finite")
    expect_unscaled(answer, [torch.tensor([[8.0, inf]]), torch.tensor([4.0])], 4.0, "the example")
    expect_unscaled(answer, [torch.full((3,), 2.0)], 2.0, "a single one")
    expect_unscaled(answer, make(seed, device=pick_device()), 2.0, "all of them finite")
    expect_lean(answer, seed)


def expect_unscaled(answer: Any, gradients: Tensors, scale: float, case: str) -> None:
    right = [gradient.clone() / scale for gradient in gradients]
    is_finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
    call = f"unscale of {len(gradients)} {str(gradients[0].dtype).removeprefix('torch.')} gradients with scale {scale:g}, {case},"
    found = answer.unscale(list(gradients), scale)
    expect_bool(found, call)
    for number, (gradient, wanted) in enumerate(zip(gradients, right, strict=True)):
        same = torch.equal(gradient.nan_to_num(nan=-1.5), wanted.nan_to_num(nan=-1.5))
        expect(same, f"{call} left gradients[{number}] otherwise than divided by {scale:g}, in place; divide all of them, "
               "each once")  # fmt: skip
    expect(found is is_finite, f"{call} returned {found} and should return {is_finite}")


def expect_lean(answer: Any, seed: int) -> None:
    gradients = make(seed)
    reads = sum(name in READS for name in operations(answer.unscale, gradients, 2.0))
    expect(
        reads <= 1,
        f"right, but Python read {reads} tensors for {len(gradients)} gradients; on a GPU each is a wait, and one is enough",
    )
    largest = max(gradient.numel() for gradient in gradients)
    made = largest_made(answer.unscale, make(seed), 2.0)
    expect(
        made <= largest,
        f"right, but a tensor of {made} numbers was made, and the largest gradient has {largest}: with a real model that is "
        "its memory once more",
    )


def reads_each(gradients: Tensors, scale: float) -> bool:
    torch._foreach_div_(gradients, scale)
    answers = [bool(gradient.isfinite().all()) for gradient in gradients]
    return all(answers)


def stops_at_the_first(gradients: Tensors, scale: float) -> bool:
    for gradient in gradients:
        gradient /= scale
        if not gradient.isfinite().all():
            return False
    return True


def joins_all_numbers(gradients: Tensors, scale: float) -> bool:
    torch._foreach_div_(gradients, scale)
    return bool(torch.cat([gradient.flatten() for gradient in gradients]).isfinite().all())


def asks_the_norm(gradients: Tensors, scale: float) -> bool:
    torch._foreach_div_(gradients, scale)
    return bool(torch.stack([gradient.norm() for gradient in gradients]).isfinite().all())


def asks_the_sum(gradients: Tensors, scale: float) -> bool:
    total = torch.stack([gradient.sum() for gradient in gradients]).sum()
    torch._foreach_div_(gradients, scale)
    return bool(total.isfinite())


def divides_copies(gradients: Tensors, scale: float) -> bool:
    return bool(torch.stack([(gradient / scale).isfinite().all() for gradient in gradients]).all())


def overlooks_nan(gradients: Tensors, scale: float) -> bool:
    torch._foreach_div_(gradients, scale)
    return not bool(torch.stack([gradient.isinf().any() for gradient in gradients]).any())


WRONG = {
    "reads each answer": ({"unscale": reads_each}, "Python read 25 tensors for 25 gradients"),
    "stops at the first bad one": ({"unscale": stops_at_the_first}, "divide all of them"),
    "joins all numbers": ({"unscale": joins_all_numbers}, "its memory once more"),
    "asks the norm": ({"unscale": asks_the_norm}, "1e30 in one of them, which is finite"),
    "asks the sum": ({"unscale": asks_the_sum}, "which is finite, returned False"),
    "divides copies": ({"unscale": divides_copies}, "in place"),
    "overlooks NaN": ({"unscale": overlooks_nan}, "a NaN in the middle"),
}
