"""How large the output of a convolution, a pooling or a transposed convolution is: the formulas, drawn and tried."""

import random

from pytorch_01_neural_networks.src.layers.catalogue import LAYERS
from pytorch_01_neural_networks.src.layers.families import Family
from pytorch_01_neural_networks.src.layers.planning import build
from pytorch_01_neural_networks.src.layers.reading import Call, Shape
from pytorch_01_neural_networks.src.layers.windows import (
    adaptive_taps,
    spread_length,
    windows_rounded_up,
    windows_that_fit,
)
from shared.lesson import Lesson
from shared.units import percent

import torch
from torch import nn


def draw_windows(length: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> str:
    """The input in boxes, · for padding, and under it one line for each window with ▔ where it reads."""
    row = ["·"] * padding + [str(i) for i in range(length)] + ["·"] * padding
    title = f"length {length}, kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}"
    lines = [title, "│" + "│".join(row) + "│"]
    for i in range(windows_that_fit(length, kernel, stride, padding, dilation)):
        read = {i * stride + dilation * j for j in range(kernel)}
        lines.append((" " + " ".join("x" if place in read else " " for place in range(len(row)))).rstrip() + f"  → {i}")
    return "\n".join(lines)


def count_windows(length: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """The slow and obvious way: lay a window at every place where one may begin."""
    end = length + 2 * padding
    return sum(start + dilation * (kernel - 1) < end for start in range(0, end, stride))


def length_by_stride_alone(length: int, stride: int) -> int:
    """The mistake: "stride 2 halves it". True only where the padding makes up for the kernel."""
    return length // stride


def random_layer(generator: random.Random) -> tuple[Call, Family, Shape]:
    """A convolution, a pooling, or a transposed one, of 1 to 3 axes, with random options, and an input that it takes."""
    axes, draw = generator.choice((1, 2, 3)), generator.randint
    kind = generator.choice(("Conv", "ConvTranspose", "MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool"))

    def along(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(low, high) for _ in range(axes))

    kernel = along(1, 4)
    groups = generator.choice((1, 1, 2))
    channels = groups * draw(1, 3)
    while True:
        stride, dilation = along(1, 3), along(1, 3)
        padding = tuple(draw(0, size // 2) for size in kernel)
        options: dict[str, object] = {"kernel_size": kernel, "stride": stride, "padding": padding}
        if kind.startswith("Conv"):
            options |= {"in_channels": channels, "out_channels": groups * draw(1, 3), "groups": groups,
                        "dilation": dilation, "bias": generator.random() < 0.7}  # fmt: skip
        if kind == "Conv" and generator.random() < 0.2:
            odd = tuple(size | 1 for size in kernel)  # PyTorch warns that an even one needs a copy
            options |= {"padding": "same", "stride": 1, "kernel_size": odd}
        if kind == "ConvTranspose":
            options["output_padding"] = tuple(draw(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
        if kind.endswith("Pool"):
            options["ceil_mode"] = generator.random() < 0.5
        if kind == "MaxPool":
            options["dilation"] = dilation
        if kind.startswith("Adaptive"):
            options = {"output_size": along(1, 5)}
        call = Call(f"{kind}{axes}d", (), options)  # type: ignore[arg-type]
        family = LAYERS[call.name]
        shape = (*(() if generator.random() < 0.2 else (draw(1, 2),)), channels, *along(1, 9))
        layer = build(call, family, "meta")
        if family.misfit(call, layer, shape) is None:
            return call, family, shape


def show_output_sizes(lesson: Lesson) -> None:
    lesson.section(
        "How many windows fit",
        "The first error of many networks is a shape that came out one smaller than thought. A kernel, 3 wide, slides "
        "along a row; each place where it fits gives one number. Padding adds places at both ends, stride skips places, "
        "dilation pulls the kernel apart. x is what a window reads, → the number that it makes.",
    )
    for options in ((7, 3), (7, 3, 2, 1), (8, 3, 2, 1), (7, 3, 1, 0, 2)):
        lesson.drawing(draw_windows(*options))
    lesson.items(
        {
            "convolution, pooling": "(L + 2 padding - dilation (kernel - 1) - 1) // stride + 1",
            "ceil_mode=True": "rounded up, less a window that would begin in the padding at the end",
            "padding='same'": "L, with stride 1",
            "transposed": "(L - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1",
            "adaptive": "what you asked for; window i reaches from floor(i L / out) to ceil((i + 1) L / out)",
        }
    )
    drawn = random.Random(lesson.options.seed)
    small = [(length, kernel, stride, padding, dilation) for length in range(1, 12) for kernel in range(1, 5)
             for stride in range(1, 4) for padding in range(3) for dilation in range(1, 4)]  # fmt: skip
    right = sum(max(0, windows_that_fit(*each)) == count_windows(*each) for each in small)
    lesson.check(
        "the formula counts the windows that fit",
        right == len(small),
        f"laid one by one, {right:,} of {len(small):,} rows",
    )
    tried = [random_layer(drawn) for _ in range(lesson.pick(full=600, quick=100))]
    agree, kinds = 0, set()
    with torch.no_grad():
        for call, family, shape in tried:
            layer = build(call, family, "cpu")  # a shape is the same on every device
            predicted = family.output(layer, shape), family.count_parameters(layer, shape)
            found = (
                tuple(layer(torch.randn(shape)).shape),
                sum(p.numel() for p in layer.parameters()),
            )
            agree += predicted == found
            kinds.add(call.name)
    lesson.check("random layers have the output and parameters foretold", agree == len(tried),
                 f"{agree} of {len(tried)}, {len(kinds)} kinds")  # fmt: skip
    back = [(length, kernel, stride, padding, dilation) for length, kernel, stride, padding, dilation in small
            if windows_that_fit(length, kernel, stride, padding, dilation) > 0]  # fmt: skip
    returned = [
        any(spread_length(windows_that_fit(*each), each[1], each[2], each[3], extra, each[4]) == each[0]
            for extra in range(each[2]))
        for each in back
    ]  # fmt: skip
    lesson.check("a transposed convolution finds the way back", all(returned),
                 f"from {len(back):,} lengths, output_padding < stride")  # fmt: skip
    seven, eight = windows_that_fit(7, 3, 2, 1), windows_that_fit(8, 3, 2, 1)
    lesson.check("stride 2 makes one length of two: so output_padding", seven == eight, f"7 and 8 both become {seven}")
    wrong = sum(length_by_stride_alone(each[0], each[2]) != windows_that_fit(*each) for each in back)
    lesson.check(
        "dividing by the stride alone is mostly wrong",
        wrong > len(back) / 2,
        f"in {percent(wrong / len(back))} of these rows",
    )
    up, down = windows_rounded_up(7, 2, 2), windows_that_fit(7, 2, 2)
    pooled = nn.MaxPool1d(2, ceil_mode=True)(torch.zeros(1, 1, 7)).shape[-1]
    lesson.check(
        "ceil_mode keeps the odd one at the end", (pooled, up, down) == (4, 4, 3), f"7 by 2: {down} windows, or {up}"
    )
    overlap = adaptive_taps(7, 3)
    lesson.check("windows of an adaptive pooling overlap where needed",
                 overlap == 9 and nn.AdaptiveMaxPool1d(3)(torch.arange(7.0)[None]).tolist() == [[2, 4, 6]],
                 f"7 places to 3: they read {overlap}, up to 2, 4 and 6")  # fmt: skip
    same = sum(windows_that_fit(each[0], each[1], 1, each[3], each[4]) == each[0] for each in back if each[2] == 1)
    lesson.shows(
        f"of these rows with stride 1, {same} keep their length: those with 2 padding = dilation (kernel - 1). That is why "
        "3x3 kernels come with padding 1 and 5x5 with 2. Kernels of even width cannot do it evenly; padding='same' adds the "
        "odd zero at the end."
    )
