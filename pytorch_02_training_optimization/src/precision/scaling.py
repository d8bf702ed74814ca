"""Loss scaling: the window of scales that work, the rule that finds one, and two calls that stand in the wrong place."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pytorch_02_training_optimization.src.precision.task import (
    LR,
    GradientDescent,
    Letters,
    load_letters,
    logits_by_hand,
    make_mlp,
)
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import percent, significant

import torch
import torch.nn.functional as F
from torch import nn

# A mean over the pixels of 16 images of 1024 x 1024 divides each gradient by this. The letters here are few, so their
# loss is divided by hand, and the learning rate is as much larger: in float32 nothing changes.
DIVISOR = 2**24
BATCH_SIZE = 64
SMALLEST = 2.0**-24  # of float16


class Scaler(Protocol):
    """What torch.amp.GradScaler and ours have in common."""

    def scale(self, loss: torch.Tensor) -> torch.Tensor: ...
    def unscale_(self, optimizer: Any) -> None: ...
    def step(self, optimizer: Any) -> object: ...
    def update(self) -> None: ...
    def get_scale(self) -> float: ...


class OwnGradScaler:
    """torch.amp.GradScaler for one optimizer (Micikevicius et al. 2018, section 3.2, with a scale that adapts).

    The scale is halved when a gradient is infinite or NaN, and that step is left out. It is doubled after
    `growth_interval` good steps in a row. The defaults are PyTorch's.
    """

    def __init__(self, init_scale: float = 2.0**16, growth_interval: int = 2000) -> None:
        self._scale, self._growth_interval, self._good_steps = init_scale, growth_interval, 0
        self._found_inf: bool | None = None  # None: these gradients still carry the scale

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * self._scale

    def unscale_(self, optimizer: Any) -> None:
        if self._found_inf is not None:
            raise RuntimeError("unscale_() has already been called on this optimizer since the last update().")
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._found_inf = not all(gradient.isfinite().all() for gradient in gradients)
        for gradient in gradients:
            gradient.mul_(1 / self._scale)

    def step(self, optimizer: Any) -> None:
        if self._found_inf is None:
            self.unscale_(optimizer)
        if not self._found_inf:
            optimizer.step()

    def update(self) -> None:
        self._good_steps = 0 if self._found_inf else self._good_steps + 1
        if self._found_inf:
            self._scale /= 2
        elif self._good_steps == self._growth_interval:
            self._scale, self._good_steps = 2 * self._scale, 0
        self._found_inf = None

    def get_scale(self) -> float:
        return self._scale


# A fixed scale


def tiny_loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), y, reduction="sum") / DIVISOR


def gradients_in_half(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor, scale: float) -> list[torch.Tensor]:
    """The gradients of the float32 weights by way of float16, with the scale taken out again."""
    loss = tiny_loss(logits_by_hand(model, x, torch.float16), y)
    scaled = torch.autograd.grad(loss * scale, list(model.parameters()))
    return [gradient / scale for gradient in scaled]


def logit_gradient_in_half(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The first gradient of backward() that is float16: that of the logits, without a scale."""
    logits = logits_by_hand(model, x, torch.float16)
    return torch.autograd.grad(tiny_loss(logits, y), logits)[0].float()


def train_at_scale(letters: Letters, scale: float | None, steps: int, width: int, seed: int) -> float:
    """The loss of the last ten of `steps` steps, per letter; in float32 where `scale` is None, else in float16."""
    torch.manual_seed(seed)
    model, losses = make_mlp(width, letters.x.device), []
    optimizer = GradientDescent(model.parameters(), LR * DIVISOR / BATCH_SIZE)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, y = letters.batch(BATCH_SIZE, generator)
        logits = model(x) if scale is None else logits_by_hand(model, x, torch.float16)
        loss, by = tiny_loss(logits, y), scale or 1.0
        model.zero_grad()
        (loss * by).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad /= by
        optimizer.step()
        losses.append(loss.detach() * DIVISOR / BATCH_SIZE)
    return torch.stack(losses)[-10:].mean().item()


def relative_error(found: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    """Length of the difference over the length of what is right, over all tensors together; NaN where one is not finite."""
    difference = sum((a - b).square().sum().item() for a, b in zip(found, right, strict=True))
    return math.sqrt(difference / sum(b.square().sum().item() for b in right))


def show_scale(lesson: Lesson) -> None:
    width, steps = lesson.pick(full=128, quick=64), lesson.pick(full=80, quick=60)
    lesson.section(
        "Loss scaling: one factor, every gradient",
        "By the chain rule a loss times S has gradients times S, all of them. So: multiply the loss, run backward() in "
        "float16, divide the gradients of the weights by S in float32, and step. Which S? The loss of this small network "
        "is divided by 2^24, as a mean over the pixels of 16 images of 1024 x 1024 would do, and the learning rate "
        "multiplied to match. Then it is trained with each scale, in float16.",
    )
    letters = load_letters(lesson.pick(full=6000, quick=1000), lesson.device)
    seed = lesson.options.seed
    torch.manual_seed(seed)
    model = make_mlp(width, lesson.device)
    x, y = letters.batch(BATCH_SIZE, torch.Generator().manual_seed(seed))
    weights = list(model.parameters())
    plain, scaled = (torch.autograd.grad(tiny_loss(model(x), y) * scale, weights) for scale in (1.0, 2.0**16))
    lesson.check("float32: gradients of the loss x 2^16, to the last bit",
                 all(torch.equal(a * 2**16, b) for a, b in zip(plain, scaled, strict=True)),
                 "a power of two changes the exponent and no digit")  # fmt: skip
    units = logit_gradient_in_half(model, x, y) / SMALLEST
    lesson.check("unscaled in float16 a wrong class has gradient 0", sorted(set(units.flatten().tolist())) == [-1, 0],
                 "and the right class -1 unit of 2^-24: no logit is ever pulled down")  # fmt: skip
    exponents = lesson.pick(full=list(range(0, 45, 4)), quick=[0, 16, 44])
    reference = train_at_scale(letters, None, steps, width, seed)
    losses = {exponent: train_at_scale(letters, 2.0**exponent, steps, width, seed)
              for exponent in lesson.progress(exponents, "scales")}  # fmt: skip
    errors = {
        exponent: relative_error(gradients_in_half(model, x, y, 2.0**exponent), plain) for exponent in range(0, 45, 2)
    }
    works = [exponent for exponent in exponents if abs(losses[exponent] - reference) < 0.1]
    lesson.table(
        [{"scale": f"2^{exponent}", "first gradient is off by": shown_share(errors[exponent]),
          f"loss after {steps} steps": shown_number(losses[exponent]),
          "": "as in float32" if exponent in works else ""} for exponent in exponents]
    )  # fmt: skip
    for exponent, loss in losses.items():
        if math.isfinite(loss):
            lesson.record("loss in float16", loss, "nat", exponent=exponent, steps=steps)
    lesson.check("without a scale it does not learn what float32 learns", not losses[0] < reference + 0.2,
                 f"loss {shown_number(losses[0])}, float32 reaches {reference:.3f}")  # fmt: skip
    lesson.check("with 2^16, PyTorch's first guess, it does", 16 in works, f"{losses[16]:.3f}")
    lesson.check("a scale of 2^44 overflows", not math.isfinite(errors[44]) and not math.isfinite(losses[44]),
                 f"gradient and loss are {shown_number(losses[44])}")  # fmt: skip
    lesson.figure("loss_scale_window", lambda axis: draw_window(axis, errors, works))
    lesson.shows(
        f"of the scales tried, 2^{min(works, default=16)} to 2^{max(works, default=16)} train as float32 does; below, "
        "gradients vanish, above, they overflow. The window is wide, so a rule may find it by trial. And it moves, with the "
        "size of the gradients, so the rule has to go on trying. The picture is loss_scale_window.png."
    )


def shown_number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "nan"


def shown_share(value: float) -> str:
    return percent(value) if math.isfinite(value) else "nan"


def draw_window(axis: Any, errors: Mapping[int, float], works: Sequence[int]) -> None:
    """Errors on a logarithmic axis; a gradient that is not finite stands as a cross on the upper edge."""
    top = 1000
    fine = {exponent: 100 * error for exponent, error in errors.items() if math.isfinite(error)}
    gone = [exponent for exponent in errors if exponent not in fine]
    axis.axvspan(min(works, default=16), max(works, default=16), color="#15803d", alpha=0.12, linewidth=0)
    middle = (min(works, default=16) + max(works, default=16)) / 2
    axis.annotate("trains as float32 does", (middle, 300), ha="center", va="center",
                  bbox={"facecolor": "white", "edgecolor": "none"})  # fmt: skip
    axis.plot(list(fine), list(fine.values()), linewidth=2)
    axis.plot(gone, [top] * len(gone), "X", color="black", markersize=9, clip_on=False)
    if gone:
        axis.annotate("overflow", (gone[len(gone) // 2], top), (0, -18), textcoords="offset points", ha="center")
    axis.axvline(16, color="#c2410c", linewidth=1.2)
    axis.annotate("GradScaler begins here", (16, 2), (6, 0), textcoords="offset points", color="#c2410c")
    axis.set(yscale="log", ylim=(0.02, top), xlim=(-1, max(errors) + 1), xlabel="scale, as a power of two",
             ylabel="gradient is off by, %", title="Gradients through float16, by the scale of the loss")  # fmt: skip


# The rule


def scaler_device(lesson: Lesson) -> torch.device:
    """PyTorch's GradScaler knows CUDA and the CPU."""
    return lesson.device if lesson.device.type == "cuda" else torch.device("cpu")


def run_with(scaler: Scaler, letters: Letters, planted: Sequence[int], steps: int, seed: int
             ) -> list[tuple[float, bool, list[torch.Tensor]]]:  # fmt: skip
    """For each step the scale before it, whether it was left out, and the weights after it.

    In the steps `planted` one pixel is 1e30: it overflows in float16, and so do the gradients.
    """
    torch.manual_seed(seed)
    model = make_mlp(16, letters.x.device)
    optimizer, generator = GradientDescent(model.parameters(), LR), torch.Generator().manual_seed(seed)
    history = []
    for step in range(steps):
        x, y = letters.batch(16, generator)
        if step in planted:
            x[0, 0, 0, 0] = 1e30
        before, scale = [weight.detach().clone() for weight in model.parameters()], scaler.get_scale()
        model.zero_grad()
        scaler.scale(F.cross_entropy(logits_by_hand(model, x, torch.float16).float(), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        after = [weight.detach().clone() for weight in model.parameters()]
        history.append((scale, all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), after))
    return history


def skipped_share(largest_scale: float, growth_interval: int, steps: int) -> float:
    """The rule alone, where every scale above `largest_scale` overflows: the share of steps that are left out."""
    weight = nn.Parameter(torch.zeros(1))
    scaler, optimizer = OwnGradScaler(largest_scale, growth_interval), GradientDescent([weight], 1.0)
    skipped = 0
    for _ in range(steps):
        overflows = scaler.get_scale() > largest_scale
        weight.grad = torch.tensor([math.inf if overflows else 0.0])
        scaler.step(optimizer)
        scaler.update()
        skipped += overflows
    return skipped / steps


def show_scaler(lesson: Lesson) -> None:
    lesson.section(
        "The rule of GradScaler, in thirty lines",
        "Begin high. Where a gradient is infinite or NaN, leave the step out and halve the scale; after many good steps "
        "in a row (PyTorch: 2000), double it. That is all of torch.amp.GradScaler, and OwnGradScaler here is the same in "
        "thirty lines. Both now train one network from a scale that is far too high, with an interval of 5, and with a "
        "pixel of 1e30 in two of the batches, as a broken file may bring.",
    )
    device = scaler_device(lesson)
    letters, seed = load_letters(1000, device), lesson.options.seed
    steps, planted, first, interval = 40, (20, 21), 2.0**32, 5
    own = run_with(OwnGradScaler(first, interval), letters, planted, steps, seed)
    library = torch.amp.GradScaler(device.type, init_scale=first, growth_interval=interval)
    theirs = run_with(library, letters, planted, steps, seed)
    exponents = [int(math.log2(scale)) for scale, _, _ in own]
    lesson.drawing(draw_scales(exponents, [skipped for _, skipped, _ in own]))
    lesson.check("the same scale before every step", [scale for scale, _, _ in own] == [scale for scale, _, _ in theirs],
                 f"2^{exponents[0]} to 2^{min(exponents)} to 2^{exponents[-1]}")  # fmt: skip
    left_out = [step for step, (_, skipped, _) in enumerate(own) if skipped]
    lesson.check("the same steps are left out", left_out == [step for step, (_, skipped, _) in enumerate(theirs) if skipped],
                 f"{len(left_out)} of {steps}")  # fmt: skip
    pairs = [
        (a, b)
        for (_, _, ours), (_, _, right) in zip(own, theirs, strict=True)
        for a, b in zip(ours, right, strict=True)
    ]
    lesson.check("the same weights after every step, to the last bit", all(torch.equal(a, b) for a, b in pairs),
                 f"{len(pairs)} tensors")  # fmt: skip
    is_sound = all(weight.isfinite().all() for weight in own[-1][2])
    lesson.check("a batch with 1e30 in it changes no weight", set(planted) <= set(left_out) and is_sound,
                 f"steps {planted[0]} and {planted[1]} are left out")  # fmt: skip
    searched = next(step for step, (_, skipped, _) in enumerate(own) if not skipped)
    share = skipped_share(2.0**20, 20, 21 * 50)
    lesson.check("at rest one step in growth_interval + 1 is lost", math.isclose(share, 1 / 21),
                 f"{percent(share)} for an interval of 20; {percent(1 / 2001)} for 2000")  # fmt: skip
    lesson.shows(
        f"the first {searched} steps were lost in the search from 2^{exponents[0]} downwards, and later the two with the bad "
        "pixel and some at the edge. An infinite gradient at the start is how GradScaler works and no bug; a scale that "
        "falls and falls is one: then a NaN comes from your model, and the scaler only hides it. Write the scale to your "
        "log, and save scaler.state_dict() with each checkpoint."
    )


def draw_scales(exponents: Sequence[int], skipped: Sequence[bool]) -> str:
    """The scale before each step by height, × where the step was left out."""
    levels = sorted(set(exponents), reverse=True)
    lines = []
    for level in levels:
        marks = ("×" if out else "o" if at == level else " " for at, out in zip(exponents, skipped, strict=True))
        row = "".join(mark if at == level else " " for mark, at in zip(marks, exponents, strict=True))
        lines.append(f"2^{level:<3} {row}".rstrip())
    return "\n".join([*lines, f"step  {'0':<10}{'10':<10}{'20':<10}30", "      × left out   o taken"])


# The order of the calls


def clip_then_step(scaler: Scaler, optimizer: GradientDescent, max_norm: float) -> None:
    """The mistake: the gradients still carry the scale, so nearly all of them are clipped, to almost nothing."""
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_norm)
    scaler.step(optimizer)


def unscale_clip_then_step(scaler: Scaler, optimizer: GradientDescent, max_norm: float) -> None:
    """Right: step() sees that the scale was taken out already, and does not do it again."""
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_norm)
    scaler.step(optimizer)


def update_length(clip: Any, letters: Letters, max_norm: float, seed: int) -> float:
    """How far one step with the learning rate 1 moves the weights: the length of the gradient that it used."""
    torch.manual_seed(seed)
    model, scaler = make_mlp(16, letters.x.device), OwnGradScaler(2.0**12)
    optimizer = GradientDescent(model.parameters(), 1.0)
    before = [weight.detach().clone() for weight in model.parameters()]
    loss = F.cross_entropy(logits_by_hand(model, letters.x[:64], torch.float16).float(), letters.y[:64])
    scaler.scale(loss).backward()
    clip(scaler, optimizer, max_norm)
    moved = sum((b - a).square().sum().item() for a, b in zip(before, model.parameters(), strict=True))
    return math.sqrt(moved)


def step_scheduler_always(scaler: Scaler, scale_before: float) -> bool:
    """The mistake: the schedule moves on although the optimizer stood still."""
    return True


def step_scheduler_with_the_optimizer(scaler: Scaler, scale_before: float) -> bool:
    """Right: the scale falls only where the step was left out."""
    return scaler.get_scale() >= scale_before


def rates_used(moves_on: Any, first_scale: float, largest_scale: float, warmup: Sequence[float]) -> list[float]:
    """The learning rates with which the optimizer really stepped during a warm-up of that many calls."""
    weight = nn.Parameter(torch.zeros(1))
    scaler, optimizer, used, at = OwnGradScaler(first_scale), GradientDescent([weight], 0.0), [], 0
    for _ in warmup:
        weight.grad = torch.tensor([math.inf if scaler.get_scale() > largest_scale else 1.0])
        before, scale = weight.item(), scaler.get_scale()
        optimizer.param_groups[0]["lr"] = warmup[at]
        scaler.step(optimizer)
        scaler.update()
        if weight.item() != before:
            used.append(warmup[at])
        at += bool(moves_on(scaler, scale))
    return used


def show_order(lesson: Lesson) -> None:
    lesson.section(
        "Unscale before you clip, and a schedule that waits",
        "Between backward() and step() the gradients carry the scale, and a step may be left out. Two habits of the usual "
        "training loop are wrong there, and nobody complains. Clipping by norm, as hooks_and_gradients of project 01 builds "
        "it, compares with a number meant for true gradients; a learning-rate schedule counts steps that never were.",
    )
    letters, seed, max_norm = load_letters(1000, lesson.device), lesson.options.seed, 0.1
    right, wrong = (update_length(clip, letters, max_norm, seed) for clip in (unscale_clip_then_step, clip_then_step))
    lesson.table(
        [{"order": "unscale_, clip, step", "gradient in the step": right},
         {"order": "clip, step", "gradient in the step": wrong}]
    )  # fmt: skip
    lesson.check("unscaled first: the step uses max_norm", math.isclose(right, max_norm, rel_tol=1e-3),
                 f"length {significant(right)}, max_norm {max_norm:g}")  # fmt: skip
    lesson.check("clipped first: max_norm / scale, so it stands still", math.isclose(wrong, max_norm / 2**12, rel_tol=0.01),
                 f"{significant(wrong)}: {right / wrong:,.0f} times too short, the scale is {2**12:,}")  # fmt: skip
    weight = nn.Parameter(torch.ones(1))
    optimizer: Any = GradientDescent([weight], LR)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(weight.square().sum()).backward()
    scaler.unscale_(optimizer)
    answer = complaint(lambda: scaler.unscale_(optimizer))
    lesson.check(
        "unscale_ twice is refused, so it cannot go wrong", "already been called" in answer, answer.partition(":")[0]
    )
    warmup = [0.01 * (step + 1) for step in range(8)]
    always, waiting = (rates_used(moves_on, 2.0**16, 2.0**13, warmup)
                       for moves_on in (step_scheduler_always, step_scheduler_with_the_optimizer))  # fmt: skip
    lesson.text(
        "A warm-up from 0.01 to 0.08 whose first three steps are left out, as happens while the scale is searched:"
    )
    lesson.items({"scheduler.step() always": f"the rates used are {', '.join(f'{rate:g}' for rate in always)}",
                  "only after a step": f"the rates used are {', '.join(f'{rate:g}' for rate in waiting)}"})  # fmt: skip
    lesson.check("stepped always: the gentle beginning is missed", always == warmup[3:], f"it begins at {always[0]:g}")
    lesson.check("stepped with the optimizer: every rate in its turn", waiting == warmup[: len(waiting)],
                 "left out where scaler.get_scale() < scale_before")  # fmt: skip
    lesson.shows(
        f"the wrong order made a step {right / wrong:,.0f} times too short, and training would have gone on, almost "
        "without moving. In order: scale, backward, unscale_, clip, step, update; then the scheduler, if the scale did "
        "not fall. When PyTorch warns that lr_scheduler.step() came before optimizer.step(), and your calls are in order, "
        "the first step was left out."
    )
