"""Clipping gradients: by norm and by value, its place in the loop, and a training that one bad batch ends without it."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shared.agreement import deviation
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import significant

import torch
from torch import nn


def show_clipping(lesson: Lesson) -> None:
    show_formula(lesson)
    show_place(lesson)
    show_bad_batch(lesson)


# The formula

Gradients = Sequence[torch.Tensor]


def clip_by_norm(gradients: Gradients, max_norm: float, order: float = 2.0) -> torch.Tensor:
    """Scales all gradients, in place, by one number, so that all of them together have at most this norm.

    Returns their norm from before, as torch.nn.utils.clip_grad_norm_ does (Pascanu et al. 2013, algorithm 1).
    """
    norm: torch.Tensor = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g, order) for g in gradients]), order
    )
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # a tensor on the device: `if norm > max_norm` would wait for it
    for gradient in gradients:
        gradient *= scale
    return norm


def clip_each_layer(gradients: Gradients, max_norm: float) -> None:
    """Often taken for the same: one number for each tensor, so layers change their weight against each other."""
    for gradient in gradients:
        clip_by_norm([gradient], max_norm)


def clip_by_value(gradients: Gradients, limit: float) -> None:
    """Each number on its own, as torch.nn.utils.clip_grad_value_ does."""
    for gradient in gradients:
        gradient.clamp_(-limit, limit)


def joined(gradients: Gradients) -> torch.Tensor:
    """All gradients as one long vector."""
    return torch.cat([gradient.flatten() for gradient in gradients])


def cosine(a: Gradients, b: Gradients) -> float:
    """1 where both point in one direction; in float64, so that 1 is 1 to twelve digits."""
    first, second = (joined(gradients).cpu().double() for gradients in (a, b))
    return float(first @ second / (first.norm() * second.norm()))


def uneven_gradients(device: torch.device) -> list[torch.Tensor]:
    """Of three layers; the first one's are a hundred times those of the last, as in a network that starts to explode."""
    return [torch.randn(20, 20, device=device) * size for size in (1.0, 0.1, 0.01)]


def as_weights(gradients: Gradients) -> list[nn.Parameter]:
    """Weights whose .grad are copies of these, for what the library clips."""
    weights = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()
    return weights


def grads_of(weights: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]


def clipped_by_library(
    gradients: Gradients, max_norm: float, order: float = 2.0
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What torch.nn.utils.clip_grad_norm_ returns for such gradients, and what it makes of them."""
    weights = as_weights(gradients)
    norm = nn.utils.clip_grad_norm_(weights, max_norm, norm_type=order)
    return norm, grads_of(weights)


def show_formula(lesson: Lesson) -> None:
    lesson.section(
        "Clipping: the length or the direction",
        "A step is lr times the gradient. Where the loss is steep, one step can throw the weights far away; clipping limits "
        "its length. By norm, all gradients are multiplied by the same number, min(1, max_norm / norm): the step becomes "
        "shorter and keeps its direction. By value, each number is cut on its own, and the direction changes.",
    )
    raw = uneven_gradients(lesson.device)
    ways: dict[str, Callable[[Gradients], object]] = {
        "nothing": lambda gradients: None,
        "by norm, all together, at 1": lambda gradients: clip_by_norm(gradients, 1.0),
        "by norm, each layer, at 1": lambda gradients: clip_each_layer(gradients, 1.0),
        "by value, at 0.01": lambda gradients: clip_by_value(gradients, 0.01),
    }
    table, cosines, norms = [], {}, {}
    for way, clip in ways.items():
        gradients = [gradient.clone() for gradient in raw]
        clip(gradients)
        cosines[way], norms[way] = cosine(gradients, raw), joined(gradients).norm().item()
        degrees = math.degrees(math.acos(min(1.0, cosines[way])))
        table.append({"clipped": way, "norm": norms[way], "largest number": joined(gradients).abs().max().item(),
                      "layer norms": ", ".join(significant(gradient.norm().item(), 2) for gradient in gradients),
                      "cosine": f"{cosines[way]:.4f}", "angle": f"{degrees:.0f} degrees"})  # fmt: skip
    lesson.table(table)
    _, together, apart, by_value = ways
    worst = 0.0
    for order in (1.0, 2.0, math.inf):
        for max_norm in (0.01, 1.0, 1e6):
            own = [gradient.clone() for gradient in raw]
            own_norm = clip_by_norm(own, max_norm, order)
            norm, clipped = clipped_by_library(raw, max_norm, order)
            worst = max(worst, deviation(own_norm, norm), *(deviation(a, b) for a, b in zip(own, clipped, strict=True)))
    lesson.check("the formula is the library's, for norms 1, 2 and infinity", worst < 1e-5,
                 f"clip_grad_norm_, off by {significant(worst, 2)} at most")  # fmt: skip
    weights, own = as_weights(raw), [gradient.clone() for gradient in raw]
    nn.utils.clip_grad_value_(weights, 0.01)
    clip_by_value(own, 0.01)
    lesson.check("and so is clipping by value", all(torch.equal(a, b) for a, b in zip(own, grads_of(weights), strict=True)),
                 "clip_grad_value_, to the last bit")  # fmt: skip
    lesson.check("by norm: the direction is kept, the norm is 1", abs(cosines[together] - 1) < 1e-9
                 and abs(norms[together] - 1) < 1e-4, f"1 - cosine is {abs(1 - cosines[together]):.0e}")  # fmt: skip
    lesson.check("by value, and by norm for each layer, it is not", max(cosines[by_value], cosines[apart]) < 0.95,
                 f"cosine {cosines[by_value]:.2f} and {cosines[apart]:.2f}")  # fmt: skip
    quiet = [gradient * 1e-3 for gradient in raw]
    returned, untouched = clipped_by_library(quiet, 1.0)
    lesson.check("below max_norm nothing happens", all(torch.equal(a, b) for a, b in zip(quiet, untouched, strict=True)),
                 f"norm {returned.item():.3f}, factor 1")  # fmt: skip
    returned, _ = clipped_by_library(raw, 1.0)
    lesson.check("clip_grad_norm_ returns the norm from before", abs(returned.item() / norms["nothing"] - 1) < 1e-4,
                 f"{returned.item():.1f}; log it, it is there anyway")  # fmt: skip
    broken = [gradient.clone() for gradient in raw]
    broken[0][0, 0] = math.inf
    _, after = clipped_by_library(broken, 1.0)
    lesson.check("an infinite gradient is not clipped: inf x 0 is NaN, the rest 0",
                 after[0][0, 0].isnan() and joined(after).nan_to_num().abs().sum() == 0,
                 "the next step would write the NaN")  # fmt: skip
    refused = complaint(lambda: nn.utils.clip_grad_norm_(as_weights(broken), 1.0, error_if_nonfinite=True))
    lesson.check("error_if_nonfinite=True stops there instead", "non-finite" in refused, refused.partition(":")[0])
    first, last = (gradient.norm().item() for gradient in (raw[0], raw[2]))
    value_first, value_last = (gradient.norm().item() for gradient in (own[0], own[2]))
    lesson.shows(
        f"the first layer had {first / last:.0f} times the gradient of the last. Clipped by norm it still has; by value it has "
        f"{value_first / value_last:.1f} times as much, {table[3]['angle']} off the way down. Clip by the norm of all gradients "
        "unless you know why not."
    )


# Its place in the loop

MAX_NORM = 1.0
Update = Callable[[nn.Module, torch.Tensor], None]


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = 100 * model(x).square().mean()  # steep enough to be clipped
    return loss


def clip_before_backward(model: nn.Module, x: torch.Tensor) -> None:
    """The mistake: there is no gradient yet, and clip_grad_norm_ says nothing to that."""
    nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    loss_of(model, x).backward()
    take_step(model)


def clip_after_step(model: nn.Module, x: torch.Tensor) -> None:
    """The mistake: the long step is already taken."""
    loss_of(model, x).backward()
    take_step(model)
    nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)


def clip_each_part(model: nn.Module, x: torch.Tensor) -> None:
    """The mistake where a batch comes in parts: the first parts are cut down before the last one is added whole."""
    for part in x.chunk(4):
        (loss_of(model, part) / 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    take_step(model)


def clip_between(model: nn.Module, x: torch.Tensor) -> None:
    """Right: when the gradient is complete, before the step."""
    for part in x.chunk(4):
        (loss_of(model, part) / 4).backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    take_step(model)


@torch.no_grad()
def take_step(model: nn.Module, lr: float = 1.0) -> None:
    for weight in model.parameters():
        if weight.grad is not None:
            weight.add_(weight.grad, alpha=-lr)


def step_of(update: Update, model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Where `update` moves the weights; they are put back."""
    start = [weight.detach().clone() for weight in model.parameters()]
    model.zero_grad()
    update(model, x)
    with torch.no_grad():
        step = [weight - old for weight, old in zip(model.parameters(), start, strict=True)]
        for weight, old in zip(model.parameters(), start, strict=True):
            weight.copy_(old)
    return step


PLACES: dict[str, Update] = {
    "before backward()": clip_before_backward,
    "after the step": clip_after_step,
    "after each part of the batch": clip_each_part,
    "between backward() and the step": clip_between,
}


def show_place(lesson: Lesson) -> None:
    lesson.section(
        "Its place in the loop",
        "Clipping belongs after the last backward() of a step and before the step itself. Elsewhere it is silent and "
        "useless. Here is one step with max_norm 1 and lr 1, whose length must therefore be 1, with the batch in four parts "
        "where gradients are accumulated. With a GradScaler, call scaler.unscale_(optimizer) first: max_norm is meant for "
        "the real gradients.",
    )
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(lesson.device)
    x = torch.randn(64, 8, device=lesson.device)
    model.zero_grad()
    loss_of(model, x).backward()
    downhill = [-weight.grad for weight in model.parameters() if weight.grad is not None]
    steps = {place: step_of(update, model, x) for place, update in PLACES.items()}
    lengths = {place: joined(step).norm().item() for place, step in steps.items()}
    cosines = {place: cosine(step, downhill) for place, step in steps.items()}
    lesson.table([{"clipped": place, "length of the step": lengths[place], "cosine with downhill": f"{cosines[place]:.4f}"}
                  for place in PLACES])  # fmt: skip
    before, after, parts, between = PLACES
    full = joined(downhill).norm().item()
    lesson.check("before backward() or after the step: as if not there",
                 all(abs(lengths[place] / full - 1) < 1e-3 for place in (before, after)),
                 f"{lengths[before]:.1f} and {lengths[after]:.1f}, the whole gradient has {full:.1f}")  # fmt: skip
    lesson.check("between the two: length 1, straight downhill", abs(lengths[between] - 1) < 1e-3
                 and cosines[between] > 0.9999, f"{lengths[between]:.4f}, cosine {cosines[between]:.4f}")  # fmt: skip
    lesson.check("after each part: short, but in another direction", lengths[parts] < 1.001 and cosines[parts]
                 < cosines[between] - 1e-4, f"cosine {cosines[parts]:.4f}: the last part weighs most")  # fmt: skip
    lesson.shows(
        f"{len(PLACES)} loops clip, and one of them does what is meant. In the wrong place the step was "
        f"{lengths[before] / lengths[between]:.0f} times too long, without an error. Print the length of one step when you "
        "add clipping to a loop."
    )


# One bad batch

SPIKE = 1000.0


def regression(device: torch.device) -> nn.Sequential:
    layers = [nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)]
    return nn.Sequential(*layers).to(device)


def train_through_spike(
    steps: int, bad_step: int, max_norm: float, seed: int, device: torch.device
) -> dict[str, list[float]]:
    """Losses and gradient norms of a regression; the batch of `bad_step` is 1000 times too large, as by a wrong unit."""
    torch.manual_seed(seed)
    model, teacher = regression(device), torch.randn(16, 1, device=device) / 4
    losses, norms = [], []
    for step in range(steps):
        x = torch.randn(64, 16, device=device)
        y = torch.tanh(x @ teacher)
        if step == bad_step:
            x, y = SPIKE * x, SPIKE * y
        loss = nn.functional.mse_loss(model(x), y)
        model.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), max_norm))
        take_step(model, lr=0.05)
        losses.append(loss.detach())
    return {"loss": torch.stack(losses).tolist(), "norm": torch.stack(norms).tolist()}


def show_bad_batch(lesson: Lesson) -> None:
    steps = lesson.pick(full=300, quick=150)
    bad_step = steps // 3
    lesson.section(
        "One bad batch",
        "A sensor sends millivolts for volts, a file is broken: once in a while a batch is far from all others. Without "
        f"clipping one step on it can end a training of weeks. Here batch {bad_step} of {steps} is {SPIKE:,.0f} times too "
        "large. The limit is twice the largest gradient norm seen before it, so on ordinary batches it never acts.",
    )
    seed = lesson.options.seed
    plain = train_through_spike(steps, bad_step, math.inf, seed, lesson.device)
    max_norm = 2 * max(plain["norm"][:bad_step])
    clipped = train_through_spike(steps, bad_step, max_norm, seed, lesson.device)
    runs = {"not clipped": plain, f"clipped at {significant(max_norm, 2)}": clipped}
    moments = {
        "start": 0,
        "before the bad batch": bad_step - 1,
        "bad batch": bad_step,
        "next": bad_step + 1,
        "end": steps - 1,
    }
    lesson.table([{"loss": name, **{moment: f"{run['loss'][step]:.3g}" for moment, step in moments.items()},
                   "its gradient": f"{run['norm'][bad_step]:.1e}"} for name, run in runs.items()])  # fmt: skip
    lesson.check("until the bad batch the two runs are one", plain["loss"][: bad_step + 1] == clipped["loss"][: bad_step + 1],
                 f"{bad_step} losses equal to the last bit: clipping rested")  # fmt: skip
    ratio = plain["norm"][bad_step] / max_norm
    lesson.check("the bad batch's gradient is far above the limit", ratio > 1e3, f"{ratio:.0e} times")
    level, end = plain["loss"][bad_step - 1], clipped["loss"][-1]
    lesson.check("without clipping the training is lost", not plain["loss"][-1] < 10 * level,
                 f"loss {plain['loss'][-1]:.3g} at the end, {level:.3g} before")  # fmt: skip
    lesson.check("with clipping it goes on", end < 2 * level, f"loss {end:.3g} at the end")
    lesson.figure("bad_batch", lambda axis: draw_spike(axis, runs, bad_step))
    lesson.shows(
        f"one batch in {steps} decided between a loss of {end:.2g} and "
        + (f"{plain['loss'][-1]:.2g}" if math.isfinite(plain["loss"][-1]) else "NaN")
        + ". A limit a little above the usual norm costs nothing on good batches and takes the power from bad ones. It "
        "repairs no network: the one with too large weights, above, stayed ill under clipping."
    )


def draw_spike(axis: Any, runs: dict[str, dict[str, list[float]]], bad_step: int) -> None:
    top = 1e8
    for (name, run), width in zip(runs.items(), (5, 1.2), strict=True):  # a broad line below, where the two are one
        losses = [min(loss, 100 * top) if math.isfinite(loss) else math.nan for loss in run["loss"]]
        axis.plot(losses, label=name, linewidth=width, alpha=0.4 if width > 2 else 1, marker="")
    plain = next(iter(runs.values()))["loss"]
    lost = next((step for step, loss in enumerate(plain) if not math.isfinite(loss)), None)
    fate = "goes off the chart" if lost is None else f"is not a number from step {lost} on"
    axis.annotate(f"batch {bad_step} is bad; without clipping\nthe loss {fate}", (bad_step, top / 10), (8, 0),
                  textcoords="offset points", fontsize=9)  # fmt: skip
    axis.set(
        yscale="log", xlabel="step", ylabel="loss", ylim=(None, top), title="One bad batch, with and without clipping"
    )
    axis.legend(fontsize=9, loc="center right")
