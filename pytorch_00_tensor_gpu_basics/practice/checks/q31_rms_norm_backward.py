"""The oracle is autograd on the forward, written as a row of operations; float64, so that only a formula can be off."""

from typing import Any, cast

from shared.practice import expect
from shared.traps import expect_close, expect_tensor, shown

import torch

EPSILON = 1e-6
TOLERANCE = 1e-6
Gradients = tuple[torch.Tensor, torch.Tensor]


def rms_norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(dim=-1, keepdim=True) + EPSILON).rsqrt() * scale


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    example = torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    expect_gradients(answer, "the example", *example, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    padded = draw(3, 5)
    padded[1] = 0
    cases = [
        ("a row of zeros", padded, draw(5), draw(3, 5)),
        ("one scale per feature", draw(4, 6), draw(6), draw(4, 6)),
        ("one vector", draw(7), draw(7), draw(7)),
        ("a scale for each sample and feature", draw(5, 3, 7), draw(5, 1, 7), draw(5, 3, 7)),
        ("a scale for each position", draw(2, 3, 5), draw(3, 1), draw(2, 3, 5)),
        ("a scale of one row", draw(3, 5), draw(1, 5), draw(3, 5)),
        ("one number as scale", draw(3, 4), draw(), draw(3, 4)),
        ("vectors of one entry", draw(3, 1), draw(1), draw(3, 1)),
        ("no vector", draw(0, 4), draw(4), draw(0, 4)),
        ("transposed x and upstream", draw(6, 3).t(), draw(6), draw(6, 3).t()),
        ("an expanded upstream, as the backward of sum() gives it", draw(4, 6), draw(6), draw(1, 1).expand(4, 6)),
    ]
    for case in cases:
        expect_gradients(answer, *case)
    expect_formula(answer, draw(2, 5), draw(5), draw(2, 5))
    expect_second_derivatives(answer, draw(2, 5), draw(5), draw(2, 5))
    float32 = [draw(5, 9).float(), draw(9).float(), draw(5, 9).float()]
    expect_pair(answer.rms_norm_backward(*float32), "rms_norm_backward of float32 tensors", float32[0], float32[1])


def expect_gradients(answer: Any, case: str, x: torch.Tensor, scale: torch.Tensor, upstream: torch.Tensor) -> None:
    call = f"rms_norm_backward with {case} (x {tuple(x.shape)}, scale {tuple(scale.shape)})"
    kept = [tensor.clone() for tensor in (x, scale, upstream)]
    found = answer.rms_norm_backward(x, scale, upstream)
    to_x, to_scale = expect_pair(found, call, x, scale)
    for name, tensor, before in zip(("x", "scale", "upstream"), (x, scale, upstream), kept, strict=True):
        expect(torch.equal(tensor, before), f"{call} changed {name}; others may still read that tensor")
    right_x, right_scale = by_autograd(*kept)
    expect_close(to_scale, right_scale, f"{call}: the gradient of scale", TOLERANCE)
    expect_close(
        to_x, right_x, f"{call}: x reaches y on two ways, directly and through r; the gradient of x", TOLERANCE
    )


def expect_pair(found: object, call: str, x: torch.Tensor, scale: torch.Tensor) -> Gradients:
    is_pair = isinstance(found, tuple | list) and len(found) == 2
    expect(is_pair, f"{call} returned {shown(found)}; return two tensors, the gradients of x and of scale")
    to_x, to_scale = cast(Gradients, found)
    expect_tensor(to_x, f"{call}, as the gradient of x,", tuple(x.shape), x.dtype)
    repeated = isinstance(to_scale, torch.Tensor) and to_scale.shape != scale.shape
    expect(
        not repeated,
        f"{call} returned {shown(to_scale)} for the gradient of scale; an entry of scale that is used many times gets "
        f"the sum over all of these, so return the shape {tuple(scale.shape)}",
    )
    expect_tensor(to_scale, f"{call}, as the gradient of scale,", tuple(scale.shape), scale.dtype)
    return to_x, to_scale


def along(upstream: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> Gradients:
    """Of upstream times the result, summed: handed over as grad_outputs, upstream would import sympy (1.5 s)."""
    to_x, to_scale = torch.autograd.grad((upstream * rms_norm(x, scale)).sum(), (x, scale), create_graph=True)
    return to_x, to_scale


def by_autograd(x: torch.Tensor, scale: torch.Tensor, upstream: torch.Tensor) -> Gradients:
    inputs = x.detach().requires_grad_(), scale.detach().requires_grad_()
    return along(upstream, *inputs)


def expect_formula(answer: Any, *inputs: torch.Tensor) -> None:
    """Autograd records nothing in inference mode, so a backward that leaves the work to it stops here."""
    with torch.inference_mode():
        try:
            answer.rms_norm_backward(*(tensor.clone() for tensor in inputs))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            expect(False, f"rms_norm_backward needs autograd and stops where it is switched off ({reason}); "
                   "write the formula out")  # fmt: skip


def expect_second_derivatives(answer: Any, x: torch.Tensor, scale: torch.Tensor, upstream: torch.Tensor) -> None:
    """Differentiates the sum of squares of both gradients."""
    inputs = [tensor.requires_grad_() for tensor in (x, scale, upstream)]
    call = "rms_norm_backward of tensors that require gradients"
    to_x, to_scale = answer.rms_norm_backward(*inputs)
    lost = "gave results without a graph; compute them from x, scale and upstream by recorded operations"
    expect(to_x.requires_grad and to_scale.requires_grad, f"{call} {lost}, so that they can be differentiated again")
    found = torch.autograd.grad(to_x.square().sum() + to_scale.square().sum(), inputs, allow_unused=True)
    first = along(upstream, x, scale)
    right = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), inputs)
    for name, value, oracle in zip(("x", "scale", "upstream"), found, right, strict=True):
        where = f"{call}, differentiated once more: a part was cut from the graph; the second derivative for {name}"
        expect(value is not None, f"{where} is missing")
        expect_close(value, oracle, where, TOLERANCE)


def r_of(x: torch.Tensor) -> torch.Tensor:
    return (x.square().mean(dim=-1, keepdim=True) + EPSILON).rsqrt()


def takes_r_for_a_constant(x: torch.Tensor, scale: torch.Tensor, upstream: torch.Tensor) -> Gradients:
    return upstream * scale * r_of(x), (upstream * x * r_of(x)).sum_to_size(scale.shape)


def leaves_scale_repeated(x: torch.Tensor, scale: torch.Tensor, upstream: torch.Tensor) -> Gradients:
    return by_autograd(x, scale, upstream)[0], upstream * x * r_of(x)


def sums_all_but_the_last(x: torch.Tensor, scale: torch.Tensor, upstream: torch.Tensor) -> Gradients:
    return by_autograd(x, scale, upstream)[0], (upstream * x * r_of(x)).reshape(-1, x.shape[-1]).sum(0)


def multiplies_in_place(x: torch.Tensor, scale: torch.Tensor, upstream: torch.Tensor) -> Gradients:
    right = by_autograd(x, scale, upstream)
    upstream *= scale
    return right


def leaves_it_to_autograd(x: torch.Tensor, scale: torch.Tensor, upstream: torch.Tensor) -> Gradients:
    with torch.enable_grad():
        inputs = x.clone().requires_grad_(), scale.clone().requires_grad_()
        return along(upstream, *inputs)


def cuts_r_from_the_graph(x: torch.Tensor, scale: torch.Tensor, upstream: torch.Tensor) -> Gradients:
    r, g = r_of(x).detach(), upstream * scale
    to_x = r * g - x * r**3 * (g * x).mean(dim=-1, keepdim=True)
    return to_x, (upstream * x * r).sum_to_size(scale.shape)


WRONG = {
    "takes r for a constant": ({"rms_norm_backward": takes_r_for_a_constant}, "directly and through r"),
    "leaves the gradient of scale repeated": (
        {"rms_norm_backward": leaves_scale_repeated},
        "so return the shape (2,)",
    ),
    "sums over all but the last dimension": (
        {"rms_norm_backward": sums_all_but_the_last},
        "so return the shape (5, 1, 7)",
    ),
    "multiplies in place": ({"rms_norm_backward": multiplies_in_place}, "changed upstream"),
    "leaves it to autograd": ({"rms_norm_backward": leaves_it_to_autograd}, "write the formula out"),
    "cuts r from the graph": ({"rms_norm_backward": cuts_r_from_the_graph}, "differentiated once more"),
}
