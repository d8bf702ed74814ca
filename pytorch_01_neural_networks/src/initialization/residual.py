"""A residual stream adds up what its blocks write: its variance by depth, and GPT-2's 1/√blocks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_01_neural_networks.src.initialization.depth import TOLERANCE, random_signs, scientific
from pytorch_01_neural_networks.src.initialization.initialisers import kaiming_normal_, normal_
from shared.lesson import Lesson
from shared.units import percent, significant

import torch

ROWS = 512  # each goes through a network of its own, as in depth.py


def unit_size(x: torch.Tensor) -> torch.Tensor:
    """Each row divided by the root of its mean square: RMSNorm without a weight."""
    return x / x.square().mean(dim=1, keepdim=True).sqrt()


def stream_variances(blocks: int, width: int, device: torch.device, *, normalised: bool, scale: float) -> list[float]:
    """The second moment of the stream after 0, 1, … blocks: x + scale * W2 relu(W1 norm(x)), hidden layer 2 x width.

    W1 is Kaiming's and W2 has the variance 1 / fan_in, so that a block writes what it reads: second moment 1 for 1.
    """
    x = torch.randn(ROWS, width, device=device)
    variances = [x.square().mean().item()]
    for _ in range(blocks):
        first = kaiming_normal_(torch.empty(2 * width, width, device=device))
        second = normal_(torch.empty(width, 2 * width, device=device), 1 / math.sqrt(2 * width))
        read = unit_size(x) if normalised else x
        hidden = torch.relu((read * random_signs((ROWS, width), device)) @ first.T)
        x = x + scale * (hidden * random_signs((ROWS, 2 * width), device)) @ second.T
        variances.append(x.square().mean().item())
    return variances


def show_residual(lesson: Lesson) -> None:
    layers, width = lesson.pick(full=12, quick=6), lesson.pick(full=384, quick=256)
    blocks = 2 * layers
    lesson.section(
        "The residual stream",
        "A transformer never multiplies through its depth: each block adds to a stream, x + f(x). Variances of "
        "independent summands add, so the theory fits in one line each. Blocks that read the stream as it is write as "
        "much as there is: it doubles. Blocks that read it normalised write 1 each: it grows by 1. GPT-2 has 2 blocks "
        "in each of its layers (attention and MLP) and starts with their last weights divided by sqrt(blocks): all "
        f"{blocks} together write 1.",
    )
    ways = {
        "x + f(x)": (False, 1.0, [2.0**k for k in range(blocks + 1)]),
        "x + f(norm(x))": (True, 1.0, [1.0 + k for k in range(blocks + 1)]),
        "x + f(norm(x)) / sqrt(blocks)": (True, 1 / math.sqrt(blocks), [1 + k / blocks for k in range(blocks + 1)]),
    }
    found = {
        name: stream_variances(blocks, width, lesson.device, normalised=normalised, scale=scale)
        for name, (normalised, scale, _) in ways.items()
    }
    shown = [0, 1, 2, 4, blocks // 2, blocks]
    lesson.table(
        [{"blocks": k, **{name: f"{scientific(predicted[k])}, measured {scientific(found[name][k])}"
                          for name, (_, _, predicted) in ways.items()}} for k in shown]
    )  # fmt: skip
    for name, (_, _, predicted) in ways.items():
        off = max(abs(measured / right - 1) for measured, right in zip(found[name], predicted, strict=True))
        lesson.check(
            f"{name}: as predicted after every block", off < TOLERANCE, f"{percent(off)} off at worst, of {blocks}"
        )
    lesson.figure(
        "residual_stream", lambda axis: draw_streams(axis, found, {name: way[2] for name, way in ways.items()})
    )
    doubled, grown, held = (measured[-1] for measured in found.values())
    lesson.shows(
        f"without normalisation the stream is {scientific(doubled)} times itself after {blocks} blocks; with it, "
        f"{significant(grown)}, so the last block's 1 is {percent(1 / (grown - 1))} of what it is added to, and the "
        f"first block's was 100 %. Divided by sqrt(blocks) it ends at {significant(held)}, and 2 is the formula's "
        "answer at any depth. Picture: residual_stream.png."
    )


def draw_streams(axis: Any, found: Mapping[str, Sequence[float]], predicted: Mapping[str, Sequence[float]]) -> None:
    for name, measured in found.items():
        axis.plot(measured, label=name)
        label = "predicted" if name == list(found)[-1] else None
        axis.plot(predicted[name], color="black", linestyle="-", linewidth=0.8, marker="", label=label)
    axis.set(yscale="log", xlabel="blocks so far", ylabel="second moment of the stream",
             title="What the blocks add to a residual stream")  # fmt: skip
    axis.legend(fontsize=10)
