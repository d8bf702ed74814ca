"""The pixels of each image are numbered, so a misplaced number says where it came from."""

import random
from typing import Any

from shared.practice import expect
from shared.traps import expect_tensor

import torch

APART = "the pixels of a patch do not lie one after another in memory, so one reshape cannot collect them"
READING_ORDER = "patches come from left to right, then from top to bottom"
INSIDE = "inside a patch the order is channel, row, column"
IMAGES = "each image keeps its own patches"


def numbered(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    n, c, patch, down, across = (draw.randint(2, 4) for _ in range(5))
    h, w = patch * down, patch * (across + down)
    cases = [
        ("one grey image with two patches", APART, numbered(1, 1, 2, 4), 2),
        ("one grey image with four patches", READING_ORDER, numbered(1, 1, 4, 4, dtype=torch.int64), 2),
        ("one grey image with six patches", READING_ORDER, numbered(1, 1, 4, 6), 2),
        ("one colour image", INSIDE, numbered(1, 3, 4, 4, dtype=torch.uint8), 2),
        ("two grey images", IMAGES, numbered(2, 1, 2, 2), 2),
        ("images of odd sizes", READING_ORDER, numbered(n, c, h, w), patch),
        ("high images", READING_ORDER, numbered(n, c, w, h, dtype=torch.float64), patch),
        ("images in channels_last", INSIDE, numbered(n, h, w, c).permute(0, 3, 1, 2), patch),
        ("images cut out of larger ones", INSIDE, numbered(n, c, h + 3, w + 1)[..., 2:-1, 1:], patch),
        ("patches of one pixel", READING_ORDER, numbered(n, c, 2, 3), 1),
        ("patches as large as the image", INSIDE, numbered(n, c, patch, patch), patch),
        ("no image", IMAGES, numbered(0, c, h, w), patch),
    ]
    for case, reason, images, size in cases:
        call = f"cut_into_patches of {case}, shape {tuple(images.shape)}, patch {size}"
        right = oracle(images, size)
        found = answer.cut_into_patches(images, size)
        expect_tensor(found, call, tuple(right.shape), right.dtype)
        if not torch.equal(found, right):
            image, number, entry = (found != right).nonzero()[0].tolist()
            wanted, got = (place(images, patches[image, number, entry]) for patches in (right, found))
            expect(False, f"{call}: entry {entry} of patch {number} should be {wanted}, and is {got}; {reason}")


def oracle(images: torch.Tensor, size: int) -> torch.Tensor:
    """One square after the other, cut out by two slices."""
    n, _, h, w = images.shape
    corners = [(top, left) for top in range(0, h, size) for left in range(0, w, size)]
    squares = [images[:, :, top : top + size, left : left + size].reshape(n, images.shape[1] * size**2)
               for top, left in corners]  # fmt: skip
    return torch.stack(squares, dim=1)


def place(images: torch.Tensor, value: torch.Tensor) -> str:
    """Where in `images` the pixel with this number stands."""
    positions = (images == value).nonzero().tolist()
    if not positions:
        return f"{value.item():g}, which is in no image"
    image, channel, row, column = positions[0]
    return f"channel {channel}, row {row}, column {column} of image {image}"


def reshapes(images: torch.Tensor, patch: int) -> torch.Tensor:
    n, c, h, w = images.shape
    return images.reshape(n, (h // patch) * (w // patch), c * patch * patch)


def splits_and_permutes(*order: int) -> dict[str, object]:
    def cut_into_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
        n, c, h, w = images.shape
        split = images.reshape(n, c, h // patch, patch, w // patch, patch)
        return split.permute(order).reshape(n, (h // patch) * (w // patch), c * patch * patch)

    return {"cut_into_patches": cut_into_patches}


def splits_the_wrong_way(images: torch.Tensor, patch: int) -> torch.Tensor:
    n, c, h, w = images.shape
    split = images.reshape(n, c, patch, h // patch, patch, w // patch)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(n, (h // patch) * (w // patch), c * patch * patch)


WRONG = {
    "only reshapes": ({"cut_into_patches": reshapes}, "entry 2 of patch 0 should be channel 0, row 1, column 0"),
    "splits an axis the wrong way": ({"cut_into_patches": splits_the_wrong_way}, "entry 1 of patch 0 should be"),
    "numbers the patches downwards": (splits_and_permutes(0, 4, 2, 1, 3, 5), "from left to right, then from top"),
    "puts the channel last within a patch": (
        splits_and_permutes(0, 2, 4, 3, 5, 1),
        "the order is channel, row, column",
    ),
}
