"""Right on odd sizes, views and no image at all; then operations and lines of Python are counted, not seconds."""

from typing import Any

from shared.device import pick_device
from shared.practice import expect
from shared.traps import expect_close, expect_tensor, operations, python_steps

import torch


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int, height: int, width: int) -> torch.Tensor:
        """Images of which about a third is clipped at either end."""
        values = torch.randint(-80, 336, (n, height, width), generator=generator)
        return values.clamp(0, 255).to(torch.uint8)

    cases = [
        ("images of 1 and 254, nearly clipped", torch.tensor([1, 254], dtype=torch.uint8).expand(2, 3, 2)),
        ("three images", draw(3, 5, 7)),
        ("one image of one pixel", draw(1, 1, 1)),
        ("no image", draw(0, 5, 7)),
        ("a view with rows and columns exchanged", draw(2, 4, 9).transpose(1, 2)),
        ("black images", torch.zeros(2, 3, 5, dtype=torch.uint8)),
        ("images on this machine's fastest device", draw(4, 6, 5).to(pick_device())),
    ]
    for case, images in cases:
        call = f"clipped_share of {case}, shape {tuple(images.shape)}"
        kept = images.clone()
        found = answer.clipped_share(images)
        expect_tensor(found, call, (len(images),), torch.float32)
        expect(found.device == images.device, f"{call} came back on {found.device}; stay on {images.device}")
        expect_close(found, oracle(kept), call, tolerance=1e-5)
        expect(torch.equal(images, kept), f"{call} changed the images; the caller still needs them")
    expect_same_work(answer, "images", draw(2, 5, 7), draw(6, 5, 7))
    expect_same_work(answer, "pixels", draw(2, 5, 7), draw(2, 11, 13))


def oracle(images: torch.Tensor) -> torch.Tensor:
    shares = []
    for image in images.tolist():
        pixels = [pixel for row in image for pixel in row]
        shares.append(sum(pixel in (0, 255) for pixel in pixels) / len(pixels))
    return torch.tensor(shares, device=images.device, dtype=torch.float32)


def expect_same_work(answer: Any, of_what: str, few: torch.Tensor, many: torch.Tensor) -> None:
    counts = [len(operations(answer.clipped_share, images)) for images in (few, many)]
    steps = [python_steps(answer.clipped_share, images) for images in (few, many)]
    sizes = f"{few.numel()} pixels and {{}} for {many.numel()}"
    expect(
        counts[0] == counts[1],
        f"right, but {counts[0]} operations for {sizes.format(counts[1])}: it still goes through the {of_what}",
    )
    expect(
        steps[0] == steps[1],
        f"right, but {steps[0]} lines of Python for {sizes.format(steps[1])}: it still goes through the {of_what}",
    )


def takes_each_image(images: torch.Tensor) -> torch.Tensor:
    shares = [((image == 0) | (image == 255)).float().mean() for image in images]
    return torch.stack(shares) if shares else torch.zeros(0, device=images.device)


def counts_in_python(images: torch.Tensor) -> torch.Tensor:
    shares = [
        sum(pixel in (0, 255) for row in image for pixel in row) / max(1, sum(len(row) for row in image))
        for image in images.tolist()
    ]
    return torch.tensor(shares, device=images.device, dtype=torch.float32)


def averages_over_all(images: torch.Tensor) -> torch.Tensor:
    return ((images == 0) | (images == 255)).float().mean().expand(len(images))


def takes_nearly_for_clipped(images: torch.Tensor) -> torch.Tensor:
    return ((images <= 1) | (images >= 254)).float().mean(dim=(1, 2))


WRONG = {
    "takes each image in turn": ({"clipped_share": takes_each_image}, "it still goes through the images"),
    "counts in Python": ({"clipped_share": counts_in_python}, "lines of Python for"),
    "averages over all images": ({"clipped_share": averages_over_all}, "clipped_share of three images"),
    "takes nearly clipped for clipped": ({"clipped_share": takes_nearly_for_clipped}, "nearly clipped"),
}
