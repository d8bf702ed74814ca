"""Chapters of optimizer_comparison: a ravine, the same ravine turned, and a saddle."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from pytorch_02_training_optimization.src.optimizers.rules import SGD, Adam, Momentum, Nesterov, RMSprop, Rule
from shared.lesson import Lesson

import torch

Make = Callable[[Iterable[torch.Tensor]], Rule]
Gradient = Callable[[torch.Tensor], torch.Tensor]


def walk(make: Make, gradient: Gradient, start: torch.Tensor, steps: int) -> torch.Tensor:
    """The points (steps + 1, 2) that a rule passes."""
    w = start.clone()
    rule, points = make([w]), [start.clone()]
    for _ in range(steps):
        w.grad = gradient(w)
        rule.step()
        points.append(w.clone())
    return torch.stack(points)


def steps_until(make: Make, gradient: Gradient, start: torch.Tensor, arrived: Callable[[torch.Tensor], bool],
                limit: int) -> int | None:  # fmt: skip
    """How many steps a rule takes until `arrived(w)`; None where `limit` steps are not enough."""
    w = start.clone()
    rule = make([w])
    for step in range(1, limit + 1):
        w.grad = gradient(w)
        rule.step()
        if arrived(w):
            return step
    return None


# A ravine


def ravine(condition: float, degrees: float) -> torch.Tensor:
    """The matrix A of the loss wᵀAw / 2: curvature 1 along the ravine, `condition` across it, turned by `degrees`."""
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    return turn @ torch.diag(torch.tensor([1.0, condition], dtype=torch.float64)) @ turn.T


def start_in(degrees: float) -> torch.Tensor:
    """(1, 0.4) seen from a ravine that is turned by `degrees`."""
    angle = math.radians(degrees)
    x, y = 1.0, 0.4
    return torch.tensor([x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)],
                        dtype=torch.float64)  # fmt: skip


def best_gradient_descent(condition: float) -> Make:
    """The lr at which both directions shrink alike: by (κ - 1) / (κ + 1) a step."""
    return lambda w: SGD(w, 2 / (1 + condition))


def best_momentum(condition: float) -> Make:
    """Polyak's choice (1964): both directions shrink by (√κ - 1) / (√κ + 1) a step, in the long run."""
    root = math.sqrt(condition)
    return lambda w: Momentum(w, (2 / (1 + root)) ** 2, ((root - 1) / (root + 1)) ** 2)


ADAM_RATES = (0.125, 0.25, 0.5, 1.0)


def steps_down(make: Make, condition: float, degrees: float, limit: int = 4000) -> int | None:
    """Steps until a thousandth of the way to the minimum is left."""
    a, start = ravine(condition, degrees), start_in(degrees)
    return steps_until(make, lambda w: a @ w, start, lambda w: bool(w.norm() < 1e-3 * start.norm()), limit)


def fewest_steps_of_adam(condition: float, degrees: float) -> int | None:
    """With the best of ADAM_RATES."""
    counts = [steps_down(lambda w: Adam(w, lr), condition, degrees, 600) for lr in ADAM_RATES]
    return min((count for count in counts if count is not None), default=None)


def show_ravine(lesson: Lesson) -> None:
    lesson.section(
        "A ravine",
        "Most losses are steep in some directions and flat in others; the ratio of the two curvatures is the condition "
        "number, written k below. A step that the steep walls allow is tiny along the floor. Gradient descent needs about "
        "k steps, momentum about sqrt(k): it adds up the gradients along the floor while those across it cancel. Steps "
        "until a thousandth of the distance is left, descent and momentum with the lr that theory calls best, Adam with "
        f"the best of {len(ADAM_RATES)} rates:",
    )
    table, steps = [], {}
    for condition in (10, 100, 1000):
        descent, momentum = best_gradient_descent(condition), best_momentum(condition)
        found = {
            "descent": steps_down(descent, condition, 0),
            "descent, turned": steps_down(descent, condition, 45),
            "momentum": steps_down(momentum, condition, 0),
            "momentum, turned": steps_down(momentum, condition, 45),
            "Adam": fewest_steps_of_adam(condition, 0),
            "Adam, turned": fewest_steps_of_adam(condition, 45),
        }
        steps[condition] = {name: count or 9999 for name, count in found.items()}
        table.append(
            {"k": condition, "descent": found["descent"], "by theory": round(descent_theory(condition)),
             "momentum": found["momentum"], "Adam": found["Adam"], "Adam, ravine turned 45°": found["Adam, turned"]}
        )  # fmt: skip
    lesson.table(table)
    off = max(abs(counts["descent"] - descent_theory(condition)) for condition, counts in steps.items())
    lesson.check("descent: every step leaves (k - 1) / (k + 1)", off <= 1, f"predicted to {math.ceil(off)} step")
    growth = steps[1000]["momentum"] / steps[10]["momentum"]
    lesson.check("momentum: k 100 times as large, steps about 10 times", 6 < growth < 16,
                 f"{growth:.1f} times; descent {steps[1000]['descent'] / steps[10]['descent']:.0f} times")  # fmt: skip
    lesson.check(
        "turning the ravine changes nothing for descent and momentum",
        all(abs(c[name] - c[f"{name}, turned"]) <= 1 for c in steps.values() for name in ("descent", "momentum")),
        "the same steps, to one",
    )
    lesson.check("for Adam a ravine along the axes is none at all", len({c["Adam"] for c in steps.values()}) == 1,
                 f"{steps[10]['Adam']} steps for any k")  # fmt: skip
    narrow = steps[1000]
    lesson.check("turn it, and Adam feels k again", narrow["Adam, turned"] > 3 * narrow["Adam"],
                 f"k = 1000: {narrow['Adam, turned']} steps, {narrow['Adam']} before")  # fmt: skip
    lesson.figure("ravine", draw_ravines, columns=2)
    lesson.shows(
        f"momentum turns {steps[1000]['descent']:,} steps into {steps[1000]['momentum']}, and no "
        "method that sees gradients alone does better than sqrt(k) in general. Adam gives each weight its own rate, which "
        f"takes the ravine away, to {steps[1000]['Adam']} steps, as long as it runs along one weight. Real ravines do so "
        "only in part; Muon, below, looks for the directions of a whole matrix instead."
    )


def descent_theory(condition: float) -> float:
    return math.log(1e-3) / math.log((condition - 1) / (condition + 1))


def draw_ravines(straight: Any, turned: Any) -> None:
    condition = 30
    makes: dict[str, Make] = {
        "gradient descent": best_gradient_descent(condition),
        "momentum": best_momentum(condition),
        "Adam, lr 0.1": lambda w: Adam(w, 0.1),
    }
    x, y = torch.meshgrid(torch.linspace(-0.85, 1.35, 80), torch.linspace(-0.85, 1.35, 80), indexing="xy")
    for axis, degrees in ((straight, 0), (turned, 45)):
        a, start = ravine(condition, degrees), start_in(degrees)
        height = (a[0, 0] * x * x + 2 * a[0, 1] * x * y + a[1, 1] * y * y) / 2
        axis.contour(x, y, height, levels=[0.02, 0.1, 0.4, 1.2, 3, 6, 12], colors="#b0b0b0", linewidths=0.8)
        for name, make in makes.items():
            points = walk(make, lambda w: a @ w, start, 30)
            axis.plot(points[:, 0], points[:, 1], markersize=3.5, linewidth=1.1, label=name)
        axis.plot(0, 0, "*", color="black", markersize=13, linestyle="")
        axis.set(xlabel="weight 0", ylabel="weight 1", aspect="equal", xlim=(-0.85, 1.35), ylim=(-0.85, 1.35),
                 xticks=[-0.5, 0, 0.5, 1], yticks=[-0.5, 0, 0.5, 1],
                 title="along the axes" if degrees == 0 else "turned by 45°")  # fmt: skip
        axis.grid(False)
    straight.legend(fontsize=9, loc="upper left")


# A saddle

SADDLE_RATE = 0.1
SADDLE_RULES: dict[str, Make] = {
    "SGD": lambda w: SGD(w, SADDLE_RATE),
    "momentum": lambda w: Momentum(w, SADDLE_RATE),
    "Nesterov": lambda w: Nesterov(w, SADDLE_RATE),
    "RMSprop": lambda w: RMSprop(w, SADDLE_RATE),
    "Adam": lambda w: Adam(w, SADDLE_RATE),
}


def saddle_gradient(w: torch.Tensor) -> torch.Tensor:
    """Of x²/2 - y²/2 + y⁴/4: a pass at (0, 0) between the two minima at y = ±1."""
    return torch.stack([w[0], w[1] ** 3 - w[1]])


def show_saddle(lesson: Lesson) -> None:
    lesson.section(
        "A saddle",
        "At a saddle the gradient is 0 and the loss is not at a minimum: x²/2 - y²/2 + y⁴/4 rises along x and falls along y, "
        "down to its minima at y = 1 and -1. Networks with symmetric units sit close to such points. SGD leaves as "
        f"fast as the distance from the ridge lets it: y grows by 1 + lr a step. Steps until |y| > 0.5, lr {SADDLE_RATE}:",
    )
    distances = (1e-2, 1e-4, 1e-8)
    table, steps = [], {}
    for y in distances:
        start = torch.tensor([1.0, y], dtype=torch.float64)
        found = {
            name: steps_until(make, saddle_gradient, start, lambda w: bool(w[1].abs() > 0.5), 500)
            for name, make in SADDLE_RULES.items()
        }
        steps[y] = {name: count or 9999 for name, count in found.items()}
        predicted = round(math.log(0.5 / y) / math.log(1 + SADDLE_RATE))
        table.append({"y at the start": f"{y:.0e}", "ln(0.5/y) / ln 1.1": predicted, **found})
    lesson.table(table)
    off = [abs(steps[y]["SGD"] - math.log(0.5 / y) / math.log(1 + SADDLE_RATE)) for y in distances]
    lesson.check("SGD: steps grow with log(1 / distance), as predicted", max(off) < 4, f"to {max(off):.1f} steps")
    far, near = (steps[y]["Adam"] for y in (1e-2, 1e-8))
    lesson.check("Adam leaves at once, from any distance", near <= far + 2 and near < 20,
                 f"{far} steps from 1e-2, {near} from 1e-8: its first step is lr")  # fmt: skip
    lesson.check("momentum leaves faster than SGD", all(found["momentum"] < found["SGD"] for found in steps.values()),
                 f"{steps[1e-8]['momentum']} steps instead of {steps[1e-8]['SGD']}")  # fmt: skip
    ends = [walk(make, saddle_gradient, torch.tensor([1.0, 0.0], dtype=torch.float64), 200)[-1, 1].item()
            for make in SADDLE_RULES.values()]  # fmt: skip
    lesson.check("exactly on the ridge nobody leaves", not any(ends), "y = 0 after 200 steps: 0 divided by eps is 0")
    lesson.figure("saddle", draw_saddle, columns=2)
    lesson.shows(
        f"from 1e-8 SGD stands still for {steps[1e-8]['SGD']} steps, in which the loss curve is flat and looks finished; "
        f"Adam needs {near}, because it divides a tiny gradient by its own tiny size. Noise from batches gets SGD off "
        "the ridge in practice. What no rule leaves is perfect symmetry, such as weights that all start at 0."
    )


def draw_saddle(surface: Any, growth: Any) -> None:
    x, y = torch.meshgrid(torch.linspace(-0.7, 1.15, 80), torch.linspace(-0.3, 1.35, 80), indexing="xy")
    surface.contour(x, y, x**2 / 2 - y**2 / 2 + y**4 / 4, levels=14, colors="#b0b0b0", linewidths=0.8)
    for name in ("SGD", "momentum", "Adam"):
        points = walk(SADDLE_RULES[name], saddle_gradient, torch.tensor([1.0, 1e-2], dtype=torch.float64), 60)
        surface.plot(points[:, 0], points[:, 1], markersize=3.5, linewidth=1.1, label=name)
        away = walk(SADDLE_RULES[name], saddle_gradient, torch.tensor([1.0, 1e-8], dtype=torch.float64), 220)
        growth.plot(away[:, 1].abs(), markersize=4, markevery=20, label=name)
    surface.plot(0, 1, "*", color="black", markersize=13, linestyle="")
    surface.plot(0, 0, "x", color="black", markersize=9, markeredgewidth=2, linestyle="")
    surface.set(xlabel="x", ylabel="y", title="60 steps from (1, 0.01)")
    surface.grid(False)
    surface.legend(fontsize=9, loc="lower right")
    growth.set(yscale="log", xlabel="step", ylabel="|y|, distance from the ridge", title="leaving it from y = 1e-8")
