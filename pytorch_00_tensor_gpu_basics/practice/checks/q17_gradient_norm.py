"""The oracle squares and adds in float64."""

from typing import Any

from shared.device import pick_device
from shared.practice import expect
from shared.traps import expect_tensor

import torch


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    cases = [
        ("ordinary float32 gradients", [draw(13, 7, dtype=torch.float32), draw(5, dtype=torch.float32)]),
        ("float16 gradients of about 1000, whose squares pass 65,504", [draw(9, 5, scale=1e3), draw(3, scale=1e3)]),
        ("float16 gradients of about 1e-5, whose squares vanish", [draw(9, 5, scale=1e-5), draw(31, scale=1e-5)]),
        ("30,000 float16 gradients, whose sum of squares passes 65,504", [draw(300, 100, scale=4.0)]),
        ("1,000 bfloat16 tensors, which a bfloat16 sum stops noticing", [torch.ones(1, dtype=torch.bfloat16)] * 1_000),
        (
            "bfloat16 first and float32 after it",
            [draw(8, 3, dtype=torch.bfloat16), draw(50, 2, scale=3.0, dtype=torch.float32)],
        ),
        (
            "bfloat16 gradients of about 1e15",
            [draw(4, 3, scale=1e15, dtype=torch.bfloat16), draw(4, scale=1e15, dtype=torch.bfloat16)],
        ),
        ("transposed views, a number and an empty tensor", [draw(6, 4).t(), draw(), draw(0, 3)]),
        ("gradients that are all zero", [torch.zeros(3, 2, dtype=torch.float16)]),
        ("gradients on this machine's fastest device", [draw(33, 3).to(pick_device()), draw(5).to(pick_device())]),
    ]
    for case, gradients in cases:
        expect_norm(answer, case, gradients)


def expect_norm(answer: Any, case: str, gradients: list[torch.Tensor]) -> None:
    kept = [gradient.clone() for gradient in gradients[:5]]
    right = sum(gradient.cpu().double().square().sum().item() for gradient in gradients) ** 0.5
    found = answer.gradient_norm(gradients)
    call = f"gradient_norm of {case}"
    expect_tensor(found, call, (), torch.float32)
    expect(found.device == gradients[0].device, f"{call} is on {found.device}; stay on {gradients[0].device}")
    value = found.item()
    expect(abs(value - right) <= 1e-3 * right, f"{call} is {value:.6g}, and should be {right:.6g}")
    unchanged = all(torch.equal(gradient, before) for gradient, before in zip(gradients, kept, strict=False))
    expect(unchanged, f"{call} changed the gradients; the optimizer still needs them")


def converts_the_squares(gradients: Any) -> torch.Tensor:
    return torch.stack([(gradient * gradient).float().sum() for gradient in gradients]).sum().sqrt()


def converts_to_bfloat16(gradients: Any) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.bfloat16, device=gradients[0].device)
    for gradient in gradients:
        total += gradient.bfloat16().square().sum()
    return total.sqrt().float()


def adds_the_norms(gradients: Any) -> torch.Tensor:
    return torch.stack([gradient.float().norm() for gradient in gradients]).sum()


def scales_in_place(gradients: Any) -> torch.Tensor:
    largest = torch.stack([g.abs().max().float() for g in gradients if g.numel()]).max().clamp(min=1e-12)
    squares = [g.div_(largest).float().square().sum() for g in gradients]
    return largest * torch.stack(squares).sum().sqrt()


WRONG = {
    "converts the finished squares": ({"gradient_norm": converts_the_squares}, "65,504 is inf"),
    "trusts bfloat16": ({"gradient_norm": converts_to_bfloat16}, "and should be"),
    "adds the norms": ({"gradient_norm": adds_the_norms}, "gradient_norm of ordinary float32 gradients is"),
    "scales the gradients in place": ({"gradient_norm": scales_in_place}, "changed the gradients"),
}
