"""How a group of layers is shown: the formulas, what each layer is, what it costs, and that all of it is true."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytorch_01_neural_networks.src.layers.catalogue import LAYERS
from pytorch_01_neural_networks.src.layers.costs import (
    Cost,
    Roof,
    kind_table,
    make_input,
    operations_text,
    price_table,
    weigh,
)
from pytorch_01_neural_networks.src.layers.planning import build, plan
from pytorch_01_neural_networks.src.layers.reading import Shape, read_layers
from shared.hardware import Limit
from shared.lesson import Lesson
from shared.terminal import Terminal


@dataclass(frozen=True)
class Specimen:
    """A layer as you would type it after --layer, and the shape of its input."""

    layer: str
    given: Shape


def images(lesson: Lesson) -> Shape:
    """A batch as it is inside a network for images: (N, C, H, W)."""
    return lesson.pick(full=(128, 64, 56, 56), cpu=(8, 64, 56, 56), quick=(2, 64, 14, 14))


def many_images(lesson: Lesson) -> Shape:
    """For layers that do little to each number: too much for most caches (26 MB on a CPU)."""
    batch, *image = images(lesson)
    return (4 * batch, *image)


def tokens(lesson: Lesson) -> Shape:
    """A batch as it is inside a network for text: (N, T, C)."""
    return lesson.pick(full=(64, 256, 512), cpu=(4, 256, 512), quick=(2, 32, 512))


def many_tokens(lesson: Lesson) -> Shape:
    batch, *rest = tokens(lesson)
    return (12 * batch, *rest)


def exhibit(lesson: Lesson, roof: Roof, what: str, specimens: Mapping[str, Specimen]) -> dict[str, Cost]:
    """Prints formulas and tables of a group and checks them against the layers themselves; returns what was found."""
    show_formulas(lesson, [specimen.layer.partition("(")[0] for specimen in specimens.values()])
    costs = {}
    for name, specimen in lesson.progress(list(specimens.items()), what):
        (step,) = plan(read_layers(specimen.layer, LAYERS), specimen.given, lesson.device)
        x = make_input(step.family, build(step.call, step.family, "meta"), specimen.given, lesson.device)
        costs[name], _ = weigh(step, x, lesson.device, lesson.pick(full=0.15, cpu=0.1, quick=0.002))
        record(lesson, roof, name, costs[name])
    lesson.table(kind_table(costs, what))
    lesson.table(price_table(costs, roof, what))
    found = list(costs.values())
    lesson.check(f"{what}: output and parameters are as the formulas say",
                 all((cost.output, cost.parameters) == (cost.step.output, cost.step.parameters) for cost in found),
                 f"{len(found)} layers, {sum(cost.parameters for cost in found):,} parameters")  # fmt: skip
    must = [cost for cost in found if cost.step.family.is_counted]
    seen = [cost for cost in found if cost.flops]
    missed = [name for name, cost in costs.items() if not cost.flops and cost.step.flops]
    total = operations_text(sum(cost.flops for cost in seen), is_counted=True)
    lesson.check(f"{what}: FlopCounterMode agrees wherever it counts",
                 all(cost.flops == cost.step.flops for cost in {id(cost): cost for cost in [*must, *seen]}.values()),
                 f"{len(seen)} layers, {total}; " + (f"blind to {len(missed)}" if missed else "blind to none")
                 if seen else f"blind to all {len(found)}, hence the *")  # fmt: skip
    return costs


def show_formulas(say: Lesson | Terminal, names: Sequence[str]) -> None:
    """One row for each formula, with the names of the layers that obey it."""
    of: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(names):
        of.setdefault((LAYERS[name].parameters, LAYERS[name].flops), []).append(name)
    rows = []
    for (parameters, flops), same in of.items():
        formulas = {"parameters": parameters, "FLOPs": flops} if parameters != "0" else {"FLOPs": flops}
        lines = textwrap.wrap(", ".join(same), 34)
        for line, entry in itertools.zip_longest(lines, formulas.items()):
            count, formula = (entry[0], f"= {entry[1]}") if entry else ("", "")
            rows.append({"layers": line or "", "count": count, "formula": formula})
    say.table(rows)


def record(lesson: Lesson, roof: Roof, name: str, cost: Cost) -> None:
    """Into result.json: the rate beside its limit, or the time of a layer that does no operations."""
    params = {"layer": str(cost.step.call), "input": cost.step.given, "label": name, "flops": cost.step.flops,
              "bytes": cost.bytes_moved}  # fmt: skip
    at_least_s = roof.at_least_s(cost.step.flops, cost.bytes_moved)
    if cost.step.flops:
        limit = (
            Limit(cost.step.flops / at_least_s, "FLOP/s", "the roofline at this intensity", "derived")
            if at_least_s
            else None
        )
        lesson.record("layer", cost.rate / 1e9, "GFLOP/s", cost.timing, limit, **params)
    else:
        lesson.record("layer", 1e3 * cost.timing.median_s, "ms", cost.timing, **params)
