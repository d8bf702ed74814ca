"""Layers typed by a learner: the tool behind --layer, and the chapter that tries it on what goes wrong."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from pytorch_01_neural_networks.src.layers.catalogue import LAYERS
from pytorch_01_neural_networks.src.layers.costs import (
    Cost,
    Roof,
    find_roof,
    kind_table,
    make_input,
    operations_text,
    price_table,
    weigh,
)
from pytorch_01_neural_networks.src.layers.exhibits import show_formulas
from pytorch_01_neural_networks.src.layers.planning import DoesNotFit, Step, build, plan
from pytorch_01_neural_networks.src.layers.reading import Shape, read_layers, read_shape
from shared.device import describe, leave_crowded_cores, pick_device, seed_everything
from shared.errors import CannotRun
from shared.lesson import Lesson
from shared.terminal import Row, Terminal
from shared.units import percent, seconds_text, significant

import torch
from torch import nn

NETWORK = "Conv2d(3, 8, 3); ReLU(); MaxPool2d(2); Flatten(); Linear(..., 10)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The other way to use the script."""
    group = parser.add_argument_group(
        "layers of your own",
        'For example --layer "Conv2d(3, 16, 3, padding=1)" --input 8,3,32,32. Several layers are joined by ";", and ... '
        'stands for a number that you want to be told: "Conv2d(3, 8, 3); ReLU(); Flatten(); Linear(..., 10)". You get '
        "the shape after each, parameters, FLOPs, bytes, time and the share of this device's limit; where a layer does "
        "not fit, what would. An Embedding is given random indices. The lesson is not run, and no record is written.",
    )
    group.add_argument(
        "--layer", metavar="LAYERS", help="layers of torch.nn with their arguments; nothing is evaluated"
    )
    group.add_argument("--input", metavar="SHAPE", help="the shape of their input, such as 8,3,32,32")


# The tool


def use_as_tool(lesson: Lesson) -> int:
    """Explains the layers of the command line; leaves no record. The exit codes are those of every script."""
    complain = Terminal(sys.stderr)
    try:
        return explain(lesson)
    except CannotRun as error:
        complain.line(f"{lesson.name}: {error}")
        return 2
    except KeyboardInterrupt:
        complain.line(f"{lesson.name}: interrupted")
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 130


def explain(lesson: Lesson) -> int:
    """0 where the layers are as the formulas say. Raises CannotRun for a mistake of the learner's."""
    options, say = lesson.options, lesson.terminal
    if options.json:
        raise CannotRun("--json prints the lesson's record, and --layer leaves none; leave one of them out")
    if options.layer is None:
        raise CannotRun('--input is the shape for --layer; add --layer "Conv2d(3, 16, 3, padding=1)"')
    calls = read_layers(options.layer, LAYERS)
    if options.input is None:
        raise CannotRun("--layer needs the shape of its input; add --input 8,3,32,32")
    device = pick_device(options.device)
    steps = plan(calls, read_shape(options.input), device)
    seed_everything(options.seed)
    if device.type == "cpu" and (crowded := leave_crowded_cores()):
        say.paragraph(crowded)
    facts = describe(device)
    threads = f", threads: {facts['threads']}" if device.type == "cpu" else ""
    say.paragraph(f"{facts['name']} ({device.type}{threads}) · float32 · torch {torch.__version__}", style="bold")
    costs, roof = run(steps, device, 0.02 if options.quick else 0.3), find_roof(device)
    show_formulas(say, [step.call.name for step in steps])
    show_network(say, steps[0].given, costs, roof)
    shapes = all((cost.output, cost.parameters) == (cost.step.output, cost.step.parameters) for cost in costs)
    flops = all(cost.flops in (0, cost.step.flops) for cost in costs)
    say.check(shapes, "outputs and parameters are as the formulas say", f"{len(costs)} of torch.nn's own layers")
    counted = operations_text(sum(cost.flops for cost in costs), is_counted=True)
    say.check(
        flops,
        "FLOPs are what FlopCounterMode counts, or it counts none",
        f"it counted {counted}; * is the formula alone",
    )
    return 0 if shapes and flops else 1


def run(steps: Sequence[Step], device: torch.device, budget_s: float) -> list[Cost]:
    """Each layer on what the one before it gave."""
    first = steps[0]
    x = make_input(first.family, build(first.call, first.family, "meta"), first.given, device)
    costs = []
    for step in steps:
        cost, x = weigh(step, x, device, budget_s)
        costs.append(cost)
    return costs


def show_network(say: Terminal | Lesson, given: Shape, costs: Sequence[Cost], roof: Roof) -> None:
    """The tables of layers that run one after another, with their sums, and what PyTorch warned of."""
    numbered = {str(i): cost for i, cost in enumerate(costs, 1)}
    kinds: list[Row] = [{"step": "input", "output": str(given), "parameters": "", "layer": ""}]
    kinds += kind_table(numbered, "step")
    prices = price_table(numbered, roof, "step")
    if len(costs) > 1:
        flops, moved, seconds = (sum(values) for values in zip(
            *((cost.step.flops, cost.bytes_moved, cost.timing.median_s) for cost in costs), strict=True))  # fmt: skip
        least = [roof.at_least_s(cost.step.flops, cost.bytes_moved) for cost in costs]
        known = [value for value in least if value is not None]
        share = f"{percent(sum(known) / seconds)} of all limits" if len(known) == len(least) else "unknown"
        kinds.append({"step": "sum", "output": "", "parameters": sum(cost.parameters for cost in costs),
                      "layer": f"{len(costs)} layers"})  # fmt: skip
        counted = all(cost.flops == cost.step.flops for cost in costs)
        prices.append({"step": "sum", "FLOPs": operations_text(int(flops), is_counted=counted),
                       "MB moved": significant(moved / 1e6), "FLOP/B": significant(flops / max(1, moved)),
                       "time": seconds_text(seconds), "GFLOP/s": significant(flops / seconds / 1e9),
                       "GB/s": significant(moved / seconds / 1e9), "of its limit": share})  # fmt: skip
    say.table(kinds)
    say.table(prices)
    for cost in costs:
        if cost.warning:
            say.table([{"layer": str(cost.step.call), "PyTorch warns": cost.warning}])


# The chapter

MISTAKES = (
    ("Linear(128, 10)", "32,3,224,224"),
    ("Linear(512, 64)", "8,512,100"),
    ("Conv2d(3, 16, 3)", "8,32,32,3"),
    ("Conv2d(1, 8, 3)", "64,784"),
    ("Conv2d(3, 8, 3); ReLU(); Flatten(); Linear(8192, 10)", "8,3,32,32"),
    ("BatchNorm1d(32); ReLU()", "16,100,32"),
    ("LSTM(300, 64, batch_first=True); Linear(300, 2)", "4,20,300"),
    ("Conv2D(3, 8, 3)", "8,3,32,32"),
    ("Linear(64, 10, biass=False)", "8,64"),
)
HOSTILE = (
    "__import__('os').system('date')",
    "Linear(open('/etc/hosts'), 3)",
    "(lambda: ReLU())()",
    "ReLU().__class__.__mro__",
    "Linear(*[3, 4])",
    "Linear(3, 4, device='meta')",
    "[ReLU() for i in range(10 ** 9)]",
    "Linear(9 ** 9 ** 9, 3)",
    "(" * 999,
)
ABSURD = (
    ("ReLU()", "1000000,1000000"),
    ("Linear(10**6, 10**6)", "8,1000000"),
    ("Upsample(scale_factor=1000000)", "8,3,32,32"),
    ("RNN(8, 8, 10**9)", "5,3,8"),
    ("Conv2d(64, 64, 1001, padding=500)", "8,64,1000,1000"),
)


def refusal(layer: str, given: str, device: torch.device) -> CannotRun | None:
    """What the playground says to this; None where it takes it."""
    try:
        plan(read_layers(layer, LAYERS), read_shape(given), device)
    except CannotRun as error:
        return error
    return None


def cures_that_fit(layer: str, given: str, device: torch.device) -> tuple[int, int]:
    """Of the layers and inputs that the refusal proposes: how many fit where the mistake was, and how many there are."""
    error = refusal(layer, given, device)
    if not isinstance(error, DoesNotFit):
        return 0, 0
    calls, shape = read_layers(layer, LAYERS), read_shape(given)
    rows = [([*calls[: error.place], *read_layers(cure, LAYERS)], shape) for cure in error.misfit.layers]
    if error.place == 0:
        rows += [(calls[:1], each) for each in error.misfit.inputs]
    fit = 0
    for row, each in rows:
        try:
            plan(row, each, device)
        except CannotRun:
            continue
        fit += 1
    return fit, len(rows)


def number_found_by_pytorch(given: Shape) -> int:
    """in_features of a LazyLinear behind the other layers of NETWORK, which it learns from its first input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that its interface may change
        lazy = nn.LazyLinear(10)
    nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), lazy)(torch.zeros(given))
    return lazy.in_features


def show_typed_layers(lesson: Lesson, roof: Roof) -> None:
    given = lesson.pick(full=(512, 3, 32, 32), cpu=(64, 3, 32, 32), quick=(2, 3, 32, 32))
    lesson.section(
        "Layers of your own",
        "Most errors with layers are about shapes, and PyTorch reports them in the words of the kernel that failed. With "
        "--layer and --input this script follows the shape through layers that you type, before it computes anything, and "
        "says which one does not fit, what it wants, what it was given, and what would fit. It answers:",
    )
    for layer, shape in MISTAKES:
        lesson.items({"--layer": layer, "--input": shape, "answer": refusal(layer, shape, lesson.device) or "it fits"})
    refused = [str(refusal(*mistake, lesson.device) or "") for mistake in MISTAKES]
    lesson.check("every one of these is refused, in one line", all(refused) and not any("\n" in line for line in refused),
                 f"{sum(map(bool, refused))} of {len(MISTAKES)}")  # fmt: skip
    cures = [cures_that_fit(*mistake, lesson.device) for mistake in MISTAKES]
    fit, proposed = (sum(column) for column in zip(*cures, strict=True))
    lesson.check(
        "every layer and input that it proposes does fit", fit == proposed > len(MISTAKES) / 2, f"{fit} of {proposed}"
    )
    hostile = sum(refusal(text, "3,3", lesson.device) is not None for text in HOSTILE)
    lesson.check("what is typed is parsed and never evaluated", hostile == len(HOSTILE),
                 f"{hostile} of {len(HOSTILE)} hostile lines refused")  # fmt: skip
    absurd = [str(refusal(*each, lesson.device) or "") for each in ABSURD]
    lesson.check("absurd sizes are refused before they are made", all(absurd), absurd[1].partition(";")[0])
    steps = plan(read_layers(NETWORK, LAYERS), given, lesson.device)
    found, right = steps[-1].call.arguments["in_features"], number_found_by_pytorch((1, *given[1:]))
    lesson.check("... becomes the number that nn.LazyLinear finds", found == right, f"{steps[-1].call}")
    lesson.text(f'And where all fits, --layer "{NETWORK}" --input {",".join(map(str, given))} prints:')
    costs = run(steps, lesson.device, lesson.pick(full=0.1, quick=0.002))
    show_network(lesson, given, costs, roof)
    slowest = max(costs, key=lambda cost: cost.timing.median_s)
    largest = max(costs, key=lambda cost: cost.parameters)
    lesson.check("the network's real outputs are those foretold", [cost.output for cost in costs] == [s.output for s in steps],
                 f"{len(steps)} layers, at the end {costs[-1].output}")  # fmt: skip
    lesson.shows(
        f"{percent(largest.parameters / sum(cost.parameters for cost in costs))} of the parameters are in {largest.step.call}, "
        f"and {percent(slowest.timing.median_s / sum(cost.timing.median_s for cost in costs))} of the time goes to "
        f'{slowest.step.call}. Now it is yours: python src/layer_playground.py --layer "..." --input ...'
    )
