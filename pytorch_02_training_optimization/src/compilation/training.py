"""A training step under torch.compile, forward, backward and optimizer; and what compiling changes in the numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.compilation.harness import (
    Traffic,
    graphs_after,
    kernel_calls_in,
    run_and_read,
)
from shared.agreement import deviation
from shared.datasets import load_images
from shared.device import seed_everything
from shared.lesson import Lesson
from shared.timing import compare, ratio
from shared.units import percent, seconds_text, significant

import torch
import torch.nn.functional as F
from torch import nn

NEEDS_INDUCTOR = "a run without --quick, and a compiler"


def make_model(classes: int, width: int, device: torch.device) -> nn.Sequential:
    """Two products on 32 x 32 RGB images, with something between them that can be fused."""
    layers = nn.Flatten(), nn.Linear(3 * 32 * 32, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, classes)
    return nn.Sequential(*layers).to(device)


@dataclass
class Trainer:
    """One network in training; `loss_of` and `update` are what may be compiled."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    update: Callable[[], object]

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = self.loss_of(x, y)
        loss.backward()
        self.update()
        self.optimizer.zero_grad()
        return loss.detach()


def make_trainer(
    classes: int, width: int, device: torch.device, seed: int, compile_it: Callable[[Any], Any]
) -> Trainer:
    """Same seed, same weights. What `compile_it` gets is all that computes: loss with model, and optimizer."""
    seed_everything(seed)
    model = make_model(classes, width, device)
    # The learning rate is a tensor: as a number it would be part of the graph, to be compiled again by a scheduler.
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=torch.tensor(1e-3, device=device), capturable=device.type == "cuda"
    )

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y)

    def update() -> None:
        optimizer.step()

    return Trainer(model, optimizer, compile_it(loss_of), compile_it(update))


def count_graphs_of_updates(lr: float | torch.Tensor, device: torch.device) -> list[int]:
    """Graphs in all after each of three optimizer steps under a scheduler."""
    model = nn.Linear(8, 8, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, capturable=device.type == "cuda")
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=3)

    def step(update: Callable[[], object]) -> None:
        model(torch.ones(2, 8, device=device)).sum().backward()
        update()
        scheduler.step()

    return graphs_after([step] * 3, lambda: optimizer.step())


def show_training(lesson: Lesson, has_inductor: bool) -> None:
    steps = lesson.pick(full=200, quick=10)
    lesson.section(
        "A training step, compiled",
        "Compile what computes: a function from the batch to the loss, so that the loss is in the graph as well, and the "
        "optimizer's step, which is dozens of small operations for each weight. backward() needs no line of its own: the "
        f"backward graph was made with the forward graph. Two networks from one seed, {steps} steps on real letters:",
    )
    letters = load_images("glyphs", train=True, count=lesson.pick(full=4096, cpu=2048, quick=64))
    x_all, y_all = letters.images.to(lesson.device).float() / 255 - 0.5, letters.labels.to(lesson.device)
    classes, width = len(letters.class_names), lesson.pick(full=512, cpu=128, quick=16)
    batch_size = lesson.pick(full=256, cpu=64, quick=32)
    backend = "inductor" if has_inductor and not lesson.quick else "eager"
    torch.compiler.reset()
    seed = lesson.options.seed
    plain = make_trainer(classes, width, lesson.device, seed, lambda function: function)
    compiled = make_trainer(
        classes, width, lesson.device, seed, lambda function: torch.compile(function, backend=backend)
    )
    generator = torch.Generator().manual_seed(seed)
    order = [torch.randint(len(x_all), (batch_size,), generator=generator) for _ in range(steps)]
    order = [rows.to(lesson.device) for rows in order]
    start = F.cross_entropy(plain.model(x_all), y_all).item()
    losses = {
        name: torch.stack([trainer.step(x_all[rows], y_all[rows]) for rows in lesson.progress(order, name)]).tolist()
        for name, trainer in (("not compiled", plain), ("compiled", compiled))
    }
    ends = {name: F.cross_entropy(trainer.model(x_all), y_all).item()
            for name, trainer in (("not compiled", plain), ("compiled", compiled))}  # fmt: skip
    x, y = x_all[order[0]], y_all[order[0]]
    with Traffic() as forward:
        loss = plain.loss_of(x, y)
    with Traffic() as backward:
        loss.backward()
    with Traffic() as update:
        plain.update()
    counted = count_kernels(compiled, x, y) if backend == "inductor" else None
    timings = compare({"not compiled": lambda: plain.step(x, y), "compiled": lambda: compiled.step(x, y)}, lesson.device,
                      budget_s=lesson.pick(full=1.0, quick=0.1))  # fmt: skip
    eager = [len(part.operations) for part in (forward, backward, update)]
    table = [{"step": "not compiled", "forward": eager[0], "backward": eager[1], "optimizer": eager[2],
              "time": seconds_text(timings["not compiled"].median_s), "loss at the end": ends["not compiled"]},
             {"step": f"compiled, {backend}", "forward": counted[0] if counted else "–",
              "backward": counted[1] if counted else "–", "optimizer": counted[2] if counted else "–",
              "time": seconds_text(timings["compiled"].median_s), "loss at the end": ends["compiled"]}]  # fmt: skip
    lesson.text("Kernels that one step runs, and its time:")
    lesson.table(table)
    for name, timing in timings.items():
        lesson.record(
            "training step", timing.median_s * 1e3, "ms", timing, way=name, backend=backend, batch_size=batch_size
        )
    first = abs(losses["compiled"][0] - losses["not compiled"][0])
    lesson.check("both start from the same loss", first < 1e-4, f"{losses['compiled'][0]:.6f}, {first:.0e} apart")
    apart = abs(ends["compiled"] / ends["not compiled"] - 1)
    lesson.check(
        "both learn", max(ends.values()) < start, f"{start:.3f} to {ends['compiled']:.3f} on all {len(x_all)} letters"
    )
    lesson.check("and arrive at the same loss", apart < 0.1, f"{percent(apart)} apart after {steps} steps")
    if counted:
        lesson.check("fewer than a third of the kernels are left", 3 * sum(counted) < sum(eager),
                     f"{sum(counted)} of {sum(eager)}")  # fmt: skip
    number, tensor = (count_graphs_of_updates(lr, lesson.device) for lr in
                      (1e-2, torch.tensor(1e-2, device=lesson.device)))  # fmt: skip
    lesson.check("lr as a tensor: a scheduler needs no new graph", tensor[-1] == 1 < number[-1],
                 f"as a number {number[-1]} graphs, as a tensor {tensor[-1]}")  # fmt: skip
    gain = ratio(timings["not compiled"], timings["compiled"]).median
    lesson.shows(
        f"the step takes {1 / gain:.2f} times as long as without compiling ({backend}). "
        + (f"AdamW went from {eager[2]} kernels to {counted[2]}. " if counted else "")
        + "Leave out of the graph what only looks: the log line, the .item(), the progress bar. Evaluation runs under "
        "torch.no_grad() and eval(), two guards that fail: expect one more compilation when it first comes."
    )


def count_kernels(trainer: Trainer, x: torch.Tensor, y: torch.Tensor) -> list[int]:
    """How many kernels, its own and a library's, Inductor runs in the forward pass, the backward pass, the update."""
    _, files = run_and_read(trainer.step, x, y)
    return [sum(kernel_calls_in(code)) for code in files]


# Numbers


def drift(x: torch.Tensor) -> torch.Tensor:
    """Twenty operations in a row, each of which rounds."""
    for _ in range(10):
        x = x * 1.01 + 0.01
    return x


def column_sums(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(1.1 * x, dim=-1).sum(dim=0)


def drop_half(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.5)


def draw_mask(function: Callable[[torch.Tensor], torch.Tensor], device: torch.device, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return function(torch.ones(4096, device=device))


def rms_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return (found.cpu().double() - exact).square().mean().sqrt().item()


def show_numbers(lesson: Lesson, has_inductor: bool) -> None:
    lesson.section(
        "What compiling changes in your numbers",
        "A compiled model is the same mathematics in another order. Sums are added up in other pieces, what stays in a register "
        "is not rounded to the tensor's type, and random numbers come from another generator. So errors are "
        "measured here against float64, for eager and compiled alike.",
    )
    torch.compiler.reset()
    seed = lesson.options.seed
    by_aot = torch.compile(drop_half, backend="aot_eager")
    masks = [draw_mask(function, lesson.device, seed) for function in (drop_half, by_aot)]
    dropped = (masks[0] == 0).float().mean().item()
    lesson.check(
        "up to AOTAutograd dropout drops the same", torch.equal(*masks), f"{percent(dropped)} of {len(masks[0]):,}"
    )
    if lesson.quick or not has_inductor:
        lesson.skip("Deviations in float32 and bfloat16, and Inductor's dropout.", NEEDS_INDUCTOR)
        lesson.shows("Dynamo and AOTAutograd change no number: they write down the same operations in the same order.")
        return
    x = torch.randn(1024, 512, device=lesson.device)
    table, errors = [], {}
    works: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]] = {
        "20 operations, float32": (drift, x),
        "20 operations, bfloat16": (drift, x.bfloat16()),
        "softmax and sum, float32": (column_sums, x),
    }
    for work, (function, inputs) in works.items():
        torch.compiler.reset()
        compiled = torch.compile(function)(inputs)
        eager = function(inputs)
        exact = function(inputs.cpu().double())
        errors[work] = rms_error(eager, exact), rms_error(compiled, exact)
        table.append({"computed": work, "error, eager": errors[work][0], "error, compiled": errors[work][1],
                      "apart": deviation(compiled, eager)})  # fmt: skip
    lesson.table(table)
    half = errors["20 operations, bfloat16"]
    worst = max(max(pair) for work, pair in errors.items() if "float32" in work)
    lesson.check("float32: whichever is closer, both are off by rounding only", worst < 1e-5, f"{worst:.0e} at most")
    lesson.check("bfloat16: compiled is the more exact by far", half[1] < half[0] / 3,
                 f"{half[0] / half[1]:.0f} times: rounded once, not 20 times")  # fmt: skip
    torch.compiler.reset()
    own, fallback = torch.compile(drop_half), torch.compile(drop_half, options={"fallback_random": True})
    drops = [draw_mask(function, lesson.device, seed) for function in (own, own)]
    torch.compiler.reset()
    as_eager = draw_mask(fallback, lesson.device, seed)
    same = (drops[0] == masks[0]).float().mean().item()
    lesson.check(
        "Inductor's dropout drops others after the same seed", same < 0.6, f"{percent(same)} of the mask as before"
    )
    lesson.check(
        "the same ones each time", torch.equal(*drops), f"{percent((drops[0] == 0).float().mean().item())} dropped"
    )
    lesson.check(
        "fallback_random gives eager's back", torch.equal(as_eager, masks[0]), "for comparing, at the price of fusion"
    )
    lesson.shows(
        f"in bfloat16 compiled and eager differ by {significant(table[1]['apart'], 2)} after 20 operations, and it is eager that "
        "is wrong. So do not test a compiled model for equality with the eager one: hold both against float64, and set "
        "fallback_random where dropout would hide the comparison."
    )
