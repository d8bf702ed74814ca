"""Right first, against the formulas in float64; then every new tensor is followed from its making to its end."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared.device import pick_device
from shared.dispatch import Watcher, name_of, tensors_in
from shared.practice import expect
from shared.units import significant

import torch

Tensors = list[torch.Tensor]
EPS = 1e-8


class NewTensors(Watcher):
    """The most bytes of new tensors that were alive at once, and the operations that had made them."""

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in known}
        self.alive: dict[int, tuple[int, str]] = {}
        self.peak, self.made_by = 0, list[str]()

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        for x in tensors_in(result):
            self.add(x.untyped_storage(), name_of(operation).split(".")[0])

    def add(self, storage: torch.UntypedStorage, name: str) -> None:
        address = storage.data_ptr()
        if address in self.known or address in self.alive:
            return
        self.alive[address] = storage.nbytes(), name
        weakref.finalize(storage, self.alive.pop, address)
        total = sum(size for size, _ in self.alive.values())
        if total > self.peak:
            self.peak, self.made_by = total, [maker for _, maker in self.alive.values()]


def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensors, Tensors, Tensors]:
    """Parameters with gradients and states: of many shapes, one transposed, one without elements, one without gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    shapes = [(30, 40), (40, 30), (7,), (), (0, 3), (5, 9), (30, 40)]
    parameters = [draw(*shape) for shape in shapes]
    parameters[1] = parameters[1].t()
    gradients = [torch.randn(p.shape, generator=generator).to(device, dtype) for p in parameters]
    for number, parameter in enumerate(parameters):
        parameter.requires_grad_()
        parameter.grad = gradients[number] if number != 5 else None
    return parameters, [draw(*p.shape) for p in parameters], [draw(*p.shape).square() for p in parameters]


def updated(parameter: torch.Tensor, average: torch.Tensor, square: torch.Tensor, options: dict[str, Any]) -> Tensors:
    """Parameter and states after the step, by the formulas of the paper."""
    p, m, v = (x.detach().cpu().double() for x in (parameter, average, square))
    if parameter.grad is None:
        return [p, m, v]
    g = parameter.grad.cpu().double()
    lr, beta1, beta2, step = (options[name] for name in ("lr", "beta1", "beta2", "step"))
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    direction = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + EPS)
    return [p - lr * (direction + options["weight_decay"] * p), m, v]


def check(answer: Any, seed: int) -> None:
    usual = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.1}
    expect_example(answer)
    for step in (1, 2, 1000):
        expect_right(answer, make(seed, torch.float64, torch.device("cpu")), usual | {"step": step}, 1e-10)
    expect_right(answer, make(seed, torch.float32, pick_device()), usual | {"step": 7}, 1e-4)
    other = {"lr": 0.5, "beta1": 0.5, "beta2": 0.75, "weight_decay": 0.0, "step": 3}
    expect_right(answer, make(seed, torch.float64, torch.device("cpu")), other, 1e-10)
    expect_lean(answer, seed)


def expect_example(answer: Any) -> None:
    parameter = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    parameter.grad = torch.tensor([4.0, 1e-8], dtype=torch.float64)
    average, square = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    answer.adamw_step([parameter], [average], [square], step=1, lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.0)
    large, small = parameter.tolist()
    call = "adamw_step on parameter 1.0, both states 0, step 1, lr 0.1 and weight_decay 0"
    expect(abs(large - 0.9) < 1e-6, f"{call}, with gradient 4.0, made the parameter {large:.6g} and should make it 0.9")
    expect(
        abs(small - 0.95) < 1e-6,
        f"{call}, with gradient 1e-8, made the parameter {small:.6g} and should make it 0.95: add 1e-8 to the corrected root",
    )


def expect_right(
    answer: Any, state: tuple[Tensors, Tensors, Tensors], options: dict[str, Any], tolerance: float
) -> None:
    parameters, averages, squares = state
    right = [updated(*trio, options) for trio in zip(*state, strict=True)]
    gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
    answer.adamw_step(list(parameters), list(averages), list(squares), **options)
    call = f"adamw_step number {options['step']} on {str(parameters[0].dtype).removeprefix('torch.')} tensors"
    for number, wanted in enumerate(right):
        names = ("parameters", "averages", "squares")
        for name, found, should in zip(names, (parameters, averages, squares), wanted, strict=True):
            x = found[number].detach().cpu().double()
            apart = (x - should).abs() > tolerance * (1 + should.abs())
            if apart.any():
                at = int(apart.flatten().nonzero()[0])
                what = f"{name}[{number}]" + (", which has no gradient," if gradients[number] is None else "")
                expect(False, f"{call}: {what} holds {x.flatten()[at]:.6g} and should hold {should.flatten()[at]:.6g}")
    for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        is_kept = parameter.grad is gradient is None or (
            parameter.grad is not None and gradient is not None and torch.equal(parameter.grad, gradient)
        )
        expect(is_kept, f"{call} changed parameters[{number}].grad; who logs or accumulates gradients still needs it")
        expect(
            not averages[number].requires_grad,
            f"{call}: averages[{number}] now requires gradients; keep torch.no_grad()",
        )


def expect_lean(answer: Any, seed: int) -> None:
    state = parameters, averages, squares = make(seed, torch.float32, torch.device("cpu"))
    gradients = [p.grad for p in parameters if p.grad is not None]
    with NewTensors([*parameters, *averages, *squares, *gradients]) as new:
        answer.adamw_step(*state, step=3, lr=1e-3, beta1=0.9, beta2=0.999, weight_decay=0.1)
    largest = max(p.nbytes for p in parameters)
    made_by = ", ".join(new.made_by[:6]) + (" …" if len(new.made_by) > 6 else "")
    expect(
        new.peak <= largest,
        f"right, but at one moment new tensors of {new.peak:,} bytes are alive, {significant(new.peak / largest, 2)} times "
        f"the largest parameter. They are the results of: {made_by}. Wanted is 1.0 times; a name keeps its tensor until it "
        "gets the next",
    )


def written(step_one: Callable[..., None]) -> dict[str, object]:
    """An answer that goes through the parameters with a gradient, one by one."""

    @torch.no_grad()
    def adamw_step(
        parameters: Tensors,
        averages: Tensors,
        squares: Tensors,
        step: int,
        lr: float,
        beta1: float,
        beta2: float,
        weight_decay: float,
    ) -> None:
        for p, m, v in zip(parameters, averages, squares, strict=True):
            if p.grad is not None:
                step_one(p, m, v, p.grad, step, lr, beta1, beta2, weight_decay)

    return {"adamw_step": adamw_step}


def as_in_the_paper(p: Any, m: Any, v: Any, g: Any, step: int, lr: float, b1: float, b2: float, decay: float) -> None:
    m.copy_(b1 * m + (1 - b1) * g)
    v.copy_(b2 * v + (1 - b2) * g * g)
    direction = (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + EPS)
    p.copy_(p - lr * (direction + decay * p))


def one_operation_at_a_time(
    p: Any, m: Any, v: Any, g: Any, step: int, lr: float, b1: float, b2: float, decay: float
) -> None:
    m.mul_(b1).add_(g, alpha=1 - b1)
    v.mul_(b2).add_(g * g, alpha=1 - b2)
    p.mul_(1 - lr * decay)
    root = (v / (1 - b2**step)).sqrt_().add_(EPS)
    p.sub_(m / root, alpha=lr / (1 - b1**step))


def uses_the_gradient_as_scratch(
    p: Any, m: Any, v: Any, g: Any, step: int, lr: float, b1: float, b2: float, decay: float
) -> None:
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    g.copy_(v).sqrt_().div_((1 - b2**step) ** 0.5).add_(EPS)
    p.mul_(1 - lr * decay).addcdiv_(m, g, value=-lr / (1 - b1**step))


def uses_the_state_as_scratch(
    p: Any, m: Any, v: Any, g: Any, step: int, lr: float, b1: float, b2: float, decay: float
) -> None:
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    p.mul_(1 - lr * decay).addcdiv_(m, v.sqrt_().div_((1 - b2**step) ** 0.5).add_(EPS), value=-lr / (1 - b1**step))


def adds_eps_before_correcting(
    p: Any, m: Any, v: Any, g: Any, step: int, lr: float, b1: float, b2: float, decay: float
) -> None:
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    p.mul_(1 - lr * decay)
    p.addcdiv_(m, v.sqrt().add_(EPS), value=-lr * (1 - b2**step) ** 0.5 / (1 - b1**step))


@torch.no_grad()
def names_the_root(
    parameters: Tensors,
    averages: Tensors,
    squares: Tensors,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    for p, m, v in zip(parameters, averages, squares, strict=True):
        if p.grad is not None:
            m.lerp_(p.grad, 1 - beta1)
            v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            root = v.sqrt()
            root.div_((1 - beta2**step) ** 0.5).add_(EPS)
            p.mul_(1 - lr * weight_decay).addcdiv_(m, root, value=-lr / (1 - beta1**step))


WRONG = {
    "is written as in the paper": (written(as_in_the_paper), "times the largest parameter. They are the results of"),
    "divides before it subtracts": (written(one_operation_at_a_time), "2.0 times the largest parameter"),
    "gives the root a name": ({"adamw_step": names_the_root}, "They are the results of: sqrt, sqrt."),
    "uses the gradient as scratch paper": (written(uses_the_gradient_as_scratch), "still needs it"),
    "uses the state as scratch paper": (written(uses_the_state_as_scratch), "squares[0] holds"),
    "adds eps before correcting": (written(adds_eps_before_correcting), "add 1e-8 to the corrected root"),
}
