"""The oracle adds up 64-bit integers."""

from typing import Any

from shared.practice import expect
from shared.traps import expect_number

import torch


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def frame(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    still, dark = frame(61, 83), frame(61, 83) // 4
    wide = frame(3, 40, 51, 2)
    cases = [
        ("the second frame is brighter by 2", torch.tensor([10, 20], dtype=torch.uint8), torch.tensor([12, 22]).byte()),
        ("the second frame is darker by 2", torch.tensor([12, 22], dtype=torch.uint8), torch.tensor([10, 20]).byte()),
        ("nothing moves", still, still.clone()),
        ("black becomes white", torch.zeros(5, 7, dtype=torch.uint8), torch.full((5, 7), 255, dtype=torch.uint8)),
        ("white becomes black", torch.full((5, 7), 255, dtype=torch.uint8), torch.zeros(5, 7, dtype=torch.uint8)),
        ("128, 128 and 129 levels brighter", torch.zeros(3).byte(), torch.tensor([128, 128, 129]).byte()),
        ("frames of noise", frame(61, 83), frame(61, 83)),
        ("some pixels brighter, some darker", still, dark),
        ("one pixel", frame(), frame()),
        ("views that skip every other pixel", wide[..., 0], wide[..., 1]),
    ]
    for case, before, after in cases:
        kept = before.clone(), after.clone()
        right = (after.long() - before.long()).abs().sum().item() / before.numel()
        found = answer.mean_difference(before, after)
        call = f"mean_difference ({case})"
        expect_number(found, call, "the mean as a float, with .item()")
        expect(abs(found - right) < 0.01, f"{call} returned {found:.4f}; the frames differ by {right:.4f} levels")
        unchanged = torch.equal(before, kept[0]) and torch.equal(after, kept[1])
        expect(unchanged, f"{call} changed one of its frames; the caller still needs them")


def takes_abs_of_uint8(before: torch.Tensor, after: torch.Tensor) -> float:
    return (after - before).abs().float().mean().item()


def converts_to_int8(before: torch.Tensor, after: torch.Tensor) -> float:
    return (after.to(torch.int8) - before.to(torch.int8)).abs().float().mean().item()


def converts_to_half(before: torch.Tensor, after: torch.Tensor) -> float:
    return (after.half() - before.half()).abs().mean().item()


def forgets_the_sign(before: torch.Tensor, after: torch.Tensor) -> float:
    return (after.float() - before.float()).mean().item()


def overwrites(before: torch.Tensor, after: torch.Tensor) -> float:
    bigger = torch.maximum(before, after)
    return bigger.sub_(torch.minimum(before, after, out=before)).float().mean().item()


WRONG = {
    "subtracts the other way round": ({"mean_difference": takes_abs_of_uint8}, "darker by 2"),
    "converts to int8": ({"mean_difference": converts_to_int8}, "black becomes white"),
    "converts to float16": ({"mean_difference": converts_to_half}, "returned 128.3750; the frames differ by 128.3333"),
    "lets brighter and darker cancel": ({"mean_difference": forgets_the_sign}, "returned -2.0000"),
    "writes into a frame": ({"mean_difference": overwrites}, "changed one of its frames"),
}
