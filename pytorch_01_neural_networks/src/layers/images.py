"""The layers of networks for images: convolutions, pooling, normalisation, and what only rearranges."""

from pytorch_01_neural_networks.src.layers.costs import Cost, Roof, limit_text
from pytorch_01_neural_networks.src.layers.exhibits import (
    Specimen,
    exhibit,
    images,
    many_images,
    many_tokens,
)
from shared.agreement import agreement
from shared.device import full_float32
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
from torch import nn
from torch.nn import functional as F

Costs = dict[str, Cost]


def convolve_as_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A 3x3 convolution with padding 1 as one product of matrices: every window (N, 9 C, H W) becomes a column."""
    windows = F.unfold(x, kernel_size=3, padding=1)
    return (weight.flatten(1) @ windows + bias[:, None]).unflatten(-1, x.shape[2:])


def show_convolutions(lesson: Lesson, roof: Roof) -> Costs:
    lesson.section(
        "Convolutions",
        "A convolution is a Linear on the numbers of every window, with the same weights everywhere. So its parameters "
        "do not depend on the image, and its operations do. Here N is the batch, L_out the number of windows, k the "
        f"number of places in one. Most inputs are {images(lesson)}: (N, C, H, W).",
    )
    n, c, h, w = images(lesson)
    costs = exhibit(
        lesson,
        roof,
        "convolution",
        {
            "3x3": Specimen("Conv2d(64, 64, 3, padding=1)", (n, c, h, w)),
            "1x1": Specimen("Conv2d(64, 64, 1)", (n, c, h, w)),
            "depthwise": Specimen("Conv2d(64, 64, 3, padding=1, groups=64)", (n, c, h, w)),
            "dilated": Specimen("Conv2d(64, 64, 3, padding=2, dilation=2)", (n, c, h, w)),
            "stride 2": Specimen("Conv2d(64, 128, 3, stride=2, padding=1)", (n, c, h, w)),
            "first 7x7": Specimen("Conv2d(3, 64, 7, stride=2, padding=3)", (n, 3, 4 * h, 4 * w)),
            "transposed": Specimen("ConvTranspose2d(64, 32, 2, stride=2)", (n, c, h, w)),
            "1d": Specimen("Conv1d(64, 64, 3, padding=1)", (n, c, h * w)),
            "3d": Specimen("Conv3d(16, 16, 3, padding=1)", (n, 16, 8, h // 2, w // 2)),
        },
    )
    x, weight, bias = (torch.randn(shape, device=lesson.device) for shape in ((2, 4, 6, 5), (8, 4, 3, 3), (8,)))
    with full_float32():
        apart = agreement(convolve_as_product, lambda *args: F.conv2d(*args, padding=1), x, weight, bias)
    lesson.check("a convolution is a product with its windows as columns", apart.within(1e-5), apart)
    full, pair = costs["3x3"].step, [costs[name].step for name in ("depthwise", "1x1")]
    lesson.check("depthwise and 1x1 together are far smaller than 3x3",
                 sum(step.parameters for step in pair) * 5 < full.parameters
                 and sum(step.flops for step in pair) * 5 < full.flops,
                 f"parameters / {full.parameters / sum(step.parameters for step in pair):.1f}, "
                 f"FLOPs / {full.flops / sum(step.flops for step in pair):.1f}")  # fmt: skip
    dilated = costs["dilated"].step
    lesson.check("dilation widens the window and costs nothing",
                 (dilated.parameters, dilated.flops) == (full.parameters, full.flops),
                 "3 places of 5: the same parameters and FLOPs")  # fmt: skip
    down, up = costs["stride 2"].step, costs["transposed"].step
    lesson.check("stride 2 halves an image's sides, transposed doubles them",
                 down.output[2:] == (h // 2, w // 2) and up.output[2:] == (2 * h, 2 * w),
                 f"{h} to {down.output[2]}, {h} to {up.output[2]}")  # fmt: skip
    deep, normal = costs["depthwise"], costs["3x3"]
    lesson.shows(
        f"the depthwise layer does {percent(deep.step.flops / normal.step.flops)} of the operations of 3x3 and took "
        f"{percent(deep.timing.median_s / normal.timing.median_s)} of its time. With {significant(deep.intensity, 2)} FLOP/B, "
        f"instead of {significant(normal.intensity)}, its limit is another one ({limit_text(deep, roof)}; 3x3: "
        f"{limit_text(normal, roof)}). Fewer FLOPs are not as much less time."
    )
    return costs


def show_pooling(lesson: Lesson, roof: Roof) -> Costs:
    n, c, h, w = many_images(lesson)
    lesson.section(
        "Pooling",
        "Pooling makes an image smaller and learns nothing: of each window the largest number, or the mean. An adaptive "
        "pooling is told how large its output shall be, so a network with one takes images of any size. Inputs are "
        f"{(n, c, h, w)}; one operation is counted for each number in a window.",
    )
    costs = exhibit(
        lesson,
        roof,
        "pooling",
        {
            "max 2x2": Specimen("MaxPool2d(2)", (n, c, h, w)),
            "max 3x3": Specimen("MaxPool2d(3, stride=2, padding=1)", (n, c, h, w)),
            "mean 2x2": Specimen("AvgPool2d(2)", (n, c, h, w)),
            "to 7x7": Specimen("AdaptiveAvgPool2d(7)", (n, c, h, w)),
            "to 1x1": Specimen("AdaptiveAvgPool2d(1)", (n, c, h, w)),
            "max 1d": Specimen("MaxPool1d(2)", (n, c, h * w)),
        },
    )
    x = torch.randn(2, 3, 9, 7)  # on the CPU: MPS has only windows of one size
    apart = agreement(lambda x: nn.AdaptiveAvgPool2d(1)(x), lambda x: x.mean((2, 3), keepdim=True), x)
    lesson.check("AdaptiveAvgPool2d(1) is the mean over height and width", apart.within(1e-5), apart)
    shapes = {tuple(nn.AdaptiveAvgPool2d(7)(x[:, :, :side, :side]).shape[2:]) for side in (3, 5, 7)}
    lesson.check(
        "an adaptive pooling gives one size for all images", shapes == {(7, 7)}, "images of 3, 5 and 7 to 7 x 7"
    )
    padded = nn.AvgPool2d(3, padding=1)(torch.ones(1, 1, 3, 3))[0, 0, 0, 0].item()
    lesson.check("AvgPool2d counts the zeros of its padding", abs(padded - 4 / 9) < 1e-6,
                 f"ones have the mean {padded:.3f} in a corner")  # fmt: skip
    highest = max(cost.intensity for cost in costs.values())
    slowest = min(costs, key=lambda name: roof.share(costs[name]) or 1)
    lesson.shows(
        f"no pooling here does more than {significant(highest, 2)} operations for each byte, so its limit is to read the "
        f"image once. Furthest from it is {slowest} ({limit_text(costs[slowest], roof)}). What is missing there is lost in "
        "the kernel that computes it, and not in what pooling asks for."
    )
    return costs


NORMALISED = {"batch": (0, 2, 3), "instance": (2, 3), "layer": (1, 2, 3)}


def show_normalisation(lesson: Lesson, roof: Roof) -> Costs:
    image, text = many_images(lesson), many_tokens(lesson)
    lesson.section(
        "Normalisation",
        "All of these subtract a mean, divide by a standard deviation, then scale and shift with learned numbers (RMSNorm "
        "divides only). They differ in the numbers that share a mean: a channel over the whole batch (BatchNorm), a "
        f"channel of one sample, a group of them, or all features of one sample. Inputs are {image} and {text}.",
    )
    costs = exhibit(
        lesson,
        roof,
        "normalisation",
        {
            "batch": Specimen("BatchNorm2d(64)", image),
            "instance": Specimen("InstanceNorm2d(64)", image),
            "group": Specimen("GroupNorm(8, 64)", image),
            "layer": Specimen("LayerNorm(512)", text),
            "rms": Specimen("RMSNorm(512)", text),
        },
    )
    x = 3 * torch.randn(8, 4, 6, 6, device=lesson.device) + 2
    layers = {"batch": nn.BatchNorm2d(4), "instance": nn.InstanceNorm2d(4), "layer": nn.LayerNorm((4, 6, 6))}
    own = {name: (x - x.mean(axes, keepdim=True)) / (x.var(axes, correction=0, keepdim=True) + 1e-5).sqrt()
           for name, axes in NORMALISED.items()}  # fmt: skip
    worst = max((own[name] - layer.to(lesson.device)(x)).abs().max().item() for name, layer in layers.items())
    lesson.check("batch, instance and layer norm differ only in the axes", worst < 1e-4,
                 f"{', '.join(map(str, NORMALISED.values()))}: to {worst:.0e}")  # fmt: skip
    one, two = nn.GroupNorm(1, 4, device=lesson.device)(x), nn.GroupNorm(4, 4, device=lesson.device)(x)
    ends = (one - own["layer"]).abs().max().item(), (two - own["instance"]).abs().max().item()
    lesson.check("GroupNorm lies between: one group, or one a channel", max(ends) < 1e-4,
                 f"layer to {ends[0]:.0e}, instance to {ends[1]:.0e}")  # fmt: skip
    kept = sum(buffer.numel() for buffer in nn.BatchNorm2d(64).buffers())
    lesson.check("BatchNorm keeps numbers that no gradient changes", kept == 2 * 64 + 1,
                 f"{kept} in buffers: means, variances, a count")  # fmt: skip
    batch = costs["batch"]
    lesson.shows(
        f"BatchNorm2d has {batch.parameters} parameters and moves {significant(batch.bytes_moved / 1e6)} MB. Beside a "
        "convolution it adds next to nothing to a model's file and a full pass over memory to its time, which is why it "
        "is merged into the convolution before a model is deployed."
    )
    return costs


def show_rearranging(lesson: Lesson, roof: Roof) -> Costs:
    n, c, h, w = images(lesson)
    lesson.section(
        "Layers that only rearrange",
        "Some layers change the shape and leave the numbers alone. Where a new shape can be read from the old memory, "
        "nothing moves at all. Upsampling in mode nearest copies, in the other modes it mixes neighbours: `taps` of them "
        f"for each number. Inputs are {(n, c, h, w)}.",
    )
    costs = exhibit(
        lesson,
        roof,
        "rearranging",
        {
            "Flatten": Specimen("Flatten()", (n, c, h, w)),
            "Unflatten": Specimen("Unflatten(1, (8, 8))", (n, c, h, w)),
            "PixelShuffle": Specimen("PixelShuffle(2)", (n, c, h, w)),
            "nearest": Specimen("Upsample(scale_factor=2)", (n, c, h, w)),
            "bilinear": Specimen("Upsample(scale_factor=2, mode='bilinear')", (n, c, h, w)),
        },
    )
    views = [name for name, cost in costs.items() if cost.bytes_moved == 0]
    lesson.check("Flatten and Unflatten are views and move nothing", views == ["Flatten", "Unflatten"],
                 "the output begins at the input's own address")  # fmt: skip
    x = torch.randn(2, 8, 3, 5, device=lesson.device)
    by_hand = x.view(2, 2, 2, 2, 3, 5).permute(0, 1, 4, 2, 5, 3).reshape(2, 2, 6, 10)
    lesson.check("PixelShuffle(2) turns 4 channels into 2 x 2 pixels", torch.equal(nn.PixelShuffle(2)(x), by_hand),
                 f"{tuple(x.shape)} to {tuple(by_hand.shape)}")  # fmt: skip
    moved = x.permute(0, 2, 3, 1)
    lesson.check("Flatten copies what does not lie in order", nn.Flatten()(moved).data_ptr() != moved.data_ptr(),
                 "after a permute, for example")  # fmt: skip
    shuffle = costs["PixelShuffle"]
    lesson.shows(
        f"PixelShuffle does no operation and still moves {significant(shuffle.bytes_moved / 1e6)} MB, in "
        f"{significant(1e3 * shuffle.timing.median_s, 2)} ms. For such a layer FLOPs say nothing about its time; bytes do."
    )
    return costs
