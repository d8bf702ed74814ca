"""What does backward() really do, what does a gradient cost, and how does it go wrong?

A gradient says how much the loss changes when a weight changes a little. You will see one as a slope, work one out by
hand, and then watch an engine of about a hundred lines (gradients/engine.py) agree with PyTorch's on a thousand random
expressions. After that the real thing: the graph drawn, what it costs in operations and bytes, how to record nothing,
the errors that everybody meets with their cures, and gradients of gradients.

    python src/autograd_basics.py            about 20 seconds
    python src/autograd_basics.py --quick    the same path with tiny sizes, a few seconds
"""

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_00_tensor_gpu_basics.src.gradients.accumulation import show_accumulation
from pytorch_00_tensor_gpu_basics.src.gradients.cost import show_cost
from pytorch_00_tensor_gpu_basics.src.gradients.graphs import show_graphs
from pytorch_00_tensor_gpu_basics.src.gradients.higher_order import show_higher_order
from pytorch_00_tensor_gpu_basics.src.gradients.in_place import show_in_place
from pytorch_00_tensor_gpu_basics.src.gradients.own_engine import show_own_engine
from pytorch_00_tensor_gpu_basics.src.gradients.own_functions import show_own_functions
from pytorch_00_tensor_gpu_basics.src.gradients.recording import show_recording
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate
from shared.units import significant

import torch

Function = Callable[[torch.Tensor], torch.Tensor]


# A gradient is a slope

STEP_SIZES = [10.0 ** (-exponent / 2) for exponent in range(25)]  # 1 to 10^-12, two for each power of ten


def wave(x: torch.Tensor) -> torch.Tensor:
    """Its slope is cos(x) exp(sin(x)); nowhere in [0.5, 1.5] is any derivative up to the third close to 0."""
    return torch.exp(torch.sin(x))


def forward_difference(function: Function, x: torch.Tensor, h: float) -> torch.Tensor:
    return (function(x + h) - function(x)) / h


def central_difference(function: Function, x: torch.Tensor, h: float) -> torch.Tensor:
    return (function(x + h) - function(x - h)) / (2 * h)


def mean_error(slope: torch.Tensor, x: torch.Tensor) -> float:
    """How far `slope` is from that of wave() at `x`, relative to it, in the mean over all points."""
    exact = (torch.cos(x.double()) * wave(x.double())).detach()
    return ((slope.double() - exact).abs().mean() / exact.abs().mean()).item()


def slope_by_backward(x: torch.Tensor) -> torch.Tensor:
    """The slope of wave() at each of the points, which do not influence one another."""
    x = x.clone().requires_grad_()
    wave(x).sum().backward()
    assert x.grad is not None
    return x.grad


def show_slope(lesson: Lesson) -> None:
    lesson.section(
        "A gradient is a slope",
        "Change x by a small step h, see how much f(x) changes, divide by h: that is the slope, and with a gradient you "
        "know in which direction to change a weight. How small should h be? Here is the error of such finite "
        "differences for f(x) = exp(sin(x)), in the mean over 1,000 points between 0.5 and 1.5. Forward is "
        "(f(x + h) - f(x)) / h, central (f(x + h) - f(x - h)) / 2h.",
    )
    points = torch.linspace(0.5, 1.5, 1000, dtype=torch.float64)
    ways = {
        "forward, float64": (forward_difference, points),
        "central, float64": (central_difference, points),
        "central, float32": (central_difference, points.float()),
    }
    errors = {way: [mean_error(difference(wave, x, h), x) for h in STEP_SIZES] for way, (difference, x) in ways.items()}
    lesson.table(
        [
            {"step h": f"{h:.0e}", **{way: f"{errors[way][i]:.1e}" for way in ways}}
            for i, h in enumerate(STEP_SIZES)
            if i % 2 == 0
        ]
    )
    backward = {dtype: mean_error(slope_by_backward(points.to(dtype)), points.to(dtype))
                for dtype in (torch.float64, torch.float32)}  # fmt: skip
    central, best = (
        errors["central, float64"],
        {way: STEP_SIZES[error.index(min(error))] for way, error in errors.items()},
    )
    tenth, hundredth = (STEP_SIZES.index(h) for h in (0.1, 0.01))
    shrinks = central[tenth] / central[hundredth]
    lesson.check("a ten times smaller step: central error / 100", 80 < shrinks < 120,
                 f"{shrinks:.1f} from h = 0.1 to 0.01: truncation, h²")  # fmt: skip
    grows = central[-1] / central[-5]
    lesson.check("but too small a step makes it larger again", 30 < grows < 300,
                 f"{grows:.0f}x from h = 1e-10 to 1e-12: rounding, eps / h")  # fmt: skip
    for way, power in (("central, float64", 3), ("central, float32", 3), ("forward, float64", 2)):
        guess = torch.finfo(ways[way][1].dtype).eps ** (1 / power)
        lesson.check(f"{way}: the best h is about eps^(1/{power})", guess / 10 < best[way] < guess * 10,
                     f"best {best[way]:.0e}, eps^(1/{power}) is {guess:.0e}")  # fmt: skip
    lesson.check("backward() is right to the last digits in both formats",
                 all(error < 10 * torch.finfo(dtype).eps for dtype, error in backward.items()),
                 "off by " + " and by ".join(significant(error, 2) for error in backward.values()))  # fmt: skip
    lesson.figure("slope_error", lambda axis: draw_errors(axis, errors, backward))
    lesson.shows(
        f"a difference trades truncation against rounding, and with the best step still loses digits: "
        f"{min(central):.0e} in float64, {min(errors['central, float32']):.0e} in float32. backward() has no step: it "
        f"applies the rules of calculus and is {significant(backward[torch.float64], 2)} off the formula "
        "cos(x) exp(sin(x)). Differences remain the way to test a gradient, in float64. The picture slope_error.png has "
        "both branches."
    )


def draw_errors(axis: Any, errors: Mapping[str, Sequence[float]], backward: Mapping[torch.dtype, float]) -> None:
    lowest = 1e-17  # stands for an error of 0, which a logarithmic axis does not have
    for way, of_way in errors.items():
        axis.plot(STEP_SIZES, of_way, label=way)
    for dtype, error in backward.items():
        axis.axhline(max(error, lowest), color="black", linewidth=1, linestyle="--", marker="")
        text = f"{str(dtype).removeprefix('torch.')} backward(): {significant(error, 2)}"
        offset = (0, 4) if error < lowest else (0, -11)
        axis.annotate(text, (1, max(error, lowest)), offset, textcoords="offset points", fontsize=9, ha="right")
    axis.annotate("rounding: eps / h", (6e-12, 8e-7), rotation=-21, fontsize=9, ha="center", va="center")
    axis.annotate("truncation: h²", (8e-3, 1.2e-6), rotation=38, fontsize=9, ha="center", va="center")
    axis.set(xscale="log", yscale="log", xlabel="step h", ylabel="relative error of the slope", ylim=(lowest, 10),
             title="Finite differences: every step is wrong, one is best")  # fmt: skip
    axis.legend(loc="lower left", bbox_to_anchor=(0, 0.06), fontsize=9)


# By hand


def draw_chain(names: Sequence[str], operations: Sequence[str], values: Sequence[float], slopes: Sequence[float],
               gradients: Sequence[float]) -> str:  # fmt: skip
    """A chain of operations: to the right the values, to the left the gradients; at most 56 characters wide."""

    def row(label: str, nodes: Sequence[str], links: Sequence[str]) -> str:
        cells = [node.center(6) + link.center(4) for node, link in zip(nodes, [*links, ""], strict=True)]
        return f"{label:<9}{''.join(cells)}".rstrip()

    blank = [""] * len(names)
    return "\n".join(
        [
            row("", blank, operations),
            row("", names, ["──→"] * len(operations)),
            row("forward", [f"{value:g}" for value in values], [""] * len(operations)),
            "",
            row("", blank, [f"x {slope:g}" for slope in slopes]),
            row("backward", [f"{gradient:g}" for gradient in gradients], ["◀──"] * len(slopes)),
        ]
    )


def show_backpropagation(lesson: Lesson) -> None:
    lesson.section(
        "Backpropagation by hand",
        "The smallest training step there is: a prediction p = w x + b, its error e = p - y, the loss e². Each step "
        "alone has a slope that you know from school. The slope of the whole is their product (the chain rule), and it "
        "is cheapest to multiply from the loss backwards, because every product found on the way is needed again.",
    )
    w, x, b, y = (torch.tensor(value, requires_grad=True) for value in (1.5, 3.0, -1.0, 2.0))
    m = w * x
    p = m + b
    e = p - y
    loss = e**2
    for node in (m, p, e, loss):
        node.retain_grad()  # autograd drops the gradients on the way unless asked
    loss.backward()
    slopes = [x.item(), 1.0, 1.0, 2 * e.item()]  # of m in w, p in m, e in p, loss in e
    gradients = [math.prod(slopes[i:]) for i in range(5)]
    values = [node.item() for node in (w, m, p, e, loss)]
    operations = [f"x {x.item():g}", f"- {-b.item():g}", f"- {y.item():g}", "²"]
    lesson.drawing(draw_chain(["w", "m", "p", "e", "loss"], operations, values, slopes, gradients))
    to_m, to_e = slopes[1:], slopes[3:]
    factors = {
        "e": (e, to_e),
        "p": (p, slopes[2:]),
        "m = w x": (m, to_m),
        "b": (b, [1.0, *slopes[2:]]),
        "y": (y, [-1.0, *to_e]),
        "w": (w, [x.item(), *to_m]),
        "x": (x, [w.item(), *to_m]),
    }
    found = {name: node.grad.item() for name, (node, _) in factors.items() if node.grad is not None}
    lesson.table(
        [
            {"of": name, "value": f"{node.item():g}", "local slopes down to the loss": " x ".join(f"{f:g}" for f in chain),
             "product": f"{math.prod(chain):g}", ".grad by autograd": f"{found[name]:g}"}
            for name, (node, chain) in factors.items()
        ]
    )  # fmt: skip
    right = [name for name, (_, chain) in factors.items() if found.get(name) == math.prod(chain)]
    lesson.check("every product is the .grad that autograd finds", len(right) == len(factors),
                 f"{len(right)} of {len(factors)}, to the last bit")  # fmt: skip
    lesson.check("the slope of a product in w is x, and in x it is w",
                 found["w"] == found["m = w x"] * x.item() and found["x"] == found["m = w x"] * w.item(),
                 f"{found['w']:g} and {found['x']:g}")  # fmt: skip
    change = 0.001
    foreseen, moved = gradients[0] * change, ((w.item() + change) * x.item() + b.item() - y.item()) ** 2 - loss.item()
    lesson.check("w + 0.001 changes the loss by about 0.001 x .grad", abs(moved / foreseen - 1) < 0.01,
                 f"foreseen {foreseen:.4f}, really {moved:.4f}")  # fmt: skip
    strength = 0.1
    twice = torch.tensor(w.item(), requires_grad=True)
    ((twice * x.item() + b.item() - y.item()) ** 2 + strength * twice**2).backward()
    paths = gradients[0], 2 * strength * w.item()
    assert twice.grad is not None
    lesson.check("where w is used twice, the two paths add", math.isclose(twice.grad.item(), sum(paths), rel_tol=1e-6),
                 f"loss + 0.1 w²: {paths[0]:g} + {paths[1]:g} = {twice.grad.item():g}")  # fmt: skip
    lesson.shows(
        f"one pass to the right and one to the left gave {len(factors)} gradients. Each step needed its own slope, a few "
        "numbers from the forward pass (here x, w and e), and what came from its right. A step needs to know nothing "
        "of the rest, and that is why a program can do it."
    )


# Leaves

TENSORS = {
    "torch.ones(2)": "data",
    "w": "a weight",
    "w * 2": "a result",
    "w.to(torch.float16)": "a result, as in a move",
    "w.detach()": "the values, no past",
    "torch.nn.Parameter(w * 2)": "a new weight",
    "(w * 2).detach().requires_grad_()": "the same, by hand",
}


def receives_gradient(x: torch.Tensor) -> str:
    """Whether backward() fills `x.grad`: tried, not looked up."""
    with contextlib.suppress(RuntimeError):  # nothing in the graph requires a gradient
        (x * x).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reading .grad of a tensor that is no leaf; the lesson shows the warning below
        return "no" if x.grad is None else "yes"


def initialise_as_a_product() -> torch.Tensor:
    """The mistake: the weight that learns is the one before the scaling, and nobody has kept it."""
    return torch.randn(3, requires_grad=True) * 0.01


def initialise_then_require() -> torch.Tensor:
    """Right: compute the values first, then ask for gradients."""
    return (torch.randn(3) * 0.01).requires_grad_()


def call_backward_twice() -> None:
    """The mistake: what the forward pass had kept is freed by the first backward()."""
    w = torch.ones(2, requires_grad=True)
    loss = (w**2).sum()
    loss.backward()
    loss.backward()


MISTAKES = {  # what is written, what the answer means, the cure; h = w * 2
    "h.grad": ("Only a leaf keeps its gradient: what you get is None.", "h.retain_grad()"),
    "torch.optim.SGD([h], lr=0.1)": ("To move a result would not move w.", "torch.optim.SGD([w], lr=0.1)"),
    "torch.tensor([1, 2], requires_grad=True)": (
        "An integer cannot change by a little.",
        "torch.tensor([1.0, 2.0], requires_grad=True)",
    ),
    "h.backward()": (
        "Two numbers have two gradients. Sum them, or pass the weight of each.",
        "h.backward(torch.tensor([1.0, 1.0]))",
    ),
    "torch.ones(2).sum().backward()": (
        "Nothing that it was made from learns. Look for a detach(), a no_grad() or an .item() on the way.",
        "w.sum().backward()",
    ),
    "h.requires_grad_(False)": ("A result learns if its inputs do; to cut it off, detach it.", "h.detach()"),
}


def show_leaves(lesson: Lesson) -> None:
    lesson.section(
        "Leaves: who gets a .grad",
        "backward() writes a gradient into leaves that require one: tensors that you made, and that no operation "
        "computed. Everything between them and the loss only passes its gradient on. An operation hides in more places "
        "than one expects: the scaling of initial weights, a change of type, a move to the GPU.",
    )
    made = {call: evaluate(call, w=torch.ones(2, requires_grad=True)) for call in TENSORS}
    facts = [
        {
            "tensor": call,
            "is_leaf": "yes" if x.is_leaf else "no",
            "grad_fn": x.grad_fn.name().removesuffix("Backward0") if x.grad_fn else "None",
            "gets .grad": receives_gradient(x),
            "what it is": TENSORS[call],
        }
        for call, x in made.items()
    ]
    lesson.table(facts)
    gets = [fact["gets .grad"] == "yes" for fact in facts]
    lesson.check("backward() fills .grad where is_leaf and requires_grad",
                 gets == [x.is_leaf and x.requires_grad for x in made.values()],
                 f"{sum(gets)} of {len(gets)} tensors")  # fmt: skip
    lesson.check("a leaf has no grad_fn, and a result has one",
                 all((x.grad_fn is None) == x.is_leaf for x in made.values()), f"for all {len(made)}")  # fmt: skip
    w = made["w"]
    lesson.check(".to() that changes nothing returns the leaf itself", w.to("cpu") is w,
                 "so this mistake sleeps on a CPU and wakes on a GPU")  # fmt: skip
    stuck, free = initialise_as_a_product(), initialise_then_require()
    for weight in (stuck, free):
        ((weight - 1) ** 2).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lost = stuck.grad
    lesson.check("randn(3, requires_grad=True) * 0.01 will never learn", lost is None and free.grad is not None,
                 "its .grad is None; ask for gradients after the product")  # fmt: skip
    lesson.text("What PyTorch answers to the usual mistakes, for w = torch.ones(2, requires_grad=True) and h = w * 2:")
    w = torch.ones(2, requires_grad=True)
    answers = {mistake: complaint(lambda: evaluate(mistake, w=w, h=w * 2)) for mistake in MISTAKES}
    for mistake, (meaning, cure) in MISTAKES.items():
        lesson.items({"you write": mistake, "it says": answers[mistake], "it means": meaning, "the cure": cure})
    quiet = [mistake for mistake, (_, cure) in MISTAKES.items() if not complaint(lambda: evaluate(cure, w=w, h=w * 2))]
    lesson.check("every mistake is answered, every cure is quiet", all(answers.values()) and len(quiet) == len(MISTAKES),
                 f"{sum(map(bool, answers.values()))} answers, {len(quiet)} cures")  # fmt: skip
    lesson.text("backward() a second time through the same graph:")
    twice = complaint(call_backward_twice)
    lesson.items({"it says": twice, "it means": "The first call frees what the forward pass had kept, to save memory.",
                  "the cure": "one backward() for each forward pass; backward(retain_graph=True) where you must"})  # fmt: skip
    lesson.check("a second backward() is refused", "second time" in twice, "saved values are freed by the first")
    w = torch.ones(2, requires_grad=True)
    total = (w + 1).sum()
    total.backward()
    lesson.check("unless nothing was saved: a sum can be walked twice", complaint(total.backward) == "",
                 f"and the gradients add: {grad_of(w).tolist()}")  # fmt: skip
    lesson.text(
        "The argument of backward() is the weight v of each number in y. What comes back is v @ J, where J is the matrix "
        "of all slopes (the Jacobian), and J itself is never made:"
    )
    show_vector_jacobian(lesson)
    lesson.shows(
        f"{sum(gets)} of {len(gets)} tensors in the table learn. When a weight does not move, print its is_leaf and its "
        ".grad after backward(): no leaf means that an operation came between, None on a leaf that the loss does not "
        "depend on it."
    )


def grad_of(x: torch.Tensor) -> torch.Tensor:
    """The gradient that must be there by now."""
    assert x.grad is not None
    return x.grad


def show_vector_jacobian(lesson: Lesson) -> None:
    a, v = torch.randn(3, 2, device=lesson.device), torch.randn(3, device=lesson.device)
    x = torch.randn(2, device=lesson.device, requires_grad=True)
    (a @ x).backward(v)
    off = (grad_of(x) - v @ a).abs().max().item()
    lesson.check("y.backward(v) gives v @ J, J the slopes of y in x", off < 1e-5,
                 f"y = A x has J = A; {significant(off) if off else 'no'} difference")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    title = "Gradients: what backward() does, what it costs, and how it goes wrong."
    with Lesson(__file__, argv, title=title) as lesson:
        show_slope(lesson)
        show_backpropagation(lesson)
        show_own_engine(lesson)
        show_cost(lesson)
        show_leaves(lesson)
        show_graphs(lesson)
        show_recording(lesson)
        show_in_place(lesson)
        show_accumulation(lesson)
        show_own_functions(lesson)
        show_higher_order(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
