"""The oracle is the formula in float64, one parameter at a time; torch.optim itself would take seconds to import."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from shared.practice import expect
from shared.traps import shown

import torch

Tensors = list[torch.Tensor]
SHAPES = ((3, 4), (5,), (), (2, 2))
METHODS = ("step", "state_dict", "load_state_dict")
USUAL: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}  # torch.optim.AdamW's
OTHER: dict[str, Any] = {"lr": 0.1, "betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.2}
Gradients = Sequence[torch.Tensor | None]


class Oracle:
    """The formula, in float64, for parameters that it copies."""

    def __init__(
        self, parameters: Iterable[torch.Tensor], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        self.w = [p.detach().double().clone() for p in parameters]
        self.m, self.v = ([torch.zeros_like(w) for w in self.w] for _ in range(2))
        self.t = [0] * len(self.w)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay

    def step(self, gradients: Gradients) -> None:
        beta1, beta2 = self.betas
        for i, gradient in enumerate(gradients):
            if gradient is None:
                continue
            g = gradient.double()
            self.t[i] += 1
            self.w[i] = self.w[i] - self.lr * self.weight_decay * self.w[i]
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * g
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * g**2
            mean, square = self.m[i] / (1 - beta1 ** self.t[i]), self.v[i] / (1 - beta2 ** self.t[i])
            self.w[i] = self.w[i] - self.lr * mean / (square.sqrt() + self.eps)


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    expect_steps(answer, generator, torch.float64, 1e-5, USUAL | {"lr": 0.1, "weight_decay": 0.2})
    expect_tiny_gradients(answer)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        for options in ({}, OTHER):
            expect_steps(answer, generator, dtype, tolerance, options)
    expect_goes_on(answer, generator)


def make(answer: Any, parameters: Tensors, options: dict[str, Any], call: str) -> Any:
    optimizer = answer.AdamW((w for w in parameters), **options)  # a generator, as model.parameters() is
    has_all = all(callable(getattr(optimizer, name, None)) for name in METHODS)
    expect(has_all, f"{call} gave {shown(optimizer)}; return an optimizer with {', '.join(METHODS)}")
    return optimizer


def draw(generator: torch.Generator, dtype: torch.dtype) -> Tensors:
    parameters = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    parameters[0] = parameters[0].t()  # a view, as tied or sliced weights may be
    return [w.requires_grad_() for w in parameters]


def draw_gradients(generator: torch.Generator, parameters: Tensors, number: int) -> Gradients:
    """Of very unequal sizes; parameter 1 has none in steps 1, 2, 4 and 5, parameter 3 never."""
    scales = (1.0, 30.0, 0.1, 1.0)
    gradients: list[torch.Tensor | None] = [
        scale * torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w.dtype)
        for w, scale in zip(parameters, scales, strict=True)
    ]
    gradients[3] = None
    if number % 3:
        gradients[1] = None
    if number == 2:
        gradients[0] = torch.zeros_like(parameters[0])
    return gradients


def step(optimizer: Any, parameters: Tensors, gradients: Gradients, call: str) -> None:
    """One step with these gradients in .grad, which have to stay."""
    for w, gradient in zip(parameters, gradients, strict=True):
        w.grad = None if gradient is None else gradient.clone()
    try:
        optimizer.step()
    except RuntimeError as error:
        expect("leaf" not in str(error), f"{call} stopped: {error} Do the arithmetic under torch.no_grad()")
        raise
    for number, (w, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        is_kept = w.grad is None if gradient is None else w.grad is not None and torch.equal(w.grad, gradient)
        expect(
            is_kept, f"{call} changed the .grad of parameter {number}; who logs or accumulates gradients still needs it"
        )
        expect(
            w.requires_grad and w.is_leaf, f"{call}: parameter {number} is no leaf that requires a gradient any more"
        )


def expect_same(parameters: Tensors, oracle: Oracle, call: str, tolerance: float, reason: str = "") -> None:
    for number, (w, right) in enumerate(zip(parameters, oracle.w, strict=True)):
        found = w.detach().double()
        apart = ~((found - right).abs() <= tolerance * (1 + right.abs()))  # a NaN is apart, too
        if apart.any():
            at = int(apart.flatten().nonzero()[0])
            expect(False, f"{call}: parameter {number} holds {found.flatten()[at]:.10g} and should hold "
                   f"{right.flatten()[at]:.10g}{reason}")  # fmt: skip


def expect_steps(
    answer: Any, generator: torch.Generator, dtype: torch.dtype, tolerance: float, options: dict[str, Any]
) -> None:
    parameters = draw(generator, dtype)
    name = f"AdamW({', '.join(['parameters', *(f'{option}={value}' for option, value in options.items())])})"
    optimizer, oracle = make(answer, parameters, options, name), Oracle(parameters, **(USUAL | options))
    for number in range(8):
        call = f"{name}, {str(dtype).removeprefix('torch.')}, step {number + 1}"
        gradients = draw_gradients(generator, parameters, number)
        if number == 6:
            optimizer.lr = oracle.lr = oracle.lr / 10
        step(optimizer, parameters, gradients, call)
        oracle.step(gradients)
        reasons = {
            2: ", in the step with a gradient of 0",
            3: "; parameter 1 had no gradient in the two steps before",
            6: ", after opt.lr was divided by 10",
        }
        expect_same(parameters, oracle, call, tolerance, reasons.get(number, ""))


def expect_tiny_gradients(answer: Any) -> None:
    parameters = [torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)]
    gradients = [torch.tensor([1e-8, 1e-7, 0.0], dtype=torch.float64)]
    options = {"lr": 0.1, "weight_decay": 0.0}
    optimizer, oracle = make(answer, parameters, options, "AdamW"), Oracle(parameters, **(USUAL | options))
    for number in range(3):
        call = f"AdamW with gradients as small as eps, step {number + 1}"
        step(optimizer, parameters, gradients, call)
        oracle.step(gradients)
        expect_same(parameters, oracle, call, 1e-9, ": add eps to the corrected root")


def expect_goes_on(answer: Any, generator: torch.Generator) -> None:
    parameters = draw(generator, torch.float64)
    optimizer, oracle = make(answer, parameters, OTHER, "AdamW"), Oracle(parameters, **OTHER)
    for number in range(5):
        gradients = draw_gradients(generator, parameters, number)
        step(optimizer, parameters, gradients, "AdamW")
        oracle.step(gradients)
    copies = [w.detach().clone().requires_grad_() for w in parameters]
    state = optimizer.state_dict()
    expect(isinstance(state, dict), f"state_dict() returned {shown(state)}; return a dict")
    kept = copy.deepcopy(state)
    first_oracle = copy.deepcopy(oracle)
    step(optimizer, parameters, gradients, "AdamW")
    again = make(answer, copies, OTHER, "AdamW")
    again.load_state_dict(state)
    for number in range(2):
        gradients = draw_gradients(generator, parameters, number)
        step(again, copies, gradients, "a step after load_state_dict()")
        first_oracle.step(gradients)
        reason = "; state_dict() was taken after step 5, and a step was made with the first AdamW since"
        expect_same(copies, first_oracle, f"step {number + 1} after load_state_dict()", 1e-11, reason)
    expect_equal(
        state, kept, "steps after load_state_dict() changed what was loaded; a second run could not start from it"
    )


def expect_equal(found: Any, wanted: Any, message: str) -> None:
    """Of nested dicts, lists and tuples of numbers and tensors."""
    if isinstance(wanted, dict):
        expect(isinstance(found, dict) and found.keys() == wanted.keys(), message)
        for key in wanted:
            expect_equal(found[key], wanted[key], message)
    elif isinstance(wanted, list | tuple):
        expect(isinstance(found, list | tuple) and len(found) == len(wanted), message)
        for one, other in zip(found, wanted, strict=True):
            expect_equal(one, other, message)
    elif isinstance(wanted, torch.Tensor):
        expect(isinstance(found, torch.Tensor) and torch.equal(found, wanted), message)
    elif isinstance(wanted, bool | int | float | str):
        expect(found == wanted, message)


class Base:
    """Right; what the subclasses change is the mistake."""

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        self.parameters = list(parameters)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.state: list[dict[str, Any]] = [
            {"t": 0, "m": torch.zeros_like(w), "v": torch.zeros_like(w)} for w in self.parameters
        ]
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        for w, state in zip(self.parameters, self.state, strict=True):
            if w.grad is not None:
                state["t"] += 1
                self.move(w, w.grad, state)

    def move(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, Any]) -> None:
        w.mul_(1 - self.lr * self.weight_decay)
        self.adapt(w, g, state, state["t"])

    def adapt(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, Any], t: int) -> None:
        beta1, beta2 = self.betas
        state["m"] = beta1 * state["m"] + (1 - beta1) * g
        state["v"] = beta2 * state["v"] + (1 - beta2) * g * g
        w.sub_(self.lr * state["m"] / (1 - beta1**t) / self.denominator(state["v"], 1 - beta2**t))

    def denominator(self, v: torch.Tensor, correction: float) -> Any:
        return (v / correction).sqrt() + self.eps

    def state_dict(self) -> dict[str, Any]:
        return {"state": copy.deepcopy(self.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = copy.deepcopy(state["state"])


class DecaysTheGradient(Base):
    def move(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, Any]) -> None:
        self.adapt(w, g + self.weight_decay * w, state, state["t"])


class CountsForAll(Base):
    def move(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, Any]) -> None:
        w.mul_(1 - self.lr * self.weight_decay)
        self.adapt(w, g, state, self.steps)


class PutsEpsInTheRoot(Base):
    def denominator(self, v: torch.Tensor, correction: float) -> Any:
        return (v / correction + self.eps).sqrt()


class AddsEpsBeforeCorrecting(Base):
    def denominator(self, v: torch.Tensor, correction: float) -> Any:
        return (v.sqrt() + self.eps) / correction**0.5


class TakesNoneForZero(Base):
    @torch.no_grad()
    def step(self) -> None:
        for w, state in zip(self.parameters, self.state, strict=True):
            state["t"] += 1
            self.move(w, torch.zeros_like(w) if w.grad is None else w.grad, state)


class KeepsTheGenerator(Base):
    def __init__(self, parameters: Iterable[torch.Tensor], **options: Any) -> None:
        super().__init__(parameters, **options)
        self.once: Any = zip(self.parameters, self.state, strict=True)

    @torch.no_grad()
    def step(self) -> None:
        for w, state in self.once:
            if w.grad is not None:
                state["t"] += 1
                self.move(w, w.grad, state)


class SavesWithoutTheCount(Base):
    def state_dict(self) -> dict[str, Any]:
        return {"state": copy.deepcopy([{"t": 0, "m": one["m"], "v": one["v"]} for one in self.state])}


class SavesReferences(Base):
    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}


class LoadsReferences(Base):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state["state"]


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "adds the decay to the gradient": ({"AdamW": DecaysTheGradient}, "step 1: parameter 0 holds"),
    "counts the steps for all parameters": ({"AdamW": CountsForAll}, "had no gradient in the two steps before"),
    "puts eps into the root": ({"AdamW": PutsEpsInTheRoot}, "as small as eps, step 1"),
    "adds eps before correcting": ({"AdamW": AddsEpsBeforeCorrecting}, "add eps to the corrected root"),
    "takes no gradient for 0": ({"AdamW": TakesNoneForZero}, "step 1: parameter 3"),
    "walks through a generator twice": ({"AdamW": KeepsTheGenerator}, "step 2: parameter 0"),
    "saves without the count": ({"AdamW": SavesWithoutTheCount}, "step 1 after load_state_dict()"),
    "saves references": ({"AdamW": SavesReferences}, "a step was made with the first AdamW since"),
    "loads references": ({"AdamW": LoadsReferences}, "a second run could not start from it"),
}
