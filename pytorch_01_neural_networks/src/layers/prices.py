"""What a layer costs by formula, counted and measured, and all layers of the lesson under one roof."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytorch_01_neural_networks.src.layers.catalogue import LAYERS
from pytorch_01_neural_networks.src.layers.costs import (
    Cost,
    Roof,
    count_flops,
    limit_text,
    make_input,
    weigh,
)
from pytorch_01_neural_networks.src.layers.exhibits import images
from pytorch_01_neural_networks.src.layers.families import Family
from pytorch_01_neural_networks.src.layers.planning import build, plan
from pytorch_01_neural_networks.src.layers.reading import Shape, read_layers
from shared.hardware import matmul_peak, memory_bandwidth
from shared.lesson import Lesson
from shared.units import percent, rate_text, seconds_text, significant

import torch
from torch import nn

CPU = torch.device("cpu")
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top

SEEN: dict[str, Shape] = {
    "Linear(8, 16)": (4, 6, 8),
    "Conv2d(3, 8, 3)": (4, 3, 8, 8),
    "ConvTranspose2d(3, 8, 3)": (4, 3, 8, 8),
    "MultiheadAttention(8, 2)": (4, 6, 8),
    "Bilinear(8, 8, 16)": (4, 8),
    "RNN(8, 16)": (4, 6, 8),
    "GRU(8, 16)": (4, 6, 8),
    "LSTM(8, 16)": (4, 6, 8),
    "EmbeddingBag(50, 8)": (4, 6),
    "MaxPool2d(2)": (4, 3, 8, 8),
    "BatchNorm2d(3)": (4, 3, 8, 8),
    "GELU()": (4, 6, 8),
}


def with_numbers(formula: str, sizes: Mapping[str, int]) -> str:
    """The formula with numbers in the place of its names."""
    return re.sub(r"[A-Za-z_]\w*", lambda name: str(sizes[name[0]]), formula)


def count_in_evaluation(family: Family, layer: nn.Module, x: torch.Tensor) -> int:
    """The mistake: without training and gradients, attention is one fused operation, which the counter does not know."""
    layer.eval()
    with torch.no_grad():
        return count_flops(family, layer, x)


def show_price(lesson: Lesson, roof: Roof) -> None:
    lesson.section(
        "What a layer costs",
        "Three numbers tell what to expect of a layer before you run it: its parameters, its floating point operations "
        "(FLOPs; a multiplication and an addition are two), and the bytes that must move at least: input, output and "
        "parameters, once each. Here for one layer, in full; every table below has the same columns.",
    )
    layer, given = "Conv2d(64, 64, 3, padding=1)", images(lesson)
    (step,) = plan(read_layers(layer, LAYERS), given, lesson.device)
    cost, _ = weigh(step, torch.randn(given, device=lesson.device), lesson.device, lesson.pick(full=0.2, quick=0.002))
    family = step.family
    sizes = family.sizes(build(step.call, family, "meta"), given)
    lesson.items(
        {
            layer: f"on {given} gives {cost.output}",
            "parameters": f"{family.parameters} = {with_numbers(family.parameters, sizes)} = {step.parameters:,}",
            "FLOPs": f"{family.flops} = {with_numbers(family.flops, sizes)} = {step.flops:,}",
            "bytes": f"4 * ({math.prod(given):,} + {math.prod(cost.output):,} + {step.parameters:,}) = {cost.bytes_moved:,}",
            "FLOP/B": f"{significant(cost.intensity)}, operations for each byte",
        }
    )
    lesson.check(
        "parameters: the formula gives what the layer holds", step.parameters == cost.parameters, f"{cost.parameters:,}"
    )
    lesson.check("FLOPs: the formula gives what FlopCounterMode counts", step.flops == cost.flops, f"{cost.flops:,}")
    show_limits(lesson, roof, cost)
    blind = show_counter(lesson)
    at_least_s = roof.at_least_s(step.flops, cost.bytes_moved)
    lesson.shows(
        f"{layer} took {seconds_text(cost.timing.median_s)}"
        + (f" and cannot take less than {seconds_text(at_least_s)} here. " if at_least_s else ". ")
        + f"FlopCounterMode sees {len(SEEN) - len(blind)} of the {len(SEEN)} layers above: where one kernel does a whole "
        "layer, as for an LSTM on most devices, even its products escape. In the tables that follow, * "
        "marks FLOPs that come from the formula alone."
    )


def show_limits(lesson: Lesson, roof: Roof, cost: Cost) -> None:
    lesson.text(
        "A layer cannot be faster than its operations at the device's peak, nor than its bytes at the speed of main "
        "memory. The larger of these two times is its limit, and the last column of a table says which one it is and how "
        "much of it was reached. On a CPU both are the best that could be measured; what still lies in a cache from the "
        "call before can be read faster, and such a row says so. float32 is computed in full here, without TF32."
    )
    limits = {"arithmetic": matmul_peak(lesson.device, torch.float32), "memory": memory_bandwidth(lesson.device)}
    lesson.table(
        [
            {"limit": name, "at most": rate_text(limit.value, limit.unit), "source": limit.source}
            for name, limit in limits.items()
            if limit
        ]
    )
    if roof.ridge:
        lesson.record("ridge", roof.ridge, "FLOP/B")
        lesson.check("at the ridge, peak / bandwidth, both times are equal",
                     math.isclose(roof.at_least_s(roof.ridge, 1) or 0, 1 / (roof.bandwidth or 1)),
                     f"{significant(roof.ridge)} FLOP/B")  # fmt: skip


def show_counter(lesson: Lesson) -> list[str]:
    """Which layers FlopCounterMode counts; returns those that it does not see."""
    lesson.text(
        "torch.utils.flop_counter.FlopCounterMode looks on while a layer runs and counts what it has a formula for: "
        "products of matrices, convolutions, attention. On small inputs, on the CPU:"
    )
    counted, formula, sure = {}, {}, []
    for text, given in SEEN.items():
        (step,) = plan(read_layers(text, LAYERS), given, CPU)
        module = build(step.call, step.family, CPU)
        formula[text] = step.flops
        counted[text] = count_flops(step.family, module, make_input(step.family, module, given, CPU))
        if step.family.is_counted:
            sure.append(text)
    lesson.table(
        [
            {"layer": text, "input": str(SEEN[text]), "by formula": formula[text], "FlopCounterMode": counted[text]}
            for text in SEEN
        ]
    )
    lesson.check("products, convolutions and attention are all counted",
                 all(formula[text] == counted[text] for text in sure), f"{len(sure)} layers, each as its formula")  # fmt: skip
    never = [text for text in SEEN if text.startswith(("MaxPool", "BatchNorm", "GELU", "EmbeddingBag", "Bilinear"))]
    lesson.check("pooling, norms, activations and lookups count 0", not any(counted[text] for text in never),
                 f"{len(never)} layers, whatever they compute")  # fmt: skip
    module, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(4, 6, 8)
    training, fused = (count(LAYERS["MultiheadAttention"], module, x) for count in (count_flops, count_in_evaluation))
    lesson.check(
        "attention in eval() and no_grad() counts 0, too",
        fused == 0 < training,
        f"{fused}, and {training:,} in training",
    )
    return [text for text, flops in counted.items() if flops == 0]


# All layers in one picture

PICTURED = {
    "1 vector": "Linear, 1 vector", "32 vectors": "Linear, 32 vectors", "Bilinear": "Bilinear", "3x3": "conv 3x3",
    "1x1": "conv 1x1", "depthwise": "depthwise", "first 7x7": "conv 7x7", "transposed": "transposed", "max 2x2": "max pool",
    "mean 2x2": "mean pool", "batch": "BatchNorm", "layer": "LayerNorm", "ReLU": "ReLU", "GELU": "GELU",
    "softmax": "softmax", "means": "EmbeddingBag", "RNN": "RNN", "LSTM": "LSTM", "attention": "attention",
    "encoder": "encoder layer", "bilinear": "upsample",
}  # fmt: skip


def show_roofline(lesson: Lesson, roof: Roof, costs: Mapping[str, Cost]) -> None:
    lesson.section(
        "All layers under one roof",
        "Every layer of the tables, by its operations for each byte (to the right: more) and the rate it reached (up: "
        "faster). Left of the ridge memory is the limit, and a layer gets faster by moving less; right of it arithmetic "
        "is, and a shorter number format or fewer operations help. The distance to the line is what could be won.",
    )
    ranked = sorted((cost for cost in costs.values() if roof.share(cost)), key=lambda cost: roof.share(cost) or 0)
    by_label = {id(cost): label for label, cost in costs.items()}
    shown = [*ranked[:-5:-1], *ranked[3::-1]] if len(ranked) > 8 else ranked
    lesson.table(
        [
            {"label": by_label[id(cost)], "FLOP/B": significant(cost.intensity), "time": seconds_text(cost.timing.median_s),
             "of its limit": limit_text(cost, roof), "layer": str(cost.step.call)}
            for cost in shown
        ]
    )  # fmt: skip
    light = [
        costs[label] for label in ("batch", "group", "layer", "rms", "max 2x2", "mean 2x2", "ReLU", "GELU", "dropout")
    ]
    heavy = [costs[label] for label in ("3x3", "dilated", "first 7x7")]
    lightest, heaviest = max(cost.intensity for cost in light), min(cost.intensity for cost in heavy)
    lesson.check("norms, pooling and activations: a few FLOPs a byte", lightest < 2,
                 f"at most {significant(lightest, 2)}, in {len(light)} layers")  # fmt: skip
    lesson.check("convolutions with a window and many channels: dozens", heaviest > 10 * lightest,
                 f"at least {significant(heaviest)}, in {len(heavy)} layers")  # fmt: skip
    conv, around = costs["3x3"], [costs["batch"], costs["ReLU"]]
    flops = sum(cost.step.flops for cost in around) / 4 / conv.step.flops  # their batch is four times as large
    seconds = sum(cost.timing.median_s for cost in around) / 4 / conv.timing.median_s
    if roof.ridge:
        lesson.figure("layers_on_the_roofline", lambda axis: draw_roofline(axis, roof, costs))
    lesson.shows(
        f"BatchNorm and ReLU behind a 3x3 convolution add {percent(flops)} to its operations and {percent(seconds)} to its "
        "time. To guess how long a network takes, count its bytes beside its FLOPs; to speed it up, begin with the layers "
        "that are far from their limit and take long. The picture is layers_on_the_roofline.png."
    )


def draw_roofline(axis: Any, roof: Roof, costs: Mapping[str, Cost]) -> None:
    points = {PICTURED[label]: (cost.intensity, cost.rate / 1e9) for label, cost in costs.items() if label in PICTURED}
    xs, ys = [x for x, _ in points.values()], [y for _, y in points.values()]
    peak, bandwidth = (roof.flops or 1) / 1e9, (roof.bandwidth or 1) / 1e9
    ridge = peak / bandwidth
    low, high, bottom, top = min(xs) / 2, 4 * max(ridge, *xs), min(ys) / 2, 5 * max(peak, *ys)
    above = any(y > min(peak, x * bandwidth) for x, y in points.values())
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top), ylabel="GFLOP/s",
             title="Layers on the roofline, float32" + ("; above the line: from a cache" if above else ""),
             xlabel="operations for each byte moved (FLOP/B)")  # fmt: skip
    line = [(low, max(bottom, low * bandwidth)), (ridge, peak), (high, peak)]
    label = f"limit: {rate_text(bandwidth * 1e9, 'B/s')} of memory, {rate_text(peak * 1e9, 'FLOP/s')}"
    axis.plot([x for x, _ in line], [y for _, y in line], color="black", marker="", linestyle="-", label=label)
    axis.plot(xs, ys, marker="o", linestyle="", color="black")
    axis.legend(loc="upper left", fontsize=9)
    place_labels(axis, points, line)


def place_labels(axis: Any, points: Mapping[str, Point], line: Sequence[Point]) -> None:
    """A name beside each point, as near as it can stand without lying on a point, on the line or on another name."""
    (left, right), (bottom, top) = (tuple(map(math.log, limits)) for limits in (axis.get_xlim(), axis.get_ylim()))
    width, height = 790.0, 415.0  # of the axes in pixels, about

    def pixels(point: Point) -> Point:
        x, y = (math.log(value) for value in point)
        return (x - left) / (right - left) * width, (y - bottom) / (top - bottom) * height

    places = {name: pixels(point) for name, point in points.items()}
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places.values()]
    for (x0, y0), (x1, y1) in itertools.pairwise(map(pixels, line)):
        for step in range(101):
            x, y = x0 + (x1 - x0) * step / 100, y0 + (y1 - y0) * step / 100
            taken.append((x - 2, y - 2, x + 2, y + 2))
    for name, (x, y) in sorted(places.items(), key=lambda item: item[1]):
        size = 7.0 * len(name) + 8, 14.0
        free = (box for box in boxes_around(x, y, size) if is_free(box, taken, width, height))
        box = next(free, (x, y, x + size[0], y + size[1]))
        taken.append(box)
        middle = (box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y
        is_far = abs(middle[0]) > size[0] / 2 + 14 or abs(middle[1]) > 22
        axis.annotate(name, points[name], tuple(72 / 110 * each for each in middle), textcoords="offset points", fontsize=8,
                      ha="center", va="center", arrowprops={"arrowstyle": "-", "linewidth": 0.5} if is_far else None)  # fmt: skip


def boxes_around(x: float, y: float, size: Point) -> Iterator[Box]:
    """Boxes of `size` around a point, the nearest first."""
    wide, tall = size
    for distance in range(0, 400, 8):
        for turn in range(16):
            across, up = math.cos(turn * math.pi / 8), math.sin(turn * math.pi / 8)
            middle_x, middle_y = x + across * (wide / 2 + 6 + distance), y + up * (tall / 2 + 5 + distance)
            yield middle_x - wide / 2, middle_y - tall / 2, middle_x + wide / 2, middle_y + tall / 2


def is_free(box: Box, taken: Sequence[Box], width: float, height: float) -> bool:
    """Whether a box lies inside the axes and on none of those that are taken."""
    inside = box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
    return inside and not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
    )
