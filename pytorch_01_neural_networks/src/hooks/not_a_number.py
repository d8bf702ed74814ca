"""Where the first NaN is born: three that learners meet, found by anomaly mode and by the watcher, and what both cost."""

import warnings
from collections.abc import Callable

from pytorch_01_neural_networks.src.hooks.watcher import Watcher
from shared.drawing import number
from shared.lesson import Lesson
from shared.timing import compare, ratio
from shared.traps import operations

import torch
from torch import nn


def show_not_a_number(lesson: Lesson) -> None:
    show_births(lesson)
    show_search(lesson)


# Three births


def distance(x: torch.Tensor) -> torch.Tensor:
    """The mistake: the slope of a square root at 0 is infinite, and infinity times the slope of x², 0, is NaN."""
    return x.square().sum(-1).sqrt()


def distance_with_floor(x: torch.Tensor) -> torch.Tensor:
    return (x.square().sum(-1) + 1e-12).sqrt()


def entropy(p: torch.Tensor) -> torch.Tensor:
    """The mistake: 0 log 0 is 0 times minus infinity."""
    return -(p * p.log()).sum(-1)


def entropy_with_floor(p: torch.Tensor) -> torch.Tensor:
    p = p.clamp_min(1e-12)
    return -(p * p.log()).sum(-1)


def masked_log(x: torch.Tensor) -> torch.Tensor:
    """The mistake: where() hides the result of log(0), and on the way back 0 times its infinite slope."""
    return torch.where(x > 0, x.log(), 0.0).sum(-1)


def masked_input(x: torch.Tensor) -> torch.Tensor:
    """Right: first give log an input that it can bear."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).log(), 0.0).sum(-1)


Function = Callable[[torch.Tensor], torch.Tensor]
POINT = torch.tensor([[3.0, 4.0], [0.0, 0.0]])  # a good row and a bad one
BIRTHS: dict[str, tuple[Function, Function]] = {
    "sqrt(sum(x²))": (distance, distance_with_floor),
    "-sum(x log x)": (entropy, entropy_with_floor),
    "sum(where(x > 0, log x, 0))": (masked_log, masked_input),
}


def value_and_gradient(function: Function, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), gradient


def anomaly_of(run: Callable[[], object]) -> tuple[str, str]:
    """What anomaly mode says: the operation whose gradient was the first NaN, and the line of this file that called it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.autograd.detect_anomaly():
                run()
        except RuntimeError as error:
            operation = str(error).partition("'")[2].partition("'")[0]
            traces = [str(warning.message) for warning in caught if "Traceback of forward call" in str(warning.message)]
            lines = traces[0].split("\n") if traces else []
            frames = [i for i, line in enumerate(lines) if line.lstrip().startswith(f'File "{__file__}"')]
            return operation, lines[frames[-1] + 1].strip() if frames else ""
    return "", ""


def show_births(lesson: Lesson) -> None:
    lesson.section(
        "Where NaN is born",
        "NaN, not a number, is what 0/0, inf - inf and 0 x inf give, and whatever touches it becomes NaN, too: after one "
        "step, all weights. Often the forward pass is fine and the slope is not. Three functions on the rows [3, 4] and "
        "[0, 0]; torch.autograd.detect_anomaly() stops backward() at the first operation whose gradient holds a NaN.",
    )
    x = POINT.to(lesson.device)
    table, said, results = [], {}, {}
    for name, (bad, cured) in BIRTHS.items():
        said[name] = anomaly_of(lambda: value_and_gradient(bad, x))
        results[name] = *value_and_gradient(bad, x), *value_and_gradient(cured, x)
        value, gradient, _, right = (result.cpu() for result in results[name])
        table.append({"function": name, "value": row(value), "gradient at [0, 0]": row(gradient[1]),
                      "anomaly mode names": said[name][0], "cured": row(right[1])})  # fmt: skip
    lesson.table(table)
    lesson.text("And it quotes the line of the forward pass that called the operation:")
    lesson.drawing("\n".join(f"{name:<28} {line}" for name, (_, line) in said.items()))
    root, _, masked = BIRTHS
    hidden = [name for name in BIRTHS if results[name][0].isfinite().all() and results[name][1].isnan().any()]
    lesson.check("two of them look healthy until backward()", hidden == [root, masked], "finite values, NaN gradients")
    lesson.check("one NaN spoils no other row, yet", all(result[1][0].isfinite().all() for result in results.values()),
                 "the gradients at [3, 4] are right; a weight would add them up")  # fmt: skip
    good = [name for name, (_, _, _, gradient) in results.items() if gradient.isfinite().all()]
    lesson.check(
        "a floor, or a safe input before the mask, cures them", good == list(BIRTHS), f"{len(good)} of {len(BIRTHS)}"
    )
    near = max((a[0] - c[0]).abs().max().item() for a, _, c, _ in results.values())
    lesson.check("and changes nothing at the good row", near < 1e-5, f"by {near:.0e} at most")
    lesson.check("anomaly mode names the operation and your line", all(all(words) for words in said.values())
                 and all("x" in line or "p" in line for _, line in said.values()), "the line of the forward pass")  # fmt: skip
    lesson.check("it names the first NaN, not the first infinity", said[root][0] == "PowBackward0",
                 "sqrt sent back inf; the square made 0 x inf of it")  # fmt: skip
    infinite = anomaly_of(lambda: value_and_gradient(torch.sqrt, x))
    _, slope = value_and_gradient(torch.sqrt, x)
    lesson.check("so it is silent about an infinite gradient", infinite == ("", "") and bool(slope.isinf().any()),
                 "sqrt at 0: the step would be infinite")  # fmt: skip
    lesson.shows(
        f"{len(hidden)} of {len(BIRTHS)} had a finite loss and a gradient that ends the training: look at gradients, too. "
        "where() chooses results and not computations, so the cure belongs inside, in front of the operation."
    )


def row(x: torch.Tensor) -> str:
    return ", ".join(number(value) for value in x.flatten().tolist())


# The search


class Distances(nn.Module):
    """Between the first and the second half of each row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=1)
        return distance(first - second).unsqueeze(1)  # B C → B 1


def metric_network(width: int, device: torch.device) -> nn.Sequential:
    layers = [
        nn.Linear(width, width, bias=False),
        nn.ReLU(),
        nn.Linear(width, width, bias=False),
        Distances(),
        nn.Linear(1, 1),
    ]
    names = ("encoder", "relu", "projection", "distances", "score")
    model = nn.Sequential()
    for name, layer in zip(names, layers, strict=True):
        model.add_module(name, layer)
    return model.to(device)


def metric_batch(width: int, batch: int, is_bad: bool, device: torch.device) -> torch.Tensor:
    """Random rows; in a bad batch the first is empty, and so is its projection, and the distance of its halves is 0."""
    x = torch.randn(batch, width, device=device)
    if is_bad:
        x[0] = 0
    return x


def backward_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss: torch.Tensor = (model(x) - 1).square().mean()
    loss.backward()
    return loss.detach()


def train_until_not_finite(model: nn.Module, batches: Callable[[int], torch.Tensor], steps: int) -> int | None:
    """The first step, counted from 1, whose loss is not finite."""
    for step in range(1, steps + 1):
        loss = backward_of(model, batches(step))
        if not loss.isfinite():
            return step
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.add_(weight.grad, alpha=-0.01)
    return None


def show_search(lesson: Lesson) -> None:
    lesson.section(
        "Finding the first NaN in a network",
        "Anomaly mode looks at every gradient of every operation, and waits for the device each time. The watcher's "
        "statistics are NaN or infinite whenever one number in a layer is, and they are there anyway, in order of time. "
        "Here a network of five layers meets a batch with one empty row in step 7; its layer of distances has the square "
        "root from above.",
    )
    device, bad_step = lesson.device, 7
    width, batch = 64, 32
    model = metric_network(width, device)
    with Watcher(model) as watcher:
        noticed = train_until_not_finite(model, lambda step: metric_batch(width, batch, step == bad_step, device), 20)
    found = watcher.first_not_finite()
    fresh = metric_network(width, device)
    bad = metric_batch(width, batch, True, device)
    operation, line = anomaly_of(lambda: backward_of(fresh, bad))
    with Watcher(fresh) as once:
        backward_of(fresh, bad)
    again = once.first_not_finite()
    lesson.items({"the loss says": f"not finite in step {noticed}",
                  "the watcher says": f"first in call {found[0]}: the {found[2]} at the output of {found[1]!r}" if found else "–",
                  "anomaly mode": f"{operation}, called in: {line}"})  # fmt: skip
    lesson.check(
        "the loss is a step late", noticed == bad_step + 1, f"bad batch in step {bad_step}, NaN in step {noticed}"
    )
    lesson.check("the watcher knows step and place", found == (bad_step, "projection", "gradient"),
                 "what comes behind the projection, the distances, sent it")  # fmt: skip
    lesson.check("or: keep the batch, and run it once more watched", again == (1, "projection", "gradient"),
                 "with the weights from before; costs nothing until then")  # fmt: skip
    counts = lesson.pick(full=(1024, 1024), cpu=(512, 256), quick=(128, 64))
    model = metric_network(counts[0], device)
    x = metric_batch(*counts, False, device)

    def step_in_anomaly_mode() -> None:
        with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
            backward_of(model, x)

    def step_watched() -> None:
        with Watcher(model):
            backward_of(model, x)

    ways = {"bare step": lambda: backward_of(model, x), "watched": step_watched, "anomaly mode": step_in_anomaly_mode}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anomaly mode warns that it is slow
        calls = {way: operations(step) for way, step in ways.items()}
        timings = compare(ways, device, rounds=lesson.pick(full=9, quick=5), budget_s=lesson.pick(full=2.0, quick=0.2))
    waits = {way: names.count("_local_scalar_dense.default") for way, names in calls.items()}
    lesson.table([{"way": way, "operations": len(calls[way]), "waits for the device": waits[way],
                   "ms": timings[way].median_s * 1e3, "times the bare step": str(ratio(timings[way], timings["bare step"]))}
                  for way in ways])  # fmt: skip
    for way, timing in timings.items():
        lesson.record("step", timing.median_s * 1e3, "ms", timing, way=way)
    lesson.check("anomaly mode waits once for each gradient, the watcher never",
                 waits["anomaly mode"] > 5 and waits["watched"] == waits["bare step"] == 0,
                 f"{waits['anomaly mode']} and {waits['watched']} times in a step")  # fmt: skip
    lesson.shows(
        f"anomaly mode takes {ratio(timings['anomaly mode'], timings['bare step']).median:.2f} times the bare step here, and "
        f"makes the program wait {waits['anomaly mode']} times, which on a GPU empties its queue. Use it on the one batch that "
        "fails, to get the line; use the watcher to learn which batch and which layer."
    )
