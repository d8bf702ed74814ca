"""How gradients fare on their way through many layers: predicted, measured, judged layer by layer, and cured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytorch_01_neural_networks.src.hooks.watcher import Layer, Watcher
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
from torch import nn

CLASSES, BATCH, WIDTH, DEPTH = 4, 128, 128, 20


def show_flow(lesson: Lesson) -> None:
    watched = {name: watch(recipe, DEPTH, lesson.device) for name, recipe in NETWORKS.items()}
    show_factor(lesson, watched)
    show_report(lesson, watched)
    show_cures(lesson)


# Networks of many layers


@dataclass(frozen=True)
class Recipe:
    """What stands in each layer: Linear, perhaps a normalisation, an activation, perhaps a skip around them."""

    activation: type[nn.Module]
    gain: float  # weights are drawn with the standard deviation gain / sqrt(inputs)
    norm: bool = False
    skip: bool = False
    dead_layer: bool = False  # the biases in the middle layer are at -30, as a step that was too long leaves them


class Block(nn.Module):
    def __init__(self, recipe: Recipe, width: int) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(width, width), recipe.activation()
        self.norm = nn.BatchNorm1d(width) if recipe.norm else nn.Identity()
        self.skip = recipe.skip
        nn.init.normal_(self.linear.weight, std=recipe.gain / math.sqrt(width))
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(self.norm(self.linear(x)))  # B width → B width
        return x + y if self.skip else y


def build(recipe: Recipe, depth: int, device: torch.device, width: int = WIDTH) -> nn.Sequential:
    """`depth` blocks and a linear layer that scores the classes."""
    model = nn.Sequential(*(Block(recipe, width) for _ in range(depth)), nn.Linear(width, CLASSES))
    if recipe.dead_layer:
        for block in range(depth):  # with biases of 0, a layer of zeros would make all layers behind it zero, too
            nn.init.normal_(model.get_parameter(f"{block}.linear.bias"), std=0.1)
        nn.init.constant_(model.get_parameter(f"{depth // 2}.linear.bias"), -30.0)
    return model.to(device)


HEALTHY = Recipe(nn.ReLU, gain=math.sqrt(2))
NETWORKS = {
    "healthy: ReLU, gain 1.41": HEALTHY,
    "vanishing: Sigmoid, gain 1": Recipe(nn.Sigmoid, gain=1.0),
    "exploding: ReLU, gain 3": Recipe(nn.ReLU, gain=3.0),
    "dead: ReLU, one layer off": replace(HEALTHY, dead_layer=True),
}


def make_batch(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of four classes: a centre for each, the same in every batch, and as much noise; mean 0 and variance 1."""
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0)).to(device)
    y = torch.randint(0, CLASSES, (BATCH,), device=device)
    return (centres[y] + torch.randn(BATCH, WIDTH, device=device)) / math.sqrt(2), y  # B WIDTH, B


def watch(recipe: Recipe, depth: int, device: torch.device) -> list[Layer]:
    """The watcher's rows for one forward and backward pass at the start of training."""
    model, (x, y) = build(recipe, depth, device), make_batch(device)
    with Watcher(model) as watcher:
        nn.functional.cross_entropy(model(x), y).backward()
    return watcher.layers()


def gradients(layers: Sequence[Layer]) -> list[float]:
    """The norm of the gradient in what each block's Linear returns, from the first block to the last."""
    return [layer.gradient for layer in layers if layer.name.endswith(".linear")]


# The factor of one layer


def predicted_factor(recipe: Recipe, depth: int) -> float:
    """What one of `depth` blocks, without norm and skip, does to the norm of a gradient; for endless width.

    In a wide layer the inputs z of the activation f are normal, with variance q = gain² E[f(z)²] of the layer before, and
    a squared gradient is multiplied by gain² E[f'(z)²] on its way back (Schoenholz et al. 2017, Deep Information
    Propagation, eq. 3 and 6). The means are integrals, taken as sums over a fine grid of z. The inputs have variance 1.
    """
    grid = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    weights = torch.exp(-(grid**2) / 2)
    weights /= weights.sum()
    activation, variance, logarithm = recipe.activation(), recipe.gain**2, 0.0
    for _ in range(depth - 1):
        z = (math.sqrt(variance) * grid).requires_grad_()
        y = activation(z)
        (slope,) = torch.autograd.grad(y.sum(), z)
        logarithm += math.log(recipe.gain**2 * (weights @ slope**2).item()) / 2
        variance = recipe.gain**2 * (weights @ y.detach() ** 2).item()
    return math.exp(logarithm / (depth - 1))


def measured_factor(layers: Sequence[Layer]) -> float:
    """By how much a gradient grows for each block that it passes, in the geometric mean; 0 where none arrives."""
    first, *_, last = norms = gradients(layers)
    return (first / last) ** (1 / (len(norms) - 1)) if last else 0.0


def show_factor(lesson: Lesson, watched: Mapping[str, list[Layer]]) -> None:
    lesson.section(
        "What one layer does to a gradient",
        "On its way back a gradient is multiplied by each layer's weights and slopes. If a layer shrinks it to a quarter, "
        f"{DEPTH} layers leave {significant(0.25**DEPTH, 1)} of it, and the first layers do not learn (vanishing); if each "
        "doubles it, the first step destroys the weights (exploding). The factor of one layer can be computed before any "
        "training, from the activation and the scale of the weights alone.",
    )
    predictions = {name: predicted_factor(recipe, DEPTH) for name, recipe in NETWORKS.items()}
    measured = {name: measured_factor(layers) for name, layers in watched.items()}
    table = []
    for name, layers in watched.items():
        first, *_, last = gradients(layers)
        table.append({"network": name, "factor, theory": f"{predictions[name]:.3f}", "measured": f"{measured[name]:.3f}",
                      "gradient, last layer": f"{last:.1e}", "first layer": f"{first:.1e}"})  # fmt: skip
        lesson.record("factor", measured[name], "1", network=name, predicted=predictions[name])
    lesson.table(table)
    healthy, vanishing, exploding, dead = watched
    lesson.check("ReLU: half the slopes are 1, gain 1.41 gives factor 1", abs(predictions[healthy] - 1) < 1e-3,
                 "sqrt(2) x sqrt(1/2)")  # fmt: skip
    for name in (healthy, vanishing, exploding):
        off = abs(measured[name] / predictions[name] - 1)
        lesson.check(f"{name.partition(':')[0]}: measured as predicted, within 20 %", off < 0.2,
                     f"{measured[name]:.3f} for {predictions[name]:.3f}")  # fmt: skip
    sick = gradients(watched[vanishing])
    lesson.check("the sigmoid's first layer gets under a millionth", sick[0] < 1e-6 * sick[-1],
                 f"{sick[0] / sick[-1]:.0e} of the last one's gradient")  # fmt: skip
    wild = gradients(watched[exploding])
    lesson.check("the too large gain sends back over a thousand times more", wild[0] > 1e3 * wild[-1],
                 f"{wild[0] / wild[-1]:.0e} times the last one's")  # fmt: skip
    cut = [norm == 0 for norm in gradients(watched[dead])]
    lesson.check("at and before a dead layer the gradient is exactly zero", cut == [i <= DEPTH // 2 for i in range(DEPTH)],
                 f"layers 0 to {DEPTH // 2} get nothing, the others do")  # fmt: skip
    lesson.figure("gradient_flow", lambda axis: draw_flow(axis, watched, predictions))
    lesson.shows(
        f"a factor of {measured[vanishing]:.2f} over {DEPTH} layers is {sick[0] / sick[-1]:.0e}, one of "
        f"{measured[exploding]:.2f} is {wild[0] / wild[-1]:.0e}: what matters is how near to 1 the factor of each layer is, "
        "and depth is the exponent. The picture gradient_flow.png has a straight line for each."
    )


def draw_flow(axis: Any, watched: Mapping[str, list[Layer]], predictions: Mapping[str, float]) -> None:
    floor = min(norm for layers in watched.values() for norm in gradients(layers) if norm > 0) / 100
    for name, layers in watched.items():
        norms = gradients(layers)
        (line,) = axis.plot([max(norm, floor) for norm in norms], label=name)
        if not NETWORKS[name].dead_layer:
            theory = [norms[-1] * predictions[name] ** (len(norms) - 1 - i) for i in range(len(norms))]
            axis.plot(theory, color=line.get_color(), linewidth=6, alpha=0.2, linestyle="-", marker="")
    axis.annotate("zero", (0, floor), (0, 5), textcoords="offset points", fontsize=9)
    axis.set(yscale="log", xticks=range(0, DEPTH, 2), xlabel="layer (backward goes from right to left)",
             ylabel="norm of the gradient", title="Gradients on their way back; broad lines: theory")  # fmt: skip
    axis.legend(fontsize=9)


# The report

FAR = 1e3  # how far a layer's gradient may be from the last one's; real networks stay within a hundred


def verdict(layer: Layer, last_gradient: float) -> str:
    """Judges one layer by rules, the most certain ones first; `last_gradient` is that of the last layer."""
    if not all(math.isfinite(value) for value in (layer.mean, layer.std, layer.gradient)):
        return "not finite"
    if layer.flat > 0.99:
        return "dead"
    if layer.gradient == 0:
        return "cut off"
    if layer.flat > 0.8:
        return "mostly flat"
    if layer.gradient < last_gradient / FAR:
        return "vanishing"
    if layer.gradient > last_gradient * FAR:
        return "exploding"
    return "healthy"


def worst(verdicts: Iterable[str]) -> str:
    """The first cause comes first: what is dead makes others vanish, and not the other way round."""
    return min(verdicts, key=list(ADVICE).index)


def diagnose(layers: Sequence[Layer]) -> str:
    """One word for the network: the worst verdict on any of its layers."""
    return worst(verdict(layer, layers[-1].gradient) for layer in layers)


def block_number(layer: Layer) -> int:
    return int(layer.name.partition(".")[0])


def in_pairs(layers: Sequence[Layer]) -> list[tuple[Layer, Layer]]:
    """Each block's Linear and activation; the last layer stands for both."""
    by_name = {layer.name: layer for layer in layers}
    names = [name.removesuffix(".linear") for name in by_name if name.endswith(".linear")]
    return [*((by_name[f"{name}.linear"], by_name[f"{name}.act"]) for name in names), (layers[-1], layers[-1])]


ADVICE = {  # the worst first
    "not finite": "find the first layer with it, as in the section on NaN below",
    "dead": "re-initialise the layer, lower lr, or take an activation with a slope on both sides",
    "exploding": "gain 1.41 for ReLU, or normalisation; clipping holds the step, not the cause",
    "vanishing": "ReLU with gain 1.41, normalisation, or skip connections",
    "cut off": "look at the layers behind it: what is dead or detached there?",
    "mostly flat": "smaller weights, or normalisation before the activation",
    "healthy": "leave it alone",
}


def show_report(lesson: Lesson, watched: Mapping[str, list[Layer]]) -> None:
    lesson.section(
        "The report, layer by layer",
        "When a network does not learn, this is the table to print first; the watcher made it from one forward and one "
        "backward pass. Of each block: mean and std of its outputs, and the share that is flat, which lets no gradient "
        "pass (zeros, or the ends of a sigmoid); the gradient in the outputs of its Linear; and step, gradient by weight. "
        "Times lr that is how much of itself the layer changes; 0.001 is a rule of thumb. Every fourth block and the middle one:",
    )
    for name, layers in watched.items():
        lesson.text(f"{name[0].upper()}{name[1:]}")
        middle = DEPTH // 2
        blocks = [
            pair for pair in in_pairs(layers) if block_number(pair[0]) % 4 == 0 or block_number(pair[0]) == middle
        ]
        lesson.table(
            [
                {
                    "block": "scores" if linear is layers[-1] else str(block_number(linear)),
                    "mean": in_short(act.mean),
                    "std": in_short(act.std),
                    "flat": "–" if math.isnan(act.flat) else percent(act.flat),
                    "gradient": in_short(linear.gradient),
                    "step": in_short(linear.step_ratio),
                    "verdict": worst(verdict(layer, layers[-1].gradient) for layer in (linear, act)),
                }
                for linear, act in blocks
            ]
        )
    found = {name: diagnose(layers) for name, layers in watched.items()}
    lesson.table([{"network": name, "diagnosis by rule": word, "what to do": ADVICE[word]}
                  for name, word in found.items()])  # fmt: skip
    lesson.check("the rules name each illness that was planted", all(name.startswith(word) for name, word in found.items()),
                 ", ".join(found.values()))  # fmt: skip
    dead = list(watched)[3]
    by_layer = {layer.name: verdict(layer, watched[dead][-1].gradient) for layer in watched[dead]}
    words = [by_layer[f"{block}.act"] for block in range(DEPTH)]
    lesson.check("and the layer at which to look", words[: DEPTH // 2] == ["cut off"] * (DEPTH // 2) and words[DEPTH // 2]
                 == "dead", f"block {DEPTH // 2} is dead, the {DEPTH // 2} before it are cut off")  # fmt: skip
    healthy = next(iter(watched.values()))
    flat = [layer.flat for layer in healthy if layer.name.endswith(".act")]
    lesson.check("half of a healthy ReLU's outputs are zero", all(0.25 < share < 0.75 for share in flat),
                 f"{percent(min(flat))} to {percent(max(flat))}")  # fmt: skip
    lesson.shows(
        f"{sum(word != 'healthy' for word in found.values())} of {len(found)} networks are ill, and each shows in another "
        "column: the sigmoid in a gradient that fades, the large gain in outputs and gradients that grow, the dead layer in "
        "the flat share and in the zeros before it. Read the table from its end, where the gradient comes from."
    )


def in_short(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1e}" if value and not 1e-3 < abs(value) < 1e3 else f"{value:.3f}"


# The cures


@dataclass(frozen=True)
class Treatment:
    illness: str
    change: str
    recipe: Recipe
    max_norm: float = math.inf  # clips the norm of all gradients
    cures: bool = True


VANISHING, EXPLODING, DEAD = (recipe for recipe in NETWORKS.values() if recipe is not HEALTHY)
TREATMENTS = (
    Treatment("vanishing", "none", VANISHING, cures=False),
    Treatment("vanishing", "gradients clipped to norm 1", VANISHING, max_norm=1.0, cures=False),
    Treatment("vanishing", "Tanh instead of Sigmoid", replace(VANISHING, activation=nn.Tanh)),
    Treatment("vanishing", "BatchNorm before the Sigmoid", replace(VANISHING, norm=True)),
    Treatment("exploding", "none", EXPLODING, cures=False),
    Treatment("exploding", "gradients clipped to norm 1", EXPLODING, max_norm=1.0, cures=False),
    Treatment("exploding", "initialised with gain 1.41", replace(EXPLODING, gain=math.sqrt(2))),
    Treatment("exploding", "BatchNorm and a skip", replace(EXPLODING, norm=True, skip=True)),
    Treatment("dead", "none", DEAD, cures=False),
    Treatment("dead", "LeakyReLU, slope 0.01 below 0", replace(DEAD, activation=nn.LeakyReLU), cures=False),
    Treatment("dead", "BatchNorm, which takes out the bias", replace(DEAD, norm=True)),
    Treatment("dead", "a skip around each layer, gain 0.3", replace(DEAD, skip=True, gain=0.3)),
)


def train(model: nn.Module, steps: int, lr: float, device: torch.device, max_norm: float = math.inf) -> list[float]:
    """The losses of `steps` steps of SGD, each on a new batch."""
    losses = []
    for _ in range(steps):
        x, y = make_batch(device)
        loss = nn.functional.cross_entropy(model(x), y)
        model.zero_grad()
        loss.backward()
        if max_norm < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.add_(weight.grad, alpha=-lr)
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def show_cures(lesson: Lesson) -> None:
    depth, steps, lr = 12, lesson.pick(full=100, quick=60), 0.05
    lesson.section(
        "The cures, measured",
        f"Each illness has several cures, and each cure acts at another place: on the weights at the start, the slope of "
        f"the activation, the scale between layers, or a way around them. Networks of {depth} blocks, the ratio of the "
        f"gradient in the first block to that in the last at the start, and the mean loss of the last ten of {steps} steps "
        f"of SGD (guessing has {math.log(CLASSES):.2f}).",
    )
    curves, ends, ratios, table = {}, {}, {}, []
    for treatment in lesson.progress(TREATMENTS, "training"):
        layers = watch(treatment.recipe, depth, lesson.device)
        first, *_, last = gradients(layers)
        losses = train(build(treatment.recipe, depth, lesson.device), steps, lr, lesson.device, treatment.max_norm)
        curves[treatment], ratios[treatment] = losses, first / last
        ends[treatment] = sum(losses[-10:]) / 10
        table.append({"illness": treatment.illness, "treatment": treatment.change, "first / last": f"{first / last:.1e}",
                      "diagnosis": diagnose(layers), "loss at the end": f"{ends[treatment]:.2g}"})  # fmt: skip
    lesson.table(table)
    guessing = math.log(CLASSES)
    for illness in ("vanishing", "exploding", "dead"):
        of_it = [treatment for treatment in TREATMENTS if treatment.illness == illness]
        untreated, good = of_it[0], [treatment for treatment in of_it if treatment.cures]
        lesson.check(f"{illness}: untreated it learns nothing", not ends[untreated] < 0.8 * guessing,
                     f"loss {ends[untreated]:.2g}")  # fmt: skip
        lesson.check(f"{illness}: two cures, and both let it learn", all(ends[cure] < guessing / 2 for cure in good),
                     " and ".join(f"loss {ends[cure]:.1g}" for cure in good))  # fmt: skip
    clipped = {treatment.illness: treatment for treatment in TREATMENTS if treatment.max_norm < math.inf}
    vanishing, exploding = clipped["vanishing"], clipped["exploding"]
    lesson.check("clipping cures neither: the ratio stays", ratios[vanishing] < 1e-3 and ratios[exploding] > 100,
                 f"{ratios[vanishing]:.0e} and {ratios[exploding]:.0e}, loss {ends[exploding]:.0f}")  # fmt: skip
    lesson.check(
        "but it keeps an exploding network finite",
        math.isfinite(ends[exploding]),
        "every step has at most the length lr",
    )
    leaky = TREATMENTS[9]
    lesson.check("a slope of 0.01 lets gradients through a dead layer", ratios[leaky] > 0,
                 f"{ratios[leaky]:.0e} instead of 0; loss {ends[leaky]:.2f}")  # fmt: skip
    cured = [ends[treatment] for treatment in TREATMENTS if treatment.cures]
    others = [ends[treatment] for treatment in TREATMENTS if not treatment.cures and treatment.change != "none"]
    lesson.figure("cures", lambda axis: draw_cures(axis, curves))
    lesson.shows(
        f"the {len(cured)} treatments that bring the factor of each layer near 1, or lead the gradient around the layers, "
        f"ended at a loss of {max(cured):.2g} or below; the other {len(others)} at "
        + (f"{min(others):.2g} or above" if min(others) > max(cured) else "anything between")
        + ". What only shortens the step is no cure, and a gradient that arrives is no promise yet: see the leaky one."
    )


def draw_cures(axis: Any, curves: Mapping[Treatment, list[float]]) -> None:
    for treatment, losses in curves.items():
        if treatment.illness == "vanishing":
            smooth = [sum(losses[max(0, i - 4) : i + 1]) / min(5, i + 1) for i in range(len(losses))]
            axis.plot(
                smooth, label=treatment.change if treatment.change != "none" else "Sigmoid, untreated", markevery=10
            )
    axis.axhline(math.log(CLASSES), color="black", linewidth=1, linestyle="--", marker="")
    axis.annotate("guessing", (1, math.log(CLASSES)), (0, -12), xycoords=("axes fraction", "data"), ha="right",
                  textcoords="offset points", fontsize=9)  # fmt: skip
    axis.set(
        xlabel="step",
        ylabel="loss, mean of 5 steps",
        ylim=(0, None),
        title="Twelve layers that did not learn, and what helped",
    )
    axis.legend(fontsize=9, loc="center right")
