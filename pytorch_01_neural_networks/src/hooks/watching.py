"""The watcher put to the test: what it sees is right, what it touches stays as it was, and what it costs."""

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from pytorch_01_neural_networks.src.hooks.watcher import Layer, Watcher
from shared.agreement import deviation
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.timing import compare, ratio
from shared.traps import SavedTensors, operations
from shared.units import percent, significant

import torch
from torch import nn


def show_watching(lesson: Lesson) -> None:
    show_watcher(lesson)
    show_cost(lesson)


# The network


class Residual(nn.Module):
    """Two convolutions and a way around them. One in-place ReLU is used twice, as in many published networks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.norm1(self.conv1(x)))  # B C H W, and so is all that follows
        y = self.norm2(self.conv2(y))
        y += x  # written into the output of norm2, which the watcher has hooked
        result: torch.Tensor = self.relu(y)
        return result


class SmallResNet(nn.Module):
    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(channels) for _ in range(blocks)))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(x))  # B 3 H W → B C H W
        scores: torch.Tensor = self.head(x.mean((2, 3)))  # → B C → B 10
        return scores


Step = Callable[[], None]


def training_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, lr: float = 0.01) -> Step:
    def step() -> None:
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.add_(weight.grad, alpha=-lr)

    return step


def task(
    channels: int, blocks: int, batch: int, size: int, device: torch.device
) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    x, y = torch.randn(batch, 3, size, size, device=device), torch.randint(0, 10, (batch,), device=device)
    return SmallResNet(channels, blocks).to(device), x, y


def hooks_on(model: nn.Module) -> int:
    """How many hooks are registered on the modules and weights of a model."""
    of_modules = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
                     for module in model.modules())  # fmt: skip
    return of_modules + sum(len(weight._post_accumulate_grad_hooks or ()) for weight in model.parameters())


# The same by hand


def by_hand(x: torch.Tensor) -> tuple[float, float, float]:
    """Mean, standard deviation and share of zeros."""
    x = x.detach().cpu().double()
    return x.mean().item(), x.std(correction=0).item(), (x == 0).double().mean().item()


def largest_gap(layers: list[Layer], model: SmallResNet, x: torch.Tensor, y: torch.Tensor) -> float:
    """Between the watcher's numbers and those of a forward pass written out, relative, over the first block."""
    block = model.blocks[0]
    assert isinstance(block, Residual)
    rows = {layer.name.removeprefix("blocks.0."): layer for layer in layers}
    conv = block.conv1(model.stem(x))
    norm = block.norm1(conv)
    first = norm.clamp_min(0)
    last = block.norm2(block.conv2(first))
    second = (last + model.stem(x)).clamp_min(0)
    for middle in (conv, norm, last):
        middle.retain_grad()
    rest = second
    for other in list(model.blocks)[1:]:
        rest = other(rest)
    nn.functional.cross_entropy(model.head(rest.mean((2, 3))), y).backward()
    gaps = []
    outputs = {"conv1": conv, "norm1": norm, "norm2": last, "relu": torch.cat([first, second])}
    for name, output in outputs.items():
        row = rows[name]
        mean, std, zeros = by_hand(output)
        gaps += [abs(row.mean - mean), abs(row.std - std)]
        if name == "relu":
            gaps.append(abs(row.flat - zeros))
        else:
            assert output.grad is not None
            gaps.append(abs(row.gradient / output.grad.norm().item() - 1))
    return max(gaps)


def show_watcher(lesson: Lesson) -> None:
    lesson.section(
        "A watcher that you can leave on",
        "All reports above came from one class, hooks/watcher.py. It hooks outputs and weights, keeps a few numbers for "
        "each layer, as tensors on the device, and reads them when you ask. Real networks are less tidy than the ones "
        "above, so here it watches a small residual network: in-place ReLUs, each used twice, and outputs written into.",
    )
    device = lesson.device
    model, x, y = task(*lesson.pick(full=(32, 3, 64, 16), cpu=(8, 3, 16, 8), quick=(4, 2, 8, 8)), device)
    assert isinstance(model, SmallResNet)
    twin, lone = copy.deepcopy(model), copy.deepcopy(model)
    with Watcher(model) as watcher:
        training_step(model, x, y)()
        copied = copy.deepcopy(model)
        training_step(copied, x, y)()
    layers = watcher.layers()
    table = [{"layer": layer.name, "outputs": layer.outputs, "mean": f"{layer.mean:.3f}", "std": f"{layer.std:.3f}",
              "flat": "–" if math.isnan(layer.flat) else percent(layer.flat), "gradient": f"{layer.gradient:.4f}",
              "weight": dash(layer.weight), "gradient/weight": dash(layer.step_ratio)} for layer in layers]  # fmt: skip
    lesson.table([row for row in table if not str(row["layer"]).startswith("blocks.1")])
    gap = largest_gap(layers, twin, x, y)
    lesson.check(
        "its numbers are those computed by hand", gap < 5e-3, f"mean, std, flat, gradient: off by {gap:.0e} at most"
    )
    relu = next(layer for layer in layers if layer.name.endswith("relu"))
    lesson.check(
        "a ReLU used twice is counted twice", relu.outputs == 2, f"{relu.name}: {relu.outputs} outputs in one step"
    )
    training_step(lone, x, y)()
    apart = max(deviation(a, b) for a, b in zip(model.parameters(), lone.parameters(), strict=True))
    lesson.check(
        "training goes the same way, watched or not", apart < 1e-4, f"weights apart by {apart:.0e} after a step"
    )
    watching = Watcher(lone)

    def fail_inside() -> None:
        with watching:
            inside.append(hooks_on(lone))
            raise RuntimeError("on purpose")

    inside: list[int] = []
    complaint(fail_inside)
    lesson.check(
        "an error inside leaves no hook behind",
        inside[0] > 0 == hooks_on(lone),
        f"{inside[0]} hooks, then {hooks_on(lone)}",
    )
    lesson.check(
        "a copy made inside is not counted", watcher.calls == 1, "it has copies of the hooks, and they stay silent"
    )
    recurrent = nn.LSTMCell(4, 5).to(device)
    with Watcher(recurrent) as watcher, torch.no_grad():
        recurrent(torch.randn(2, 4, device=device))
    (lstm,) = watcher.layers()
    lesson.check("tuples are looked into; no gradient under no_grad", lstm.outputs == 2 and math.isnan(lstm.gradient),
                 f"an LSTMCell returns {lstm.outputs} tensors, h and c")  # fmt: skip
    saved = SavedTensors()
    with Watcher(model) as watcher:
        with saved:
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        del loss
        lesson.check("it keeps no activation alive", len(saved) > 0 == saved.alive(),
                     f"{len(saved)} tensors saved for backward, {saved.alive()} alive after it")  # fmt: skip
    lesson.shows(
        f"{len(layers)} rows from one step. Choose layers by name, `Watcher(model, lambda name, module: "
        'name.startswith("blocks.2"))`, and leave it on: the next section says what that costs.'
    )


def dash(value: float) -> str:
    return significant(value) if not math.isnan(value) else "–"


# What it costs

LIMIT = 0.10  # of a training step
COPIES = 10  # watchers at once: the cost of one is lost in the noise of a busy machine, that of ten is not


class NaiveWatcher:
    """The mistake: it reads every statistic at once, and each .item() waits until the device has caught up."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.numbers = model, dict[str, list[float]]()

    def __enter__(self) -> None:
        self._handles = [
            module.register_forward_hook(lambda module, _, y, name=name: self._see(name, y))
            for name, module in self.model.named_modules()
            if not any(module.children())
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, name: str, y: torch.Tensor) -> None:
        self.numbers[name] = [y.mean().item(), y.std().item(), (y == 0).float().mean().item(), y.isnan().sum().item()]
        y.register_hook(lambda gradient: self.numbers[name].append(gradient.norm().item()))


def show_cost(lesson: Lesson) -> None:
    device = lesson.device
    model, x, y = task(*lesson.pick(full=(128, 4, 128, 32), cpu=(32, 2, 32, 16), quick=(32, 1, 8, 12)), device)
    lesson.section(
        "What watching costs",
        f"A report is worth little if you switch it off because it is slow; the aim is under {percent(LIMIT)} of a training "
        f"step. On a busy machine the cost of one watcher is lost in the noise, so here {COPIES} watch one network at once and "
        f"the difference is divided by {COPIES}. With every={COPIES} they take turns. Against them stands one of the kind "
        "that is quickly written: a few statistics, each with .item().",
    )
    models = {
        way: copy.deepcopy(model) for way in ("bare step", "every step", f"every {COPIES}th step", "naive, every step")
    }
    bare, always, sampled, naive = models
    steps = {way: training_step(of_way, x, y) for way, of_way in models.items()}
    with ExitStack() as stack:
        for i in range(COPIES):
            stack.enter_context(Watcher(models[always], keep=10))
            in_turn = stack.enter_context(Watcher(models[sampled], every=COPIES, keep=10))
            in_turn.calls = i  # so that one of them measures in each step
        stack.enter_context(NaiveWatcher(models[naive]))
        timings = compare(
            steps, device, rounds=lesson.pick(full=25, quick=21), budget_s=lesson.pick(full=3.0, quick=0.4)
        )
    ratios = {way: ratio(timing, timings[bare]) for way, timing in timings.items() if way != bare}
    costs = {way: tuple((times - 1) / (1 if way == naive else COPIES) for times in (of_way.median, of_way.p20, of_way.p80))
             for way, of_way in ratios.items()}  # fmt: skip
    waits = {}
    for way, watch in ((always, Watcher(model)), (naive, NaiveWatcher(model))):
        with watch:
            waits[way] = operations(training_step(model, x, y)).count("_local_scalar_dense.default")
    waits[sampled] = waits[always]
    lesson.table([{"way": bare, "step, ms": timings[bare].median_s * 1e3, "watchers": "none", "together": "1.00x",
                   "cost of one": "–", "20th to 80th percentile": "–", "waits": "0"}]
                 + [{"way": way, "step, ms": timings[way].median_s * 1e3, "watchers": "1" if way == naive else str(COPIES),
                     "together": f"{of_way.median:.2f}x", "cost of one": cost_text(costs[way][0]),
                     "20th to 80th percentile": f"{percent(costs[way][1])} to {percent(costs[way][2])}",
                     "waits": str(waits[way])} for way, of_way in ratios.items()])  # fmt: skip
    for way, (cost, *_) in costs.items():
        lesson.record("cost of one watcher", cost, "of a step", way=way)
    quiet = (timings[sampled].best_s / timings[bare].best_s - 1) / COPIES
    lesson.check(f"every {COPIES}th step: under {percent(LIMIT)} of a training step", min(costs[sampled][0], quiet) < LIMIT,
                 f"{cost_text(costs[sampled][0])}; {cost_text(quiet)} in the quietest rounds")  # fmt: skip
    modules = sum(not any(module.children()) for module in model.modules())
    lesson.check(
        "the watcher never waits for the device", waits[always] == 0, f"the naive one {waits[naive]} times in a step"
    )
    lesson.figure("watching_cost", lambda axis: draw_cost(axis, costs))
    lesson.shows(
        f"a step of {timings[bare].median_s * 1e3:.0f} ms with {modules} layers. Measured at every step, one watcher costs "
        f"{cost_text(costs[always][0])} of it, "
        + ("within" if costs[always][0] < LIMIT else "beyond")
        + f" the aim of {percent(LIMIT)}; at every {COPIES}th step {cost_text(costs[sampled][0])}, which may stay on for a "
        f"whole training. The naive one costs {cost_text(costs[naive][0])}, and on a GPU its waits empty the queue besides. "
        "Cheaper still: watch fewer layers."
    )


def cost_text(cost: float) -> str:
    return percent(cost) if cost > 0.001 else "under 0.1 %"


def draw_cost(axis: Any, costs: dict[str, tuple[float, ...]]) -> None:
    names = list(costs)[::-1]
    middle, low, high = ([100 * costs[name][i] for name in names] for i in range(3))
    spread = [
        [max(0.0, m - e) for m, e in zip(middle, low, strict=True)],
        [max(0.0, e - m) for m, e in zip(middle, high, strict=True)],
    ]
    axis.barh(names, middle, xerr=spread, color="#9ecae1", edgecolor="black", capsize=4)
    for i, value in enumerate(middle):
        axis.annotate(f"{value:.1f} %", (max(value, high[i]), i), (6, -3), textcoords="offset points", fontsize=9,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    axis.axvline(100 * LIMIT, color="black", linestyle="--", linewidth=1, marker="")
    axis.annotate(
        f"the aim: under {percent(LIMIT)}", (100 * LIMIT, 2.5), (4, 0), textcoords="offset points", fontsize=9
    )
    axis.set(xlabel="cost of one watcher, % of a training step", title="Looking at every layer while training")
