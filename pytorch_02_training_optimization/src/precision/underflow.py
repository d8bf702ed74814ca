"""How large the gradients of two real networks are, and which of them float16 turns into zero."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.precision.task import CLASSES, GradientDescent
from shared.datasets import load_images
from shared.lesson import Lesson
from shared.units import percent

import torch
import torch.nn.functional as F
from torch import nn

SMALLEST = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps  # 2^-24
BATCH_SIZE = 32
MORE_PIXELS = 64  # 256 x 256 in place of 32 x 32


@dataclass(frozen=True)
class Task:
    """A model of images (B, 3, 32, 32), what it should answer to a batch of them, and its loss."""

    model: nn.Sequential
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    lr: float
    x: torch.Tensor
    y: torch.Tensor


def make_tasks(count: int, device: torch.device) -> dict[str, Task]:
    """Two networks for the same images: one answers with 10 numbers for each of them, the other with 3,072."""
    data = load_images("glyphs", train=True, count=count)
    images, labels = (data.images.float() / 127.5 - 1).to(device), data.labels.to(device)
    reader = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
                           nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
                           nn.Flatten(), nn.Linear(16 * 8 * 8, CLASSES))  # fmt: skip
    cleaner = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                            nn.Conv2d(16, 3, 3, padding=1))  # fmt: skip
    noisy = images + 0.3 * torch.randn_like(images)
    return {
        "reads letters": Task(reader.to(device), F.cross_entropy, 0.05, images, labels),
        "cleans images": Task(cleaner.to(device), F.mse_loss, 0.3, noisy, images),
    }


def train_a_little(task: Task, steps: int) -> float:
    """Plain gradient descent in float32; the last loss."""
    optimizer = GradientDescent(task.model.parameters(), task.lr)
    for _ in range(steps):
        batch = torch.randint(len(task.y), (BATCH_SIZE,)).to(task.y.device)
        loss = task.loss(task.model(task.x[batch]), task.y[batch])
        task.model.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def gradients_on_the_way(task: Task) -> dict[str, torch.Tensor]:
    """d loss / d output of each layer, in float32, zeros left out: what backward() hands from layer to layer.

    ReLU passes no gradient where it was closed; those zeros are right and not lost.
    """
    outputs, x = {}, task.x[:BATCH_SIZE]
    for index, layer in enumerate(task.model):
        x = layer(x)
        if not isinstance(layer, nn.Flatten):
            outputs[f"{index} {type(layer).__name__}"] = x
    gradients = torch.autograd.grad(task.loss(x, task.y[:BATCH_SIZE]), list(outputs.values()))
    return {name: gradient[gradient != 0].cpu() for name, gradient in zip(outputs, gradients, strict=True)}


def lost_share(gradient: torch.Tensor, scale: float = 1.0, dtype: torch.dtype = torch.float16) -> float:
    """The share of these numbers, none of them 0, that are 0 in `dtype` after they were multiplied by `scale`."""
    return ((gradient * scale).to(dtype) == 0).float().mean().item()


def foreseen_lost_share(gradient: torch.Tensor, scale: float = 1.0) -> float:
    """The same for float16 from its smallest number alone; half of that is a tie and goes to the even side, to 0."""
    return (gradient.abs() * scale <= SMALLEST / 2).float().mean().item()


def subnormal_share(gradient: torch.Tensor) -> float:
    """The share that float16 keeps with fewer than its 11 bits, or not at all."""
    return (gradient.abs() < torch.finfo(torch.float16).smallest_normal).float().mean().item()


SCALES = {
    f"mean over {MORE_PIXELS}x as many": 1 / MORE_PIXELS,
    "as it is": 1.0,
    "times 2^8": 2.0**8,
    "times 2^16": 2.0**16,
}


def show_underflow(lesson: Lesson) -> None:
    count, steps = lesson.pick(full=512, quick=64), lesson.pick(full=60, quick=8)
    lesson.section(
        "Where the gradients of a network lie",
        "backward() hands a gradient from layer to layer, one number for each activation; in mixed precision these have "
        "16 bits. Are they large enough? Here are two small convolutional networks on the same letters, in float32, so "
        "that nothing is lost while you look. One reads the letter, the other removes noise, so its loss is a mean over "
        f"every pixel. After {steps} steps each, this share of their gradients is 0 in float16:",
    )
    tasks = make_tasks(count, lesson.device)
    by_layer: dict[str, dict[str, torch.Tensor]] = {}
    for name, task in tasks.items():
        train_a_little(task, steps)
        by_layer[name] = gradients_on_the_way(task)
    lesson.table(
        [{"network": name, "layer": layer, "median": f"2^{math.log2(gradient.abs().median().item()):.1f}",
          **{heading: percent(lost_share(gradient, scale)) for heading, scale in SCALES.items()}}
         for name, layers in by_layer.items() for layer, gradient in layers.items()]
    )  # fmt: skip
    reads, cleans = (torch.cat(list(layers.values())) for layers in by_layer.values())
    for name, gradient in zip(tasks, (reads, cleans), strict=True):
        lesson.record("gradients that are 0 in float16", lost_share(gradient), "share", network=name)
    right = [lost_share(gradient, scale) == foreseen_lost_share(gradient, scale)
             for gradient in (reads, cleans) for scale in SCALES.values()]  # fmt: skip
    lesson.check("lost is what is at most 2^-25, half of the smallest", all(right),
                 f"to the number, in {sum(right)} of {len(right)} cases")  # fmt: skip
    lesson.check("a mean over pixels loses more than one over letters", lost_share(cleans) > 3 * lost_share(reads),
                 f"{percent(lost_share(cleans))} and {percent(lost_share(reads))}")  # fmt: skip
    lesson.check("what it keeps has fewer digits than float16 could have", subnormal_share(cleans) > 0.9,
                 f"{percent(subnormal_share(cleans))} below 2^-14, the smallest normal number")  # fmt: skip
    lesson.check("2^16 times as large, nearly all of them are kept",
                 lost_share(cleans, 2.0**16) < 0.01 * lost_share(cleans) and torch.isfinite((cleans * 2**16).half()).all(),
                 f"{percent(lost_share(cleans, 2.0**16))} lost, and none is too large")  # fmt: skip
    lesson.check("bfloat16 loses none: it reaches as low as float32", lost_share(cleans, 1, torch.bfloat16) == 0,
                 f"0 of {cleans.numel():,}")  # fmt: skip
    lesson.figure("gradient_sizes", lambda axis: draw_sizes(axis, reads, cleans))
    largest = math.log2(cleans.abs().max().item())
    lesson.shows(
        f"the largest of these gradients is 2^{largest:.0f} and float16 reaches 2^16: {16 - largest:.0f} powers of two lie "
        f"empty above, while {percent(lost_share(cleans))} fall out below, and of images of 256 x 256 it would be "
        f"{percent(lost_share(cleans, 1 / MORE_PIXELS))}. Multiply the loss by one large number, and the whole heap moves "
        "up. The picture is gradient_sizes.png."
    )


def draw_sizes(axis: Any, reads: torch.Tensor, cleans: torch.Tensor) -> None:
    """Outlines over powers of two; what float16 makes of each region is written above it."""
    left, right = -34, 20
    shown = {
        "reads letters": (reads, {"linestyle": "--", "color": "#525252", "linewidth": 1.5}),
        "cleans images": (cleans, {"linestyle": "-", "color": "#0b5fa5", "linewidth": 2.2}),
        "cleans images, times 2^16": (cleans * 2.0**16, {"linestyle": "-.", "color": "#c2410c", "linewidth": 1.8}),
    }
    for name, (gradient, style) in shown.items():
        heights = torch.histc(gradient.abs().log2().clamp(left, right - 1), bins=right - left, min=left, max=right)
        axis.stairs(100 * heights.numpy() / len(gradient), range(left, right + 1), label=name, **style)
    top = 1.5 * axis.get_ylim()[1]
    regions = ((left, -25, 0.35, "becomes 0"), (-25, -14, 0.15, "fewer digits"), (-14, 16, 0.0, "all 11 bits"),
               (16, right, 0.35, "inf"))  # fmt: skip
    for start, end, alpha, text in regions:
        axis.axvspan(start, end, color="black", alpha=alpha, linewidth=0)
        axis.annotate(text, ((start + end) / 2, 0.96 * top), ha="center", va="top")
    axis.set(xlim=(left, right), ylim=(0, top), xlabel="size of a gradient, as a power of two",
             ylabel="% of the gradients", title="What float16 makes of the gradients of two networks")  # fmt: skip
    axis.set_axisbelow(True)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0.9), ncols=3, fontsize=9)
