"""The right shape with the numbers in the wrong places: reshape where permute was meant."""

from collections.abc import Callable
from functools import partial
from typing import Any

from shared.drawing import grid
from shared.lesson import Lesson
from shared.units import percent

import torch
import torch.nn.functional as F


def show_axis_order(lesson: Lesson) -> None:
    show_channels(lesson)
    show_heads(lesson)


# (H, W, C) and (C, H, W)


def channels_first(picture: torch.Tensor) -> torch.Tensor:
    """Right: permute puts the axes into another order, and every number stays with its pixel. (H, W, C) to (C, H, W)."""
    return picture.permute(2, 0, 1)


def channels_first_by_reshape(picture: torch.Tensor) -> torch.Tensor:
    """The mistake: the right shape, dealt out in reading order, so that the first plane gets the first rows' colours."""
    height, width, channels = picture.shape
    return picture.reshape(channels, height, width)


def paint_picture(height: int = 48, width: int = 64) -> torch.Tensor:
    """An evening: sky that reddens downwards, the sun, dark hills. (height, width, 3), between 0 and 1."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, width / height, width).expand(height, width)
    picture = torch.stack([0.3 + 0.7 * y, 0.45 - 0.1 * y, 0.8 - 0.6 * y], dim=-1)
    picture[(x - 0.9) ** 2 + (y - 0.45) ** 2 < 0.2**2] = torch.tensor([1.0, 0.9, 0.3])
    picture[y > 0.7 + 0.08 * torch.sin(6 * x)] = torch.tensor([0.1, 0.35, 0.15])
    return picture


def show_channels(lesson: Lesson) -> None:
    lesson.section(
        "reshape is not permute",
        "A file gives a picture as (row, column, channel); convolutions want (channel, row, column). Both calls below "
        "give that shape. Read 12 as pixel 1, channel 2; the pixels are 1 and 2 above 3 and 4.",
    )
    numbers = [[[10 * pixel + channel for channel in (1, 2, 3)] for pixel in row] for row in ((1, 2), (3, 4))]
    pixels = torch.tensor(numbers, device=lesson.device)
    right, wrong = channels_first(pixels), channels_first_by_reshape(pixels)
    lesson.drawing(grid(right, "pixels.permute(2, 0, 1)"))
    lesson.drawing(grid(wrong, "pixels.reshape(3, 2, 2)"))
    channel = torch.tensor([1, 2, 3], device=lesson.device)[:, None, None]
    lesson.check("permute: each plane holds one channel of every pixel", (right % 10 == channel).all(),
                 f"the first: {right[0].flatten().tolist()}")  # fmt: skip
    lesson.check("reshape: each plane holds some pixels' channels", wrong.flatten().tolist() == pixels.flatten().tolist(),
                 f"the first: {wrong[0].flatten().tolist()}")  # fmt: skip
    lesson.text("The same with a picture of 48 x 64 pixels:")
    picture = paint_picture().to(lesson.device)
    good, bad = channels_first(picture), channels_first_by_reshape(picture)
    sorted_numbers = [planes.flatten().sort().values for planes in (good, bad)]
    lesson.check("same shape, same numbers: no statistic tells", good.shape == bad.shape and torch.equal(*sorted_numbers),
                 f"{tuple(bad.shape)}, mean {good.mean():.4f} and {bad.mean():.4f}")  # fmt: skip
    in_place = (good == bad).float().mean().item()
    lesson.check("permuted back, only one is the picture again",
                 good.permute(1, 2, 0).equal(picture) and not bad.permute(1, 2, 0).equal(picture),
                 f"by reshape {percent(in_place)} of the numbers agree")  # fmt: skip
    lesson.figure("reshape_is_not_permute", partial(draw_pictures, picture), columns=3)
    lesson.shows(
        f"{percent(1 - in_place)} of the numbers are in a wrong place, and shape, mean and histogram are as they should be. "
        "reshape may split an axis, or join two that follow each other; to change the order of axes, use permute, "
        "transpose or movedim. Look at one picture after every such line (reshape_is_not_permute.png)."
    )


def draw_pictures(picture: torch.Tensor, *axes: Any) -> None:
    shown = {
        "the picture, (H, W, C)": picture,
        "by permute(2, 0, 1)": channels_first(picture).permute(1, 2, 0),
        "by reshape(3, H, W)": channels_first_by_reshape(picture).permute(1, 2, 0),
    }
    for axis, (title, image) in zip(axes, shown.items(), strict=True):
        axis.imshow(image.cpu().numpy())
        axis.grid(visible=False)
        axis.set(title=title, xlabel="column (pixels)", ylabel="row (pixels)")


# Heads


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Right: cut the last axis in two, then swap. (B, T, H*D) to (B, H, T, D)."""
    batch, tokens, width = x.shape
    return x.view(batch, tokens, heads, width // heads).transpose(1, 2)


def split_heads_by_view(x: torch.Tensor, heads: int) -> torch.Tensor:
    """The mistake: one view to the right shape gives the first tokens to the first head."""
    batch, tokens, width = x.shape
    return x.view(batch, heads, tokens, width // heads)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """The way back, (B, H, T, D) to (B, T, H*D)."""
    return x.transpose(1, 2).flatten(2)


def tokens_that_see_the_last(split: Callable[[torch.Tensor, int], torch.Tensor], tokens: int, heads: int,
                             device: torch.device) -> list[int]:  # fmt: skip
    """The tokens whose output of a causal self-attention changes when only the last token of the input changes."""
    x = torch.randn(1, tokens, 8 * heads, device=device)
    changed = x.clone()
    changed[:, -1] += 1
    outputs = []
    for numbers in (x, changed):
        parts = split(numbers, heads)
        outputs.append(merge_heads(F.scaled_dot_product_attention(parts, parts, parts, is_causal=True)))
    difference = (outputs[0] - outputs[1]).abs().amax(-1)[0]  # (T,)
    return (difference > 1e-5).nonzero().flatten().tolist()


def show_heads(lesson: Lesson) -> None:
    lesson.section(
        "The same mistake in an attention",
        "Attention cuts the vector of each token into heads: (B, T, H*D) must become (B, H, T, D), for batch, tokens, heads "
        "and numbers in each. Three tokens with two heads of two numbers; read 212 as token 2, head 1, number 2.",
    )
    heads = 2
    codes = [[100 * token + 10 * head + place for head in (1, 2) for place in (1, 2)] for token in (1, 2, 3)]
    x = torch.tensor([codes], device=lesson.device)
    right, wrong = split_heads(x, heads), split_heads_by_view(x, heads)
    lesson.drawing(grid(x[0], "x[0]"))
    lesson.drawing(grid(right[0], "view, transpose"))
    lesson.drawing(grid(wrong[0], "view alone"))
    head = torch.tensor([1, 2], device=lesson.device)[:, None, None]
    own = [(split[0] // 10 % 10 == head).float().mean().item() for split in (right, wrong)]
    lesson.check(
        "view, then transpose: each head gets its own numbers", own[0] == 1, f"by view alone {percent(own[1])}"
    )
    lesson.check("merging the heads gives x again, but not after view alone",
                 merge_heads(right).equal(x) and not merge_heads(wrong).equal(x), "merge: transpose, then flatten")  # fmt: skip
    lesson.check("with one token, or one head, nothing differs",
                 split_heads(x[:, :1], heads).equal(split_heads_by_view(x[:, :1], heads))
                 and split_heads(x, 1).equal(split_heads_by_view(x, 1)), "a test needs several of each")  # fmt: skip
    seen, leaked = (
        tokens_that_see_the_last(split, 6, 4, lesson.device) for split in (split_heads, split_heads_by_view)
    )
    lesson.check("the causal mask then lets the future through", seen == [5] and len(leaked) > 1,
                 f"token 5 changes {seen}, by view alone {leaked}")  # fmt: skip
    lesson.shows(
        f"the view has the right shape, and everything runs. With 6 tokens and 4 heads, {len(leaked) - 1} earlier tokens see "
        "the last one: in training they read the answer that they should foretell, and when the model has to write, the "
        "answer is not there. A view may cut an axis in two. Moving the halves apart takes a transpose."
    )
