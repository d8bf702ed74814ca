"""The lines of the loop in the wrong place, the factor that nobody divided by, and a schedule that counts parts."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from pytorch_02_training_optimization.src.accumulation.task import (
    BATCH_SIZE,
    PARTS,
    RULES,
    draw_batches,
    gradients_of,
    joined,
    make_model,
    off_by,
)
from pytorch_02_training_optimization.src.letters.rows import load_letters
from shared.lesson import Lesson
from shared.units import percent

import torch
import torch.nn.functional as F
from torch import nn

Fill = Callable[[nn.Module, torch.Tensor, torch.Tensor, int], torch.Tensor]


def fill_gradients(model: nn.Module, x: torch.Tensor, y: torch.Tensor, parts: int) -> torch.Tensor:
    """Right: .grad is the gradient of the mean loss over the batch, in so many equal parts. Returns that loss."""
    model.zero_grad()
    total = torch.zeros((), device=x.device, dtype=x.dtype)
    for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        loss = F.cross_entropy(model(some_x), some_y) / parts
        loss.backward()
        total += loss.detach()
    return total


def fill_without_dividing(model: nn.Module, x: torch.Tensor, y: torch.Tensor, parts: int) -> torch.Tensor:
    """The mistake: a sum of means. The gradient is as many times too long as there are parts."""
    model.zero_grad()
    total = torch.zeros((), device=x.device, dtype=x.dtype)
    for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        loss = F.cross_entropy(model(some_x), some_y)
        loss.backward()
        total += loss.detach() / parts
    return total


def clear_before_each_part(model: nn.Module, x: torch.Tensor, y: torch.Tensor, parts: int) -> torch.Tensor:
    """The mistake: zero_grad() inside the loop over the parts. Only the last one is left."""
    total = torch.zeros((), device=x.device, dtype=x.dtype)
    for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        model.zero_grad()
        loss = F.cross_entropy(model(some_x), some_y) / parts
        loss.backward()
        total += loss.detach()
    return total


def never_clear(model: nn.Module, x: torch.Tensor, y: torch.Tensor, parts: int) -> torch.Tensor:
    """The mistake: no zero_grad() at all, since gradients are meant to add up. The last step's are still there."""
    total = torch.zeros((), device=x.device, dtype=x.dtype)
    for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        loss = F.cross_entropy(model(some_x), some_y) / parts
        loss.backward()
        total += loss.detach()
    return total


LOOPS: dict[str, Fill] = {
    "as it should be": fill_gradients,
    "not divided by the parts": fill_without_dividing,
    "zero_grad() before each part": clear_before_each_part,
    "no zero_grad() at all": never_clear,
}


def show_places(lesson: Lesson) -> None:
    lesson.section(
        "Three lines in the wrong place",
        "The loop has an outer part, which runs for each step, and an inner one, for each part. Each of these three mistakes "
        "is one line that is missing or stands on the wrong level; each trains, and none gives an error. Below is the "
        "gradient that the optimizer would get in the second step, compared with the right one.",
    )
    device, seed = lesson.device, lesson.options.seed
    letters = load_letters(1000).to(device)
    model = make_model(lesson.pick(full=128, quick=32), seed, device)
    first, second = draw_batches(letters, 2, seed)
    found, logged = {}, {}
    for name, fill in LOOPS.items():
        model.zero_grad()
        fill(model, *first, PARTS)  # no step in between: the weights are the same for all
        logged[name] = fill(model, *second, PARTS).item()
        found[name] = joined(gradients_of(model))
    right_name, undivided, cleared, kept = LOOPS
    right = found[right_name]
    lesson.table(
        [{"loop": name, "length, of the right one's": f"{found[name].norm() / right.norm():.2f}x",
          "cosine": f"{found[name] @ right / (found[name].norm() * right.norm()):.4f}",
          "loss in the log": f"{logged[name]:.4f}"} for name in LOOPS]
    )  # fmt: skip
    fill_gradients(model, *first, 1)
    before = joined(gradients_of(model))
    fill_gradients(model, second[0][-BATCH_SIZE // PARTS :], second[1][-BATCH_SIZE // PARTS :], 1)
    last = joined(gradients_of(model))
    lesson.check("not divided: the gradient times the number of parts", off_by(found[undivided], PARTS * right) < 1e-5,
                 f"{found[undivided].norm() / right.norm():.4f} times as long, the same direction")  # fmt: skip
    lesson.check("cleared before each part: an eighth of the last part's", off_by(found[cleared], last / PARTS) < 1e-5,
                 f"{BATCH_SIZE - BATCH_SIZE // PARTS} of {BATCH_SIZE} letters are computed for nothing")  # fmt: skip
    lesson.check("never cleared: the step before is in it", off_by(found[kept], before + right) < 1e-5,
                 "and every step before that")  # fmt: skip
    lesson.check("all four write the same loss into the log", max(logged.values()) - min(logged.values()) < 1e-5,
                 f"{logged[right_name]:.4f} to four digits")  # fmt: skip
    lesson.shows(
        f"gradients that are {found[undivided].norm() / right.norm():.1f}, {found[cleared].norm() / right.norm():.2f} and "
        f"{found[kept].norm() / right.norm():.2f} times as long stand behind one and the same loss. So test the loop and not "
        "the log: one step in one part and one step in eight must move the weights alike, in float64 and without dropout."
    )


# The factor


def train(rule_name: str, fill: Fill, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], width: int, seed: int,
          max_norm: float = math.inf) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The model, its losses (steps,) and the gradient norms (steps,) before clipping, in `PARTS` parts."""
    device = batches[0][0].device
    model = make_model(width, seed, device, batches[0][0].dtype)
    make, lr = RULES[rule_name]
    rule, losses, norms = make(model.parameters(), lr), [], []
    for x, y in batches:
        losses.append(fill(model, x, y, PARTS))
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), max_norm))
        rule.step()
    return model, torch.stack(losses).cpu(), torch.stack(norms).cpu()


def show_factor(lesson: Lesson) -> None:
    steps, width = lesson.pick(full=150, quick=20), lesson.pick(full=128, quick=32)
    lesson.section(
        "Forgetting to divide, and who hides it",
        f"A gradient {PARTS} times too long is a learning rate {PARTS} times too high: for SGD, with momentum or without. "
        "Adam divides the gradient by its own size, so there the factor cancels and the mistake stays in the code for years. "
        f"Until somebody adds clipping, whose max_norm is now reached {PARTS} times sooner, or goes back to SGD.",
    )
    device, seed = lesson.device, lesson.options.seed
    batches = draw_batches(load_letters(lesson.pick(full=4000, quick=1000)).to(device), steps, seed)
    table, moved, ended, clipped = [], {}, {}, {}
    for rule in RULES:
        start = joined(make_model(width, seed, device).parameters())
        right, losses, norms = train(rule, fill_gradients, batches, width, seed)
        wrong, wrong_losses, _ = train(rule, fill_without_dividing, batches, width, seed)
        path = joined(right.parameters()) - start
        moved[rule] = ((joined(wrong.parameters()) - start - path).norm() / path.norm()).item()
        ended[rule] = losses[-10:].mean().item(), wrong_losses[-10:].mean().item()
        max_norm = 2 * norms.max().item()  # never reached by the right gradient
        _, _, wrong_norms = train(rule, fill_without_dividing, batches, width, seed, max_norm)
        clipped[rule] = (wrong_norms > max_norm).float().mean().item()
        table.append({"optimizer": rule, "loss, divided": ended[rule][0], "loss, not divided": ended[rule][1],
                      "weights differ by": percent(moved[rule]), "steps clipped": percent(clipped[rule])})  # fmt: skip
    lesson.table(table)
    lesson.check("with momentum it is another training", moved["momentum"] > 0.3,
                 f"{percent(moved['momentum'])} of the way that the weights went")  # fmt: skip
    lesson.check("with Adam hardly anybody would notice", moved["Adam"] < 0.05, percent(moved["Adam"]))
    lesson.check("a limit that never acted now cuts most steps", min(clipped.values()) > 0.5,
                 f"{percent(min(clipped.values()))} at 2 x the largest right norm")  # fmt: skip
    model = make_model(width, seed, device)
    norms_of_one = []
    for fill in (fill_gradients, fill_without_dividing):
        fill(model, *batches[0], PARTS)
        norms_of_one.append(nn.utils.get_total_norm(gradients_of(model)).item())
    lesson.check("the norm tells: print it beside that of one batch",
                 abs(norms_of_one[1] / norms_of_one[0] / PARTS - 1) < 1e-4,
                 f"{norms_of_one[0]:.3f} and {norms_of_one[1]:.3f}, {PARTS} times")  # fmt: skip
    lesson.shows(
        f"after {steps} steps the loss is {ended['Adam'][0]:.3f} or {ended['Adam'][1]:.3f} with Adam, "
        f"{ended['momentum'][0]:.3f} or {ended['momentum'][1]:.3f} with momentum. A loss that looks right proves nothing "
        "about the factor. Divide each part's loss, or sum over samples and divide by how many there are, and compare norms."
    )


# The schedule


def cosine_rate(calls: int, total: int) -> float:
    """The factor of torch.optim.lr_scheduler.CosineAnnealingLR(T_max=total) after so many calls of its step()."""
    return (1 + math.cos(math.pi * calls / total)) / 2


def rates_by_step(steps: int) -> list[float]:
    """Right: scheduler.step() once after each optimizer.step()."""
    return [cosine_rate(step, steps) for step in range(steps)]


def rates_by_part(steps: int, parts: int) -> list[float]:
    """The mistake: scheduler.step() in the inner loop, while T_max counts the steps of the optimizer."""
    return [cosine_rate(step * parts, steps) for step in range(steps)]


def show_schedule(lesson: Lesson) -> None:
    steps = 400
    lesson.section(
        "A schedule that runs eight times too fast",
        "A scheduler counts the calls of its step(), nothing else. Stand it in the inner loop, and it counts parts. The "
        f"cosine of {steps} steps then reaches 0 after {steps // PARTS}, and as PyTorch's cosine is periodic it comes up "
        "again. Warm-up suffers the same: the high learning rate comes before Adam's averages have settled.",
    )
    right, wrong = rates_by_step(steps), rates_by_part(steps, PARTS)
    shown = (0, 25, 50, 75, 100, 200, 300, 399)
    lesson.table([{"step": step, "lr, of its highest": f"{right[step]:.3f}", "stepped by part": f"{wrong[step]:.3f}"}
                  for step in shown])  # fmt: skip
    zero = min(range(steps), key=lambda step: wrong[step])
    lesson.check("by part: the rate is 0 after an eighth of the way", zero == steps // PARTS and wrong[zero] < 1e-12,
                 f"step {zero} of {steps}, where {right[zero]:.2f} is due")  # fmt: skip
    top = next(step for step in range(zero, steps) if wrong[step] > 1 - 1e-12)
    lesson.check("then it rises to the top again", top == 2 * zero, f"at step {top}, and {PARTS // 2} times in all")
    end = wrong[-1]
    lesson.check(
        "and the last step is taken at nearly the highest rate", end > 0.99, f"{end:.3f}; due is {right[-1]:.5f}"
    )
    lesson.figure("schedule_by_part", lambda axis: draw_schedule(axis, right, wrong))
    used = sum(wrong) / sum(right)
    lesson.shows(
        f"the mean rate is the same ({used:.2f} times), so its average in a log shows nothing. Count the steps that "
        f"the optimizer will take, ceil(parts of an epoch / {PARTS}) x epochs, give the scheduler that number, and call it "
        "beside optimizer.step(). lr_schedules has the other traps; the picture is schedule_by_part.png."
    )


def draw_schedule(axis: Any, right: Sequence[float], wrong: Sequence[float]) -> None:
    axis.plot(right, marker="", linewidth=2.5, label="scheduler.step() once a step")
    axis.plot(wrong, marker="", linewidth=1.2, label=f"once a part, {PARTS} times a step")
    axis.set(xlabel="step of the optimizer", ylabel="learning rate, of the highest",
             title="A cosine that counts parts", ylim=(-0.03, 1.15))  # fmt: skip
    axis.legend(fontsize=9, loc="upper right", ncols=2)
