"""Gradients of gradients, and torch.func, where taking a gradient is a function of a function."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

from pytorch_00_tensor_gpu_basics.src.gradients.cost import count_flops
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.timing import compare, ratio
from shared.units import bytes_text, seconds_text, significant

import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

CPU = torch.device("cpu")
Function = Callable[[torch.Tensor], torch.Tensor]


def show_higher_order(lesson: Lesson) -> None:
    show_gradients_of_gradients(lesson)
    show_functional(lesson)


@cache
def load_forward_mode() -> None:
    """PyTorch loads its forward mode at the first use, through a function of its own that it calls deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


# Gradients of gradients


def derivatives(function: Function, x: torch.Tensor, highest: int) -> list[torch.Tensor]:
    """The function itself and its derivatives, the first to the `highest`, at each of the points `x`."""
    x = x.detach().requires_grad_()
    results = [function(x)]
    for _ in range(highest):
        # create_graph: the gradient is computed by recorded operations, so it has a gradient in turn
        results.append(torch.autograd.grad(results[-1].sum(), x, create_graph=True)[0])
    return [result.detach() for result in results]


def differentiate_without_create_graph(x: torch.Tensor) -> torch.Tensor:
    """The mistake: a gradient is a plain result unless you ask for its graph."""
    (slope,) = torch.autograd.grad((x**3).sum(), x)
    return torch.autograd.grad(slope.sum(), x)[0]


def tanh_derivatives(x: torch.Tensor) -> list[torch.Tensor]:
    """tanh and its first three derivatives in closed form."""
    t = torch.tanh(x)
    slope = 1 - t**2
    return [t, slope, -2 * t * slope, (6 * t**2 - 2) * slope]


def hessian_vector_product(function: Function, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """H v without H: the gradient of (gradient · v), since v does not depend on x (Pearlmutter 1994)."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(function(x), x, create_graph=True)
    return torch.autograd.grad(slope @ v, x)[0]


def curved(x: torch.Tensor) -> torch.Tensor:
    """A number that depends on every pair of neighbours in `x`, so its Hessian is full of structure and has off-diagonals."""
    return (x.sin() * x.roll(1) ** 2).sum() + x.prod() / x.shape[0]


def show_gradients_of_gradients(lesson: Lesson) -> None:
    lesson.section(
        "Gradients of gradients",
        "A gradient is computed by operations too, so it can be recorded and differentiated again: ask with "
        "create_graph=True. Second derivatives are curvature; optimizers that look ahead, penalties on gradients and "
        "physics-informed networks use them. Here tanh and its derivatives against their formulas, in float64.",
    )
    x = torch.linspace(-3, 3, 121, dtype=torch.float64)
    found, exact = derivatives(torch.tanh, x, 3), tanh_derivatives(x)
    names = ("tanh", "first derivative", "second", "third")
    off = [(a - b).abs().max().item() for a, b in zip(found, exact, strict=True)]
    at = int((x - 1).abs().argmin())
    lesson.table(
        [{"of tanh": name, "at x = 1": a[at].item(), "formula": b[at].item(), "largest deviation": significant(apart, 2)}
         for name, a, b, apart in zip(names, found, exact, off, strict=True)]
    )  # fmt: skip
    lesson.check(
        "three derivatives in a row equal their formulas", max(off) < 1e-12, f"at most {significant(max(off), 2)} off"
    )
    lesson.figure("derivatives", lambda axis: draw_derivatives(axis, x, found, names))
    refusal = complaint(lambda: differentiate_without_create_graph(torch.ones(2, requires_grad=True)))
    lesson.items({"without create_graph": refusal})
    lesson.check(
        "without create_graph there is no second gradient", "does not require grad" in refusal, "the first has no graph"
    )
    lesson.text(
        "For n weights the second derivatives are a matrix of n x n numbers, the Hessian H, and nobody can store that. "
        "But H v, the change of the gradient in one direction v, costs about as much as two gradients:"
    )
    n = 8
    point, v = torch.rand(n, dtype=torch.float64) + 0.5, torch.randn(n, dtype=torch.float64)
    product = hessian_vector_product(curved, point, v)
    load_forward_mode()
    full = hessian(curved)(point)
    apart = ((product - full @ v).abs().max() / full.abs().max()).item()
    lesson.check(
        "H v without H equals the whole matrix times v",
        apart < 1e-10,
        f"{n} x {n} numbers, {significant(apart, 2)} off",
    )
    lesson.check(
        "a Hessian is symmetric", torch.allclose(full, full.mT), f"largest entry {full.abs().max().item():.3g}"
    )
    large = lesson.pick(full=1_000_000, quick=10_000)
    weights, direction = torch.randn(large, device=lesson.device), torch.randn(large, device=lesson.device)
    curvature = hessian_vector_product(lambda w: (w**4).sum() / 12, weights, direction)  # H is diagonal with w² on it
    lesson.check(f"and it works for {large:,} weights", torch.allclose(curvature, weights**2 * direction, rtol=1e-4, atol=1e-5),
                 f"H itself would take {bytes_text(4 * large**2)}")  # fmt: skip
    lesson.shows(
        f"derivative after derivative was right to {significant(max(off), 2)}. Each adds a graph on top of the last, so "
        "memory grows with the order; stop recording as soon as you can. Where there are many weights, work with H v and "
        "never with H."
    )


def draw_derivatives(axis: Any, x: torch.Tensor, found: list[torch.Tensor], names: tuple[str, ...]) -> None:
    for name, values in zip(names, found, strict=True):
        axis.plot(x, values, label=name, marker="", linewidth=2)
    axis.axhline(0, color="black", linewidth=0.8, linestyle="-")
    axis.set(xlabel="x", ylabel="value", title="tanh and what backward() makes of it, three times")
    axis.legend()


# torch.func


def loss_of_one(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared error of one sample; w (features,), x (features,), y a number."""
    return (torch.tanh(x @ w) - y) ** 2


def gradients_by_loop(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """One backward() for each sample: (samples, features)."""
    w = w.detach().requires_grad_()
    losses = (loss_of_one(w, one_x, one_y) for one_x, one_y in zip(x, y, strict=True))
    return torch.stack([torch.autograd.grad(loss, w)[0] for loss in losses])


per_sample_gradients = vmap(grad(loss_of_one), in_dims=(None, 0, 0))  # the same w, each its own row of x and y


def central_jacobian(function: Function, x: torch.Tensor, h: float = 1e-6) -> torch.Tensor:
    """Slopes of all outputs in all inputs, (outputs, inputs), one column from two calls."""
    columns = [(function(x + h * step) - function(x - h * step)) / (2 * h) for step in torch.eye(len(x), dtype=x.dtype)]
    return torch.stack(columns, dim=1)


def jacobian_by_rows(function: Function, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Reverse mode: each backward gives one row. The matrix and the number of passes."""
    output, pull = vjp(function, x)  # type: ignore[misc]  # three values where has_aux=True
    rows = [pull(row)[0] for row in torch.eye(len(output), dtype=x.dtype, device=x.device)]
    return torch.stack(rows), len(rows)


def jacobian_by_columns(function: Function, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Forward mode: each pass carries one direction along with the values and gives one column."""
    load_forward_mode()
    columns = [jvp(function, (x,), (step,))[1] for step in torch.eye(len(x), dtype=x.dtype, device=x.device)]
    return torch.stack(columns, dim=1), len(columns)


def two_layers(inputs: int, outputs: int, hidden: int = 64) -> Function:
    """A function from (inputs,) to (outputs,), in float64 on the CPU."""
    first = torch.randn(hidden, inputs, dtype=torch.float64) / inputs**0.5
    second = torch.randn(outputs, hidden, dtype=torch.float64) / hidden**0.5
    return lambda x: (second @ torch.tanh(first @ x.unsqueeze(1))).squeeze(1)


def show_functional(lesson: Lesson) -> None:
    lesson.section(
        "torch.func: a gradient is a function of a function",
        "grad(f) is a function that returns the gradient of f; vmap(f) is f for a whole batch; both can be applied to "
        "what the other made. No leaves, no .grad, no zero_grad: what comes out depends on what goes in. Use it where "
        "backward() is awkward: a gradient for each sample, Jacobians, Hessians.",
    )
    features, samples = 20, lesson.pick(full=256, quick=32)
    w, x = torch.randn(features, device=lesson.device) / 4, torch.randn(samples, features, device=lesson.device)
    y = torch.randn(samples, device=lesson.device)
    leaf = w.clone().requires_grad_()
    loss_of_one(leaf, x[0], y[0]).backward()
    assert leaf.grad is not None
    alone = grad(loss_of_one)(w, x[0], y[0])
    lesson.check(
        "grad(f)(w) equals backward()", torch.allclose(alone, leaf.grad, atol=1e-6), "and w has no .grad to clear"
    )
    each, looped = per_sample_gradients(w, x, y), gradients_by_loop(w, x, y)
    lesson.check("vmap(grad(f)) gives every sample its own gradient", torch.allclose(each, looped, atol=1e-5),
                 f"{tuple(each.shape)}, as a loop of {samples} backward()")  # fmt: skip
    batched = w.clone().requires_grad_()
    ((torch.tanh(x @ batched) - y) ** 2).mean().backward()
    assert batched.grad is not None
    lesson.check("their mean is the gradient of the batch", torch.allclose(each.mean(0), batched.grad, atol=1e-5),
                 "backward() gives only the mean")  # fmt: skip
    timings = compare({"loop": lambda: gradients_by_loop(w, x, y), "vmap": lambda: per_sample_gradients(w, x, y)},
                      lesson.device, rounds=5, budget_s=lesson.pick(full=0.5, quick=0.1))  # fmt: skip
    for way, timing in timings.items():
        lesson.record("gradients of each sample", timing.median_s * 1e3, "ms", timing, way=way, samples=samples)
    show_jacobians(lesson)
    faster = ratio(timings["loop"], timings["vmap"]).median
    lesson.shows(
        f"{samples} gradients took {seconds_text(timings['loop'].median_s)} in a loop and "
        f"{seconds_text(timings['vmap'].median_s)} with vmap, {faster:.0f} times less: one operation for the batch "
        "instead of one for each sample. A loss is one output of millions of inputs, as wide as can be, and that is why "
        "training uses reverse mode."
    )


def show_jacobians(lesson: Lesson) -> None:
    lesson.text(
        "With several outputs the slopes are a matrix, the Jacobian: a row for each output, a column for each input. "
        "Reverse mode (jacrev) finds it row by row, forward mode (jacfwd), which carries slopes along from the inputs, "
        "column by column. Counted in passes, and in operations for a network with 64 hidden units:"
    )
    load_forward_mode()
    many, few = lesson.pick(full=200, quick=50), 2
    table, passes, flops = [], {}, {}
    for name, inputs, outputs in (("wide", many, few), ("tall", few, many)):
        function, point = two_layers(inputs, outputs), torch.randn(inputs, dtype=torch.float64)
        exact = central_jacobian(function, point)
        (rows, backwards), (columns, forwards) = jacobian_by_rows(function, point), jacobian_by_columns(function, point)
        found = {"rows": rows, "columns": columns, "jacrev": jacrev(function)(point), "jacfwd": jacfwd(function)(point),
                 "autograd.functional": torch.autograd.functional.jacobian(function, point)}  # fmt: skip
        off = max((matrix - exact).abs().max().item() for matrix in found.values())
        lesson.check(f"{name}: five ways to the Jacobian agree with differences", off < 1e-6,
                     f"{outputs} x {inputs}, at most {significant(off, 2)} off")  # fmt: skip
        passes[name] = backwards, forwards
        flops[name] = count_flops(lambda: jacrev(function)(point)), count_flops(lambda: jacfwd(function)(point))
        table.append({"Jacobian": f"{name}, {outputs} x {inputs}", "backward passes": backwards,
                      "MFLOP, jacrev": flops[name][0] / 1e6, "forward passes": forwards,
                      "MFLOP, jacfwd": flops[name][1] / 1e6,
                      "cheaper": "jacrev" if flops[name][0] < flops[name][1] else "jacfwd"})  # fmt: skip
    lesson.table(table)
    lesson.check("reverse mode: a pass for each output; forward: each input",
                 passes == {"wide": (few, many), "tall": (many, few)}, f"{few} and {many}, and the other way round")  # fmt: skip
    lesson.check("a wide Jacobian is for reverse mode, a tall one for forward",
                 flops["wide"][0] < flops["wide"][1] / 5 and flops["tall"][1] < flops["tall"][0] / 5,
                 " and ".join(f"{max(pair) / min(pair):.0f}" for pair in flops.values()) + " times fewer operations")  # fmt: skip
    point = torch.rand(6, dtype=torch.float64) + 0.5
    by_differences = central_jacobian(grad(curved), point)
    ways = hessian(curved)(point), torch.autograd.functional.hessian(curved, point)
    off = max((matrix - by_differences).abs().max().item() for matrix in ways)
    lesson.check(
        "hessian(f) equals differences of the gradient", off < 1e-6, f"6 x 6, at most {significant(off, 2)} off"
    )
