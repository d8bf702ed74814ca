"""LayerNorm before or after a residual block: what the signal and the gradient do in a deep stack at the start."""

from typing import Literal

from shared.lesson import Lesson

import torch
import torch.nn.functional as F
from torch import nn

Place = Literal["pre-norm", "post-norm", "none"]
WIDTH = 64


class Block(nn.Module):
    """A residual block x + f(x), f being two linear layers, with LayerNorm in one of two places or nowhere."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.norm = nn.Identity() if place == "none" else nn.LayerNorm(WIDTH)
        self.f = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        for layer in (self.f[0], self.f[2]):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.place == "post-norm":
            return self.norm(x + self.f(x))
        return x + self.f(self.norm(x))


def signal_and_gradient(place: Place, depth: int, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """At the start: the std of what leaves the last block, and the norm of the gradient in that block's weights."""
    blocks = nn.Sequential(*(Block(place) for _ in range(depth))).to(x.device)
    head = nn.Sequential(nn.LayerNorm(WIDTH) if place == "pre-norm" else nn.Identity(), nn.Linear(WIDTH, 10)).to(
        x.device
    )
    features = blocks(x)
    F.cross_entropy(head(features), y).backward()
    slopes = [p.grad.flatten() for p in blocks[-1].f.parameters() if p.grad is not None]
    return features.std().item(), torch.cat(slopes).norm().item()


def show_residual(lesson: Lesson) -> None:
    lesson.section(
        "Before the block or after it",
        "A transformer adds the output of each block to what came in. The normalisation can stand inside, before the "
        "block (pre-norm: x + f(norm(x))), or after the sum (post-norm: norm(x + f(x)), the original of 2017). Untrained "
        "stacks of small blocks: how large the signal is at the end, and the gradient in the last block.",
    )
    x = torch.randn(256, WIDTH, device=lesson.device)
    y = torch.randint(0, 10, (256,), device=lesson.device)
    depths = lesson.pick(full=(6, 24, 96), quick=(6, 24))
    places: tuple[Place, ...] = ("none", "post-norm", "pre-norm")
    found = {(place, depth): signal_and_gradient(place, depth, x, y) for depth in depths for place in places}
    lesson.table([{"normalisation": place, "blocks": depth, "std of the signal": found[place, depth][0],
                   "gradient, last block": found[place, depth][1]} for place in places for depth in depths])  # fmt: skip
    shallow, deep = depths[0], depths[-1]
    growth = {depth: (found["pre-norm", depth][0] ** 2 - 1) / depth for depth in depths}
    lesson.check("with no norm the signal explodes", found["none", 24][0] > 4 * found["pre-norm", 24][0],
                 f"std {found['none', deep][0]:,.0f} after {deep} blocks")  # fmt: skip
    lesson.check("post-norm brings it back to 1 each time", all(abs(found["post-norm", depth][0] - 1) < 0.01 for depth in depths),
                 f"{found['post-norm', deep][0]:.3f} after {deep} blocks")  # fmt: skip
    lesson.check("pre-norm: each block adds the same to the variance", 0.7 < growth[deep] / growth[shallow] < 1.4,
                 f"{growth[shallow]:.2f} a block in {shallow} blocks, {growth[deep]:.2f} in {deep}")  # fmt: skip
    lesson.check("so the last block's gradient is smaller with pre-norm",
                 found["pre-norm", deep][1] < 0.8 * found["post-norm", deep][1],
                 f"{found['pre-norm', deep][1]:.2f}, with post-norm {found['post-norm', deep][1]:.2f}")  # fmt: skip
    lesson.shows(
        f"a sum of {deep} blocks has a standard deviation of {found['pre-norm', deep][0]:.1f} = sqrt(1 + {growth[deep]:.2f} x "
        f"{deep}) with pre-norm, and the final norm divides the gradient by as much: the deeper, the gentler the first "
        f"steps. With post-norm it went from {found['post-norm', shallow][1]:.2f} in {shallow} blocks to "
        f"{found['post-norm', deep][1]:.2f}, and such models need a learning rate that starts small (Xiong et al. 2020). "
        "Most of today's language models are pre-norm."
    )
