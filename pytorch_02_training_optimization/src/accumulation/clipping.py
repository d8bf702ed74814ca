"""Clipping: once, on the whole gradient; by norm and by value, written out; and in few operations, without a wait."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from pytorch_02_training_optimization.src.accumulation.task import (
    BATCH_SIZE,
    CPU,
    PARTS,
    cosine,
    gradients_of,
    joined,
    make_model,
)
from pytorch_02_training_optimization.src.letters.rows import load_letters
from shared.agreement import deviation
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.traps import operations
from shared.units import percent, significant

import torch
import torch.nn.functional as F
from torch import nn

Gradients = Sequence[torch.Tensor]


# Parts


def gradient_of_each_part(model: nn.Module, x: torch.Tensor, y: torch.Tensor, parts: int) -> torch.Tensor:
    """(parts, all weights): the gradient of each part's mean loss."""
    rows = []
    for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        model.zero_grad()
        F.cross_entropy(model(some_x), some_y).backward()
        rows.append(joined(gradients_of(model)))
    return torch.stack(rows)


def shortened(gradient: torch.Tensor, max_norm: float) -> torch.Tensor:
    return gradient * min(1.0, max_norm / float(gradient.norm()))


def clip_the_sum(rows: torch.Tensor, max_norm: float) -> torch.Tensor:
    """Right: once, when the gradient is whole."""
    return shortened(rows.mean(0), max_norm)


def clip_after_each_part(rows: torch.Tensor, max_norm: float) -> torch.Tensor:
    """The mistake: .grad is clipped in the inner loop, so what was added first is cut down again and again."""
    total = torch.zeros_like(rows[0])
    for row in rows:
        total = shortened(total + row / len(rows), max_norm)
    return total


def clip_each_part_alone(rows: torch.Tensor, max_norm: float) -> torch.Tensor:
    """Another rule: each part's own gradient is clipped before it is added.

    With parts of one sample, and noise on the sum, it is DP-SGD (Abadi et al. 2016, algorithm 1): no sample counts for
    more than max_norm.
    """
    return torch.stack([shortened(row, max_norm) for row in rows]).mean(0)


CLIPS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "the sum, once": clip_the_sum,
    ".grad after each part": clip_after_each_part,
    "each part alone, then the sum": clip_each_part_alone,
}


def shares_after_each_part(rows: torch.Tensor, max_norm: float) -> list[float]:
    """With what share of its gradient each part is in the sum, where .grad is clipped after each."""
    total, shares = torch.zeros_like(rows[0]), [0.0] * len(rows)
    for i, row in enumerate(rows):
        grown = total + row / len(rows)
        total = shortened(grown, max_norm)
        scale = float(total.norm() / grown.norm())
        shares = [share * scale for share in shares[:i]] + [scale] + shares[i + 1 :]
    return shares


def show_parts(lesson: Lesson) -> None:
    lesson.section(
        "Clip the sum, not the parts",
        "clip_grad_norm_ belongs behind the last backward() of a step; hooks_and_gradients of project 01 puts it into every "
        "wrong place. In the inner loop it cuts what was added first again and again; and who clips each part by itself "
        "meets longer gradients, since the noise of a part has not averaged out yet. Here 64 letters in 8 parts, and a "
        "max_norm of half the length of the whole gradient.",
    )
    letters = load_letters(1000)
    model = make_model(lesson.pick(full=128, quick=32), lesson.options.seed, CPU)
    x, y = letters.x[:BATCH_SIZE], letters.y[:BATCH_SIZE]
    rows = gradient_of_each_part(model, x, y, PARTS)
    whole = rows.mean(0)
    length = float(whole.norm())
    max_norm = length / 2
    shares = shares_after_each_part(rows, max_norm)
    lesson.table([{"part": i + 1, "length, of the batch's": f"{row.norm() / length:.2f}x",
                   "left of it, .grad clipped after each part": percent(shares[i])} for i, row in enumerate(rows)])  # fmt: skip
    broken = rows.clone()
    broken[2] *= 100
    table, likeness, lengths = [], {}, {}
    for name, clip in CLIPS.items():
        found, after_bad = clip(rows, max_norm), clip(broken, max_norm)
        likeness[name] = cosine(found, whole), cosine(after_bad, whole)
        lengths[name] = float(found.norm() / length)
        table.append({"clipped": name, "length": f"{lengths[name]:.2f}x", "cosine": f"{likeness[name][0]:.3f}",
                      "cosine, part 3 x 100": f"{likeness[name][1]:.3f}"})  # fmt: skip
    lesson.table(table)
    once, _, alone = CLIPS
    lengths_of_parts = rows.norm(dim=1) / length
    lesson.check("on average a part is longer than the batch", float(lengths_of_parts.mean()) > 1,
                 f"{lengths_of_parts.mean():.2f} times, always so: the triangle inequality")  # fmt: skip
    lesson.check("once: half as long, in the same direction", likeness[once][0] > 1 - 1e-9
                 and abs(lengths[once] - 0.5) < 1e-9, f"length {lengths[once]:.2f}, cosine {likeness[once][0]:.3f}")  # fmt: skip
    rebuilt = (rows * torch.tensor(shares, dtype=rows.dtype).unsqueeze(1)).mean(0)
    ordered = all(a <= b + 1e-12 for a, b in pairwise(shares))
    lesson.check("after each part: the earlier, the less is left",
                 ordered and shares[0] < 0.9 * shares[-1] and deviation(rebuilt, clip_after_each_part(rows, max_norm)) < 1e-9,
                 f"{percent(shares[0])} of the first, {percent(shares[-1])} of the last")  # fmt: skip
    lesson.check(
        "each alone: shorter than asked for", lengths[alone] < 0.45, f"{lengths[alone]:.2f} of the length, not 0.50"
    )
    lesson.check("but one bad part cannot turn it", likeness[alone][1] > likeness[once][1] + 0.1,
                 f"cosine {likeness[alone][1]:.2f}; clipped once, {likeness[once][1]:.2f}")  # fmt: skip
    lesson.shows(
        f"in the inner loop the limit left {percent(shares[0])} of the first part and {percent(shares[-1])} of the last. Clip "
        "once. And know what that does not do: with a bad part in it, the clipped step has the right length and a cosine of "
        f"{likeness[once][1]:.2f} with the right direction. Clipping limits the harm; it does not find the good samples."
    )


# By norm and by value


@torch.no_grad()
def clip_by_norm(parameters: Iterable[torch.Tensor], max_norm: float, order: float = 2.0) -> torch.Tensor:
    """All gradients times min(1, max_norm / norm), the norm being that of all of them as one vector.

    Pascanu et al. 2013, algorithm 1, as torch.nn.utils.clip_grad_norm_ has it: 1e-6 against 0 / 0, parameters without
    gradient left out, and the norm from before returned, 0 where there is no gradient at all.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.tensor(0.0)
    norms = [torch.linalg.vector_norm(gradient, order) for gradient in gradients]
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms), order)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale)
    return norm


@torch.no_grad()
def clip_by_value(parameters: Iterable[torch.Tensor], limit: float) -> None:
    """Each number of each gradient into [-limit, limit], as torch.nn.utils.clip_grad_value_."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.clamp_(-limit, limit)


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """In degrees, exact for small angles too, where the arc cosine is not."""
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))


def with_gradients(gradients: Sequence[torch.Tensor | None]) -> list[nn.Parameter]:
    """Parameters with copies of these as .grad; one of shape (3,) for each None."""
    parameters = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros(3) if gradient is None else torch.zeros_like(gradient))
        parameter.grad = None if gradient is None else gradient.clone()
        parameters.append(parameter)
    return parameters


def hard_cases(device: torch.device) -> dict[str, list[torch.Tensor | None]]:
    plain = [torch.randn(20, 30, device=device), torch.randn(20, device=device)]
    return {
        "two gradients": [*plain],
        "one parameter without": [plain[0], None, plain[1]],
        "a scalar among them": [plain[0], torch.tensor(2.0, device=device)],
        "all zeros": [torch.zeros(4, device=device)],
        "inf in it": [plain[0], torch.tensor([1.0, math.inf], device=device)],
        "NaN in it": [plain[0], torch.tensor([1.0, math.nan], device=device)],
    }


def clip_both_ways(gradients: Sequence[torch.Tensor | None], max_norm: float, order: float) -> float:
    """How far our clipping is from the library's: the larger of norm and gradients."""
    own, library = with_gradients(gradients), with_gradients(gradients)
    norm, right = clip_by_norm(own, max_norm, order), nn.utils.clip_grad_norm_(library, max_norm, order)
    pairs = zip(own, library, strict=True)
    return max(deviation(norm, right), *(deviation(a.grad, b.grad) for a, b in pairs
                                         if a.grad is not None and b.grad is not None))  # fmt: skip


def show_clipping(lesson: Lesson) -> None:
    lesson.section(
        "By norm and by value",
        "By norm, the whole gradient is multiplied by one number, so the step is shorter and goes the same way. By value, each "
        "number is cut at a limit of its own, so large ones lose and small ones stay: the step turns. By how much? From 0 for a "
        "limit that never acts up to the angle of sign descent, where every weight moves by the same amount.",
    )
    cases = hard_cases(lesson.device)
    off = {name: max(clip_both_ways(gradients, max_norm, order) for max_norm in (0.01, 1.0, 1e4)
                     for order in (1.0, 2.0, 3.0, math.inf)) for name, gradients in cases.items()}  # fmt: skip
    lesson.check("by norm, written out, is clip_grad_norm_", max(off.values()) < 1e-5,
                 f"{len(cases)} cases, norms 1, 2, 3 and inf: to {max(off.values()):.0e}")  # fmt: skip
    same = []
    for gradients in cases.values():
        own, library = with_gradients(gradients), with_gradients(gradients)
        clip_by_value(own, 0.5)
        nn.utils.clip_grad_value_(library, 0.5)
        same += [deviation(a, b) == 0 for a, b in zip(gradients_in(own), gradients_in(library), strict=True)]
    lesson.check("by value, written out, is clip_grad_value_", all(same), f"to the last bit in {len(same)} tensors")
    broken = with_gradients(cases["inf in it"])
    clip_by_norm(broken, 1.0)
    values = joined(gradients_in(broken))
    lesson.check("inf by norm: NaN there, and 0 everywhere else", int(values.isnan().sum()) == 1
                 and float(values.nan_to_num().abs().sum()) == 0, "inf x 0; the step would write the NaN")  # fmt: skip
    capped = with_gradients(cases["inf in it"])
    clip_by_value(capped, 1.0)
    lesson.check("inf by value: cut to the limit, as if it were one", bool(joined(gradients_in(capped)).isfinite().all()),
                 "a broken batch is hidden, and takes part in the step")  # fmt: skip
    letters = load_letters(1000).to(lesson.device)
    model = make_model(lesson.pick(full=128, quick=32), lesson.options.seed, lesson.device)
    F.cross_entropy(model(letters.x[:BATCH_SIZE]), letters.y[:BATCH_SIZE]).backward()
    gradient = joined(gradients_of(model))
    shares = (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0)
    limits = {share: float(gradient.abs().quantile(1 - share)) if share < 1 else 1e-9 for share in shares}
    angles = {share: angle(gradient.clamp(-limit, limit), gradient) for share, limit in limits.items()}
    short = {share: float(gradient.clamp(-limit, limit).norm()) for share, limit in limits.items()}
    turned = {share: angle(shortened(gradient, norm), gradient) for share, norm in short.items()}
    lesson.text("The gradient of 64 letters, by value at ever lower limits, and by norm to the same length:")
    lesson.table([{"numbers cut": percent(share), "limit": significant(limits[share], 2),
                   "length left": percent(short[share] / float(gradient.norm())),
                   "by value: turned by": f"{angles[share]:.1f} degrees", "by norm": f"{turned[share]:.1f} degrees"}
                  for share in shares])  # fmt: skip
    lesson.check("by norm the direction is kept at any length", max(turned.values()) < 1e-5, "0 degrees")
    signs = math.degrees(
        math.acos(float(gradient.abs().sum() / (math.sqrt(int((gradient != 0).sum())) * gradient.norm())))
    )
    lesson.check("by value the lowest limit is sign descent", abs(angles[1.0] - signs) < 0.1,
                 f"{angles[1.0]:.1f} degrees; from the sum and the length of |g|: {signs:.1f}")  # fmt: skip
    lesson.check("by value it turns further with every cut", all(angles[a] <= angles[b] + 1e-9 for a, b in
                                                                 pairwise(shares)),
                 f"{angles[0.01]:.1f} degrees with 1 % of the numbers cut, {angles[0.5]:.1f} with half")  # fmt: skip
    lesson.figure("clipping_directions", lambda *axes: draw_directions(axes, limits, angles), columns=2)
    lesson.shows(
        f"the same shortening to {percent(short[0.5] / float(gradient.norm()))} costs {angles[0.5]:.0f} degrees by value and "
        "none by norm. Take the norm by default. By value is for single numbers that run away, as in recurrent networks of "
        "old; and whoever wants sign descent should ask for it by name. The picture is clipping_directions.png."
    )


def gradients_in(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def draw_directions(axes: Sequence[Any], limits: dict[float, float], angles: dict[float, float]) -> None:
    """Left: one gradient of two weights, clipped in both ways. Right: the angle in the network."""
    left, right = axes
    gradient, limit = torch.tensor([3.0, 1.0]), 1.0
    arrows = {"gradient": (gradient, "#525252", "-"), "by norm 1": (shortened(gradient, limit), "#0b5fa5", "-"),
              "by value 1": (gradient.clamp(-limit, limit), "#c2410c", "--")}  # fmt: skip
    turn = torch.linspace(0, 2 * math.pi, 200)
    left.plot(turn.cos(), turn.sin(), color="#0b5fa5", linewidth=0.8, linestyle="-", marker="")
    left.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="#c2410c", linewidth=0.8, linestyle="--", marker="")
    for name, (arrow, color, style) in arrows.items():
        left.annotate("", arrow.tolist(), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2,
                                                              "linestyle": style, "shrinkA": 0, "shrinkB": 0})  # fmt: skip
        degrees = angle(arrow, gradient)
        note = name if name == "gradient" else f"{name}: {degrees:.0f}°"
        offset = {"gradient": (-70, 4), "by norm 1": (14, -14), "by value 1": (-30, 8)}[name]
        left.annotate(note, arrow.tolist(), offset, textcoords="offset points", color=color)
    left.set(xlim=(-1.3, 3.3), ylim=(-1.3, 1.9), aspect="equal", xlabel="gradient of weight 1",
             ylabel="gradient of weight 2", title="Two weights: shorter, or turned")  # fmt: skip
    shares = [share for share in limits if share > 0]
    right.plot([100 * share for share in shares], [angles[share] for share in shares], label="by value")
    right.plot([100 * share for share in shares], [0] * len(shares), label="by norm, to the same length")
    right.set(xscale="log", xlabel="numbers of the gradient that are cut, %", ylabel="turned by, degrees",
              title="In a network for letters")  # fmt: skip
    right.legend(fontsize=9, loc="upper left")


# Operations and waits


def clip_and_ask(parameters: Iterable[torch.Tensor], max_norm: float) -> None:
    """The mistake: a question in Python for every tensor, and one for the norm. On a GPU each waits for all work queued."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    if norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)


def count_operations(
    clip: Callable[[list[nn.Parameter]], object], tensors: int, device: torch.device
) -> tuple[int, int]:
    """Operations sent to the device, and how many of them Python waits for, for so many gradients."""
    parameters = with_gradients([torch.ones(8, 8, device=device) for _ in range(tensors)])
    sent = operations(clip, parameters)
    return len(sent), sum(name.startswith("_local_scalar_dense") for name in sent)


def show_operations(lesson: Lesson) -> None:
    lesson.section(
        "Clipping in a handful of operations",
        "Clipping runs in every step, over every tensor of the network, so it should cost little. foreach functions take a list "
        "of tensors at once: few launches, however many layers. And nothing may ask for the norm in Python: the GPU would run "
        "dry while it waits for the answer. So the library multiplies even where the factor is 1.",
    )
    device = lesson.device if lesson.device.type == "cuda" else CPU  # MPS has no foreach
    ways: dict[str, Callable[[list[nn.Parameter]], object]] = {
        "asked tensor by tensor": lambda parameters: clip_and_ask(parameters, 1.0),
        "clip_by_norm, as above": lambda parameters: clip_by_norm(parameters, 1.0),
        "clip_grad_norm_(foreach=False)": lambda parameters: nn.utils.clip_grad_norm_(parameters, 1.0, foreach=False),
        "clip_grad_norm_()": lambda parameters: nn.utils.clip_grad_norm_(parameters, 1.0),
        "… error_if_nonfinite=True": lambda parameters: nn.utils.clip_grad_norm_(
            parameters, 1.0, error_if_nonfinite=True
        ),
    }
    few, many = 10, 200
    found = {name: [count_operations(clip, tensors, device) for tensors in (few, many)] for name, clip in ways.items()}
    lesson.table([{"way": name, f"operations, {few} tensors": small[0], f"{many} tensors": large[0],
                   "waits, 200 tensors": large[1]} for name, (small, large) in found.items()])  # fmt: skip
    for name, (_, large) in found.items():
        lesson.record("operations of clipping", large[0], "operations", way=name, tensors=many)
    asked, own, _, library, strict = ways
    lesson.check("the library's number hardly grows with the tensors", found[library][1][0] < 4 * found[library][0][0],
                 f"{found[library][0][0]} for {few}, {found[library][1][0]} for {many}; ours {found[own][1][0]}")  # fmt: skip
    lesson.check("it never waits, nor does ours", found[library][1][1] == found[own][1][1] == 0,
                 f"asked tensor by tensor there are {found[asked][1][1]} waits")  # fmt: skip
    lesson.check("error_if_nonfinite waits, once", found[strict][1][1] == 1, "to raise an error Python has to know")
    broken = with_gradients([torch.tensor([math.nan], device=device)])
    refusal = complaint(lambda: nn.utils.clip_grad_norm_(broken, 1.0, error_if_nonfinite=True))
    lesson.check(
        "and is worth it where nobody else looks for NaN", "non-finite" in refusal, refusal.partition(" of ")[0]
    )
    lesson.shows(
        f"{found[asked][1][1]} waits, or none, for the same result. The norm comes back as a tensor on the device: keep it, and "
        "read it with .item() every hundred steps, when you log. get_total_norm and clip_grads_with_norm_ are its two halves, "
        "for whoever wants to decide in between."
    )
