"""The examination: ten checks in one order, for any training; the first that is not normal names the illness.

The order is that of causes: what comes in, the mode, what comes out, the first loss, the signal, the gradients, the
step, and only then whether anything is learned. An illness shows in many checks behind its own and hardly in one before
it. Nothing here reads the code of a training: its parts are called as its own script calls them, and hooks look on.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

from pytorch_02_training_optimization.src.clinic.training import LN_C, Data, Session, Training

import torch
from torch import nn


class Illness(StrEnum):
    INPUTS = "inputs not normalised"
    TRAINED_IN_EVAL = "trained in eval mode"
    TESTED_IN_TRAIN = "tested in train mode"
    SOFTMAX = "softmax before the loss"
    START = "exploding start"
    DEAD = "dead units"
    FROZEN = "frozen weights"
    CUT = "graph cut in the middle"
    NO_GRADIENT = "gradients of exactly 0"
    VANISHING = "vanishing gradients"
    OTHER_WEIGHTS = "optimizer of other weights"
    LR_HIGH = "learning rate too high"
    LR_LOW = "learning rate too low"
    OLD_GRADIENTS = "old gradients kept"
    ONE_BATCH = "one batch is not learned"
    LABELS = "labels of other images"


@dataclass(frozen=True)
class Finding:
    """What one check measured. `illness` is what it means where all before it is normal; None is normal."""

    check: str
    measured: str
    illness: Illness | None


@dataclass
class Examination:
    findings: list[Finding] = field(default_factory=list)
    good_lr: float | None = None  # where rates were tried: the one that learned its batch best

    @property
    def cause(self) -> Finding | None:
        """The first finding that is not normal. Those behind it may be its consequences."""
        return next((finding for finding in self.findings if finding.illness), None)

    @property
    def illness(self) -> Illness | None:
        return self.cause.illness if self.cause else None


# What is normal. Healthy trainings and sick ones lie factors of ten apart, so these are round numbers.
MEAN, STD = 1.0, (0.2, 5.0)  # of the inputs: |mean| below, std between
ABOVE_LN_C = 1.0  # the first loss, at most
FLAT = 0.5  # share of a layer's units that are dead or saturated for a whole batch
WEAKEST = 0.02  # gradient of a layer, as a share of the strongest one
STEP = (1e-5, 0.05)  # length of the first step, as a share of the weights
STALE = 0.01  # of the gradient that is used, what this batch did not send
LEARNED = 0.1  # loss on one batch that is shown again and again
CONNECTED = 0.95  # loss, as a share of that with nothing to learn
RATES = (0.1, 0.01, 10.0)  # times the training's own, tried where one batch is not learned

NORMAL = {
    "inputs": f"mean within {MEAN:g} of 0, std {STD[0]:g} to {STD[1]:g}",
    "modes": "trained in train mode, tested in eval mode",
    "scores": "no softmax: rows do not add up to 1",
    "first loss": f"below ln C + {ABOVE_LN_C:g}",
    "flat units": f"below {100 * FLAT:.0f} % in every layer",
    "gradients": f"everywhere, the weakest above {100 * WEAKEST:.0f} %",
    "step": f"{STEP[0]:.5f} to {STEP[1]:g} of the weights",
    "gradient used": f"this batch's, to {100 * STALE:.0f} %",
    "one batch": f"loss below {LEARNED:g}",
    "connection": f"below {CONNECTED:g} of the other two",
}


def examine(training: Training, data: Data, seed: int, steps: int) -> Examination:
    """Two steps are watched for the first eight checks; the last two train for `steps` steps, once or more.

    The tenth is left out where something was found before it.
    """
    seen = observe(Session(training, data, seed))
    examination = Examination([check(seen) for check in CHECKS])
    learn_one_batch(examination, training, data, seed, steps)
    if examination.illness is None:
        learn_without_connection(examination, training, data, seed, steps)
    return examination


# Two steps, watched

Tensors = dict[str, torch.Tensor]


@dataclass
class Evidence:
    """What was seen in two steps, on one batch each, and in two tests after them."""

    x: torch.Tensor
    first_loss: float
    is_training: bool  # the mode in which the step was made
    flat: Mapping[str, float]  # of each activation, the share of flat units
    weights: Mapping[str, nn.Parameter]
    before: Tensors  # the weights, and after the first step
    after: Tensors
    gradients: Tensors  # that the first batch sent
    own: Tensors  # that the second batch sent,
    used: Tensors  # and what lay in .grad when the optimizer took its second step
    scores: tuple[torch.Tensor, torch.Tensor]


def observe(session: Session) -> Evidence:
    model, weights = session.model, dict(session.model.named_parameters())
    modes: list[bool] = []
    flat: dict[str, float] = {}
    own: list[Tensors] = []  # one dict for each step
    used: list[Tensors] = []

    def see_mode(module: nn.Module, _: object) -> None:
        modes.append(module.training)

    def see_activation(name: str, module: nn.Module, y: torch.Tensor) -> None:
        flat.setdefault(name, flat_share(module, y))

    def see_gradient(name: str, gradient: torch.Tensor) -> None:
        own[-1][name] = gradient.clone()

    def see_sum(name: str, weight: torch.Tensor) -> None:
        if weight.grad is not None:
            used[-1][name] = weight.grad.clone()

    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(see_mode))
        for name, module in model.named_modules():
            if isinstance(module, nn.ReLU | nn.Sigmoid | nn.Tanh):
                see = lambda module, _, y, name=name: see_activation(name, module, y)  # noqa: E731
                hooks.enter_context(module.register_forward_hook(see))
        for name, weight in weights.items():
            if weight.requires_grad:
                hooks.enter_context(weight.register_hook(partial(see_gradient, name)))
                hooks.enter_context(weight.register_post_accumulate_grad_hook(partial(see_sum, name)))
        losses, states = [], [copies_of(weights)]
        batches = [session.batch(), session.batch()]
        for x, y in batches:
            own.append({})
            used.append({})
            losses.append(session.step(x, y).item())
            states.append(copies_of(weights))
    x = batches[0][0]
    scores = session.training.score(model, x), session.training.score(model, x)
    return Evidence(x, losses[0], modes[0], flat, weights, states[0], states[1], own[0], own[1], used[1], scores)


def copies_of(weights: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: weight.detach().clone() for name, weight in weights.items()}


def flat_share(module: nn.Module, y: torch.Tensor) -> float:
    """The share of units that let no gradient pass for any sample of y (B, units): ReLUs at 0, others on a flat end."""
    if isinstance(module, nn.ReLU):
        flat = y == 0
    else:
        flat = (y if isinstance(module, nn.Tanh) else 2 * y - 1).abs() > 0.975  # the slope is under 5 % of its largest
    return flat.all(0).float().mean().item()


def norm(tensors: Iterable[torch.Tensor]) -> float:
    """Of all numbers in all tensors together."""
    return math.sqrt(sum(x.cpu().double().square().sum().item() for x in tensors))


# Eight checks of what was seen


def check_inputs(seen: Evidence) -> Finding:
    mean, std = seen.x.mean().item(), seen.x.std().item()
    is_normal = abs(mean) < MEAN and STD[0] < std < STD[1]
    return Finding("inputs", f"mean {mean:.2f}, std {std:.2f}", None if is_normal else Illness.INPUTS)


def check_modes(seen: Evidence) -> Finding:
    agree = torch.equal(*(scores.nan_to_num() for scores in seen.scores))
    illness = None if seen.is_training else Illness.TRAINED_IN_EVAL
    measured = f"{'train' if seen.is_training else 'eval'} mode; two tests {'agree' if agree else 'differ'}"
    return Finding("modes", measured, illness if agree else Illness.TESTED_IN_TRAIN)


def check_scores(seen: Evidence) -> Finding:
    scores = seen.scores[0]
    sums = scores.sum(1)
    is_softmax = bool((scores >= 0).all() and ((sums - 1).abs() < 1e-3).all())
    measured = f"{scores.min().item():.2g} to {scores.max().item():.2g}, a row adds up to {sums[0].item():.2g}"
    return Finding("scores", measured, Illness.SOFTMAX if is_softmax else None)


def check_first_loss(seen: Evidence) -> Finding:
    is_normal = seen.first_loss < LN_C + ABOVE_LN_C  # NaN is not
    return Finding("first loss", f"{seen.first_loss:.3g}; ln C = {LN_C:.3g}", None if is_normal else Illness.START)


def check_flat_units(seen: Evidence) -> Finding:
    worst = max(seen.flat.values(), default=0.0)
    return Finding("flat units", f"{100 * worst:.0f} % in the worst layer", Illness.DEAD if worst > FLAT else None)


def check_gradients(seen: Evidence) -> Finding:
    names, gradients = list(seen.weights), seen.gradients
    frozen = [name for name in names if not seen.weights[name].requires_grad]
    cut = [name for name in names if name not in gradients and name not in frozen]
    norms = [norm([gradient]) for gradient in gradients.values() if gradient.ndim > 1]  # biases are apart
    if frozen:
        return Finding("gradients", f"{len(frozen)} of {len(names)} weights ask for none", Illness.FROZEN)
    if cut:
        return Finding("gradients", f"None in {len(cut)} of {len(names)} weights, up to {cut[-1]}", Illness.CUT)
    if empty := norms.count(0.0):
        return Finding("gradients", f"0 in {empty} of {len(norms)} layers", Illness.NO_GRADIENT)
    share = min(norms) / max(norms)
    illness = Illness.VANISHING if share < WEAKEST else None
    return Finding("gradients", f"weakest layer {100 * share:.2g} % of the strongest", illness)


def check_step(seen: Evidence) -> Finding:
    length = norm(seen.after[name] - x for name, x in seen.before.items()) / max(norm(seen.before.values()), 1e-30)
    illness = None
    if length == 0:
        illness = Illness.OTHER_WEIGHTS
    elif not length < STEP[1]:  # NaN is not
        illness = Illness.LR_HIGH
    elif length < STEP[0]:
        illness = Illness.LR_LOW
    return Finding("step", f"{length:.1g} of the weights", illness)


def check_freshness(seen: Evidence) -> Finding:
    stale = norm(seen.used[name] - x for name, x in seen.own.items()) / max(norm(seen.own.values()), 1e-30)
    return Finding("gradient used", f"off by {100 * stale:.0f} %", Illness.OLD_GRADIENTS if not stale < STALE else None)


CHECKS: tuple[Callable[[Evidence], Finding], ...] = (
    check_inputs,
    check_modes,
    check_scores,
    check_first_loss,
    check_flat_units,
    check_gradients,
    check_step,
    check_freshness,
)


# Two checks that train


def learn_one_batch(
    examination: Examination, training: Training, data: Data, seed: int, steps: int
) -> None:  # fmt: skip
    """One batch again and again: any sound training learns it by heart, whatever its labels are.

    Where it is not learned and no other cause is known, other learning rates are tried.
    """
    loss = loss_of_one_batch(training, data, seed, steps)
    measured, illness = f"loss {loss:.2g}", None if loss < LEARNED else Illness.ONE_BATCH
    known = examination.illness
    if illness and known in (None, Illness.LR_HIGH, Illness.LR_LOW):
        losses = {
            rate: loss_of_one_batch(replace(training, lr=rate * training.lr), data, seed, steps) for rate in RATES
        }
        best = min(losses, key=lambda rate: losses[rate])
        if losses[best] < LEARNED:
            illness = Illness.LR_HIGH if best < 1 else Illness.LR_LOW
            examination.good_lr = best * training.lr
            measured += f"; {losses[best]:.2g} at {best:g} x lr"
    examination.findings.append(Finding("one batch", measured, illness))


def loss_of_one_batch(training: Training, data: Data, seed: int, steps: int) -> float:
    """The mean of the last five losses; infinite where they are no numbers."""
    session = Session(training, data, seed)
    x, y = session.batch()
    losses = torch.stack([session.step(x, y) for _ in range(steps)])[-5:]
    return losses.mean().nan_to_num(nan=math.inf).item()


def learn_without_connection(
    examination: Examination, training: Training, data: Data, seed: int, steps: int
) -> None:  # fmt: skip
    """Is it learned what belongs together? The same training, with labels shuffled and with inputs of zeros."""

    def draw_shuffled(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        of_images, of_labels = training.draw(count, generator)
        return of_images, of_labels[torch.randperm(len(of_labels), generator=generator)]

    shuffled = replace(training, draw=draw_shuffled)
    blind = replace(training, read=lambda images: torch.zeros_like(training.read(images)))
    own, *others = (
        Session(variant, data, seed).train(steps)[-(steps // 4) :].mean().item()
        for variant in (training, shuffled, blind)
    )
    measured = f"loss {own:.2f}; {others[0]:.2f} with labels shuffled, {others[1]:.2f} with inputs zeroed"
    is_connected = own < CONNECTED * min(others)
    examination.findings.append(Finding("connection", measured, None if is_connected else Illness.LABELS))
