"""An operation with a backward of your own: a softplus that does not overflow, tested, and broken on purpose."""

from collections.abc import Callable
from typing import Any

from shared.lesson import Lesson
from shared.snippets import complaint

import numpy as np
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.function import once_differentiable

Function = Callable[[torch.Tensor], torch.Tensor]


def softplus_by_formula(x: torch.Tensor) -> torch.Tensor:
    """The mistake: log(1 + exp(x)) as it stands in the book. exp overflows long before its logarithm would."""
    return torch.log(1 + torch.exp(x))


class Softplus(torch.autograd.Function):
    """log(1 + exp(x)) for any x, with its derivative, the sigmoid.

    forward() computes, setup_context() keeps what backward() needs; separate, so that torch.func can use it too.
    """

    generate_vmap_rule = True  # forward and backward are made of PyTorch's operations, which vmap knows

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient * torch.sigmoid(x)


class ForgetsTheChainRule(Softplus):
    """The mistake: the slope alone, without the gradient that arrives. Right only where that is 1."""

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return torch.sigmoid(x)


class WrongSign(Softplus):
    """The mistake: sigmoid(-x) for sigmoid(x), which at 0 is the same."""

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient * torch.sigmoid(-x)


class LeavesPyTorch(Softplus):
    """The mistake: the slope comes from NumPy, so to a second derivative it is a constant, and nobody hears of it."""

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient * torch.from_numpy(1 / (1 + np.exp(-x.detach().numpy())))


class LeavesPyTorchAndSaysSo(LeavesPyTorch):
    """Right: once_differentiable turns the wrong second derivative into an error."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return LeavesPyTorch.backward(ctx, gradient)


class RoundStraightThrough(torch.autograd.Function):
    """Rounds, and passes the gradient on as if it had not: how weights of few bits are trained (Bengio et al. 2013)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """Nothing to keep."""

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def learn_a_rounded_weight(rounding: Function, steps: int, device: torch.device) -> float:
    """Gradient descent on (rounding(w) - 3)² from w = 0.2; returns what the rounded weight has become."""
    w = torch.tensor(0.2, device=device, requires_grad=True)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad((rounding(w) - 3) ** 2, w)
        with torch.no_grad():
            w -= 0.1 * gradient
    return rounding(w).item()


def slope_of(function: Function, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def differentiate_twice(function: Function, x: torch.Tensor) -> torch.Tensor:
    """The second derivative of function(x)², and with it that of `function`."""
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad((function(x) ** 2).sum(), x, create_graph=True)
    slope.sum().backward()
    assert x.grad is not None
    return x.grad


def show_own_functions(lesson: Lesson) -> None:
    lesson.section(
        "An operation with a backward of your own",
        "Autograd differentiates what you compose, step by step, and sometimes that is not what you want: the steps "
        "overflow though the result does not, or there is no slope where you need one. A torch.autograd.Function says "
        "what goes forward and what comes back. Here is softplus, log(1 + exp(x)), by the formula and by a Function of "
        "its own, in float32.",
    )
    x = torch.tensor([-200.0, -20.0, 0.0, 20.0, 100.0], device=lesson.device)
    values = softplus_by_formula(x), Softplus.apply(x)
    slopes = slope_of(softplus_by_formula, x), slope_of(Softplus.apply, x)
    exact = x.cpu().double()
    truth, true_slope = torch.logaddexp(exact, torch.zeros(())), torch.sigmoid(exact)
    lesson.table(
        [
            {"x": f"{x[i].item():g}", "formula": f"{values[0][i].item():.3g}", "Function": f"{values[1][i].item():.3g}",
             "softplus": f"{truth[i].item():.3g}", "slope, formula": f"{slopes[0][i].item():.3g}",
             "slope, Function": f"{slopes[1][i].item():.3g}", "sigmoid": f"{true_slope[i].item():.3g}"}
            for i in range(len(x))
        ]
    )  # fmt: skip
    lesson.check("by the formula the slope at 100 is nan", slopes[0][-1].isnan() and values[0][-1].isinf(),
                 "exp(100) is inf in float32, and inf / inf is nan")  # fmt: skip
    close = [torch.allclose(ours.cpu().double(), oracle, rtol=1e-5, atol=1e-30) for ours, oracle in
             ((values[1], truth), (slopes[1], true_slope))]  # fmt: skip
    lesson.check("the Function is right at all of them, value and slope", all(close), "to 5 digits, against float64")
    lesson.text(
        "Is the backward right? gradcheck moves every input a little, in float64, and compares. A test is worth what it "
        "catches, so here it also meets backwards that were broken on purpose:"
    )
    show_gradcheck(lesson)
    steps = 100
    learned = {name: learn_a_rounded_weight(rounding, steps, lesson.device)
               for name, rounding in {"round": torch.round, "passing": RoundStraightThrough.apply,
                                      "one line": lambda w: w + (w.round() - w).detach()}.items()}  # fmt: skip
    lesson.check("round() has slope 0, so a rounded weight cannot learn", learned["round"] == 0,
                 f"still {learned['round']:g} after {steps} steps towards 3")  # fmt: skip
    lesson.check("let the gradient pass as if unrounded, and it does", learned["passing"] == learned["one line"] == 3,
                 "w + (w.round() - w).detach() does the same in one line")  # fmt: skip
    lesson.shows(
        f"the formula lost its slope at {x[-1].item():g} and the Function did not. Write one when the steps of a formula "
        "overflow, keep too much, or have no useful slope. Test it with gradcheck in float64, at random points."
    )


def show_gradcheck(lesson: Lesson) -> None:
    points = torch.randn(4, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    tests = {
        "gradcheck Softplus": lambda: gradcheck(Softplus.apply, points),
        "gradcheck WrongSign": lambda: gradcheck(WrongSign.apply, points),
        "gradcheck WrongSign at 0": lambda: gradcheck(WrongSign.apply, zero),
        "gradcheck ForgetsTheChainRule": lambda: gradcheck(ForgetsTheChainRule.apply, points),
        "gradcheck Softplus in float32": lambda: gradcheck(Softplus.apply, points.detach().float().requires_grad_()),
        "gradgradcheck Softplus": lambda: gradgradcheck(Softplus.apply, points),
        "gradcheck LeavesPyTorch": lambda: gradcheck(LeavesPyTorch.apply, points),
        "gradgradcheck LeavesPyTorch": lambda: gradgradcheck(LeavesPyTorch.apply, points),
    }
    answers = {test: complaint(run).partition(" for output")[0] for test, run in tests.items()}
    lesson.table([{"test": test, "answer": answer or "passes"} for test, answer in answers.items()])
    passes = {test: not answer for test, answer in answers.items()}
    lesson.check("gradcheck passes the right backward", passes["gradcheck Softplus"], f"{len(points)} random points")
    lesson.check("and catches two that are broken",
                 not passes["gradcheck WrongSign"] and not passes["gradcheck ForgetsTheChainRule"],
                 "a wrong sign, a missing factor")  # fmt: skip
    lesson.check("but at 0 it misses the wrong sign: test random points", passes["gradcheck WrongSign at 0"],
                 "sigmoid(0) is sigmoid(-0)")  # fmt: skip
    lesson.check("in float32 it fails what is right", not passes["gradcheck Softplus in float32"],
                 "its step of 1e-6 drowns in rounding")  # fmt: skip
    lesson.check("a backward in PyTorch's operations has a gradient too", passes["gradgradcheck Softplus"],
                 "gradgradcheck, the second derivative")  # fmt: skip
    lesson.check("one that leaves for NumPy has a wrong one",
                 passes["gradcheck LeavesPyTorch"] and not passes["gradgradcheck LeavesPyTorch"],
                 "right once, wrong the second time")  # fmt: skip
    silent, said = (complaint(lambda: differentiate_twice(function, points.detach()))
                    for function in (LeavesPyTorch.apply, LeavesPyTorchAndSaysSo.apply))  # fmt: skip
    lesson.items({"with @once_differentiable": said})
    lesson.check("@once_differentiable makes that an error", silent == "" and "once_differentiable" in said,
                 "without it there is no word")  # fmt: skip
    batch = points.detach().repeat(3, 1)
    slopes = torch.func.vmap(torch.func.grad(lambda row: Softplus.apply(row).sum()))(batch)
    lesson.check("in the form with setup_context it works in torch.func", torch.allclose(slopes, torch.sigmoid(batch)),
                 f"grad and vmap: {tuple(slopes.shape)}")  # fmt: skip
