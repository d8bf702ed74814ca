"""When is a batch in parts equal to the whole batch, and how long may its gradient be?

You will see 8 parts of 8 give the gradient and the weights of one batch of 64 to the last digits, and an eighth of the
memory, counted to the byte. Then everything that breaks this: lines in the wrong place, parts and sentences of unequal
length, layers that look at the batch. Then clipping, written out: what it does to the direction of a step, to one bad
batch, and where its threshold comes from. At the end the gradients themselves say how large a batch is worth it.

    python src/gradient_accumulation.py            about 40 seconds
    python src/gradient_accumulation.py --quick    the same path with tiny sizes, a few seconds
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.accumulation.clipping import show_clipping, show_operations, show_parts
from pytorch_02_training_optimization.src.accumulation.layers import show_layers
from pytorch_02_training_optimization.src.accumulation.loops import (
    fill_gradients,
    show_factor,
    show_places,
    show_schedule,
)
from pytorch_02_training_optimization.src.accumulation.memory import show_memory
from pytorch_02_training_optimization.src.accumulation.noise import show_noise
from pytorch_02_training_optimization.src.accumulation.spikes import show_spike, show_threshold
from pytorch_02_training_optimization.src.accumulation.task import (
    BATCH_SIZE,
    CPU,
    PARTS,
    RULES,
    draw_batches,
    gradients_of,
    joined,
    make_model,
    off_by,
)
from pytorch_02_training_optimization.src.accumulation.unequal import show_ragged, show_sentences
from pytorch_02_training_optimization.src.letters.rows import load_letters
from shared.agreement import deviation
from shared.lesson import Lesson

import torch

# The loop

LOOP = """
for step, batch in enumerate(batches):
    optimizer.zero_grad()                            # once a step
    for x, y in micro_batches(batch):                # 8 parts of 8
        loss = F.cross_entropy(model(x), y) / 8      # the mean of 64 is the mean of 8 means
        loss.backward()                              # adds to .grad, frees what these 8 kept
    clip_grad_norm_(model.parameters(), max_norm)    # once a step, the gradient being whole
    optimizer.step()                                 # once a step
    scheduler.step()                                 # once a step
"""


def gradient_in_parts(parts: int, width: int, seed: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Of one batch of 64 letters, as one vector."""
    letters = load_letters(1000).to(device, dtype)
    model = make_model(width, seed, device, dtype)
    fill_gradients(model, letters.x[:BATCH_SIZE], letters.y[:BATCH_SIZE], parts)
    return joined(gradients_of(model))


def show_equal(lesson: Lesson) -> None:
    width, seed = lesson.pick(full=128, quick=32), lesson.options.seed
    lesson.section(
        "One batch of 64, or eight of 8",
        "The gradient of a mean is the mean of the gradients. So a batch that does not fit may go through the model in parts: "
        "backward() adds each part's gradient to .grad, and the optimizer steps when all are there. autograd_basics of "
        "project 00 met this on a line with two weights; here is the whole loop, and how exact it is in a network.",
    )
    lesson.drawing(LOOP.strip())
    formats = {torch.float64: CPU, torch.float32: lesson.device}
    off, table = {}, []
    for parts in (2, 4, 8, 16, 64):
        for dtype, device in formats.items():
            whole, found = (gradient_in_parts(n, width, seed, device, dtype) for n in (1, parts))
            off[parts, dtype] = off_by(found, whole)
        table.append({"parts": f"{parts} of {BATCH_SIZE // parts}", "float64 off by": f"{off[parts, torch.float64]:.0e}",
                      "float32 off by": f"{off[parts, torch.float32]:.0e}"})  # fmt: skip
    lesson.text("The gradient in parts against that of one batch, the difference over its length:")
    lesson.table(table)
    for dtype, bound in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        worst = max(value for (_, of), value in off.items() if of == dtype)
        lesson.check(f"equal in {str(dtype).removeprefix('torch.')}, in any number of parts", worst < bound,
                     f"to {worst:.0e} of its length, at worst")  # fmt: skip
    lesson.check("but not to the last bit: a sum in another order", off[8, torch.float32] > 0,
                 f"{off[8, torch.float32]:.0e} in 8 parts; float32 steps by {torch.finfo(torch.float32).eps:.0e}")  # fmt: skip
    lesson.shows(
        f"8 of 8 is one batch of 64, to {off[8, torch.float64]:.0e} in float64 and {off[8, torch.float32]:.0e} in float32. "
        "What differs is the order in which rounded numbers are added. A test of your own loop should therefore compare in "
        "float64, where a real mistake cannot hide behind rounding."
    )


# Many steps


def weights_apart(rule_name: str, parts: int, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], width: int, seed: int
                  ) -> tuple[list[float], float]:  # fmt: skip
    """Largest difference of a weight, step by step, between one batch and `parts` parts, in units of the largest weight
    or 1; and how far the weights went in that time."""
    device, dtype = batches[0][0].device, batches[0][0].dtype
    models = [make_model(width, seed, device, dtype) for _ in range(2)]
    start = joined(models[0].parameters())
    make, lr = RULES[rule_name]
    rules = [make(model.parameters(), lr) for model in models]
    apart = []
    for x, y in batches:
        for model, rule, count in zip(models, rules, (1, parts), strict=True):
            fill_gradients(model, x, y, count)
            rule.step()
        whole, in_parts = (joined(model.parameters()) for model in models)
        apart.append(deviation(in_parts, whole))
    return apart, float((whole - start).abs().max())


def show_many_steps(lesson: Lesson) -> None:
    width, steps = lesson.pick(full=128, quick=32), lesson.pick(full=200, quick=12)
    lesson.section(
        "Hundreds of steps later",
        f"A training repeats it, and each step begins where the last one ended, rounding errors and all. Here two networks are "
        f"trained for {steps} steps from one start with the same letters, one with whole batches, one in {PARTS} parts.",
    )
    seed = lesson.options.seed
    letters = load_letters(lesson.pick(full=4000, quick=1000))
    curves, table = {}, []
    for rule in RULES:
        for name, dtype, device in (("float64", torch.float64, CPU), ("float32", torch.float32, lesson.device)):
            batches = draw_batches(letters.to(device, dtype), steps, seed)
            curves[rule, name], moved = weights_apart(rule, PARTS, batches, width, seed)
            table.append({"optimizer": rule, "format": name, "apart after 1 step": f"{curves[rule, name][0]:.0e}",
                          f"after {steps}": f"{curves[rule, name][-1]:.0e}", "a weight moved by": moved})  # fmt: skip
            lesson.record("weights apart", curves[rule, name][-1], "largest weight or 1", optimizer=rule, format=name)
    lesson.table(table)
    bounds = {("momentum", "float64"): 1e-14, ("momentum", "float32"): 1e-6, ("Adam", "float64"): 1e-10,
              ("Adam", "float32"): 1e-2}  # fmt: skip
    for (rule, name), bound in bounds.items():
        worst = max(curves[rule, name])
        lesson.check(f"{rule}, {name}: the same weights to {bound:.0e}", worst < bound, f"{worst:.0e} at worst")
    lesson.figure("weights_apart", lambda axis: draw_apart(axis, curves))
    grown = curves["Adam", "float32"][-1] / curves["momentum", "float32"][-1]
    lesson.shows(
        f"the errors stay where rounding puts them. Adam's are {grown:.0f} times as large in float32: it divides by the size "
        "of the gradient, so where that is nearly 0 a rounding error is a step like any other. If your accumulated run leaves "
        "the other by 1 %, it is no rounding. The picture is weights_apart.png."
    )


def draw_apart(axis: Any, curves: dict[tuple[str, str], list[float]]) -> None:
    for (rule, name), values in curves.items():
        axis.plot(range(1, len(values) + 1), [max(value, 1e-18) for value in values], label=f"{rule}, {name}",
                  markevery=max(1, len(values) // 8))  # fmt: skip
    axis.set(yscale="log", xlabel="step", ylabel="largest difference of a weight", ylim=(1e-17, 1),
             title=f"One batch of {BATCH_SIZE} and {PARTS} parts of {BATCH_SIZE // PARTS}, trained side by side")  # fmt: skip
    axis.legend(fontsize=9, ncols=2, loc="upper left")


def main(argv: Sequence[str] | None = None) -> int:
    title = "Gradient accumulation: when parts equal the batch, and clipping by norm and by value."
    with Lesson(__file__, argv, title=title) as lesson:
        show_equal(lesson)
        show_many_steps(lesson)
        show_memory(lesson)
        show_places(lesson)
        show_factor(lesson)
        show_schedule(lesson)
        show_ragged(lesson)
        show_sentences(lesson)
        show_layers(lesson)
        show_parts(lesson)
        show_clipping(lesson)
        show_operations(lesson)
        show_spike(lesson)
        show_threshold(lesson)
        show_noise(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
