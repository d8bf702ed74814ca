"""The network of this lesson, and what it must cost: parameters, activations and products, by formula.

B samples, C channels, L blocks, K classes. A block is the half of a transformer that holds most of its weights: x plus a
network of two layers, with 4 C in between, of x normalised.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytorch_02_training_optimization.src.letters.rows import load_letters
from shared.dispatch import Watcher, name_of

import torch
import torch.nn.functional as F
from torch import nn

INPUTS, CLASSES, EXPANSION = 256, 10, 4


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.up = nn.Linear(channels, EXPANSION * channels)
        self.down = nn.Linear(EXPANSION * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


Blocks = Sequence[nn.Module]
RunBlocks = Callable[[Blocks, torch.Tensor], torch.Tensor]


def keep_all(blocks: Blocks, x: torch.Tensor) -> torch.Tensor:
    """One block after the other; autograd keeps what it likes."""
    for block in blocks:
        x = block(x)
    return x


class Network(nn.Module):
    """(B, INPUTS) -> (B, CLASSES). How its blocks are run is what most of this lesson is about."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Linear(INPUTS, channels)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: torch.Tensor, run_blocks: RunBlocks = keep_all) -> torch.Tensor:
        return self.head(self.norm(run_blocks(list(self.blocks), self.stem(x))))


Batch = tuple[torch.Tensor, torch.Tensor]  # x (B, INPUTS) and y (B,)


def make_network(channels: int, depth: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Network:
    with device:
        return Network(channels, depth).to(dtype)


def random_batch(batch_size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
    """For counting, where the numbers do not matter."""
    return (torch.randn(batch_size, INPUTS, device=device).to(dtype),
            torch.randint(CLASSES, (batch_size,), device=device))  # fmt: skip


def letters(count: int, device: torch.device, *, train: bool) -> Batch:
    """Letters in grey, 16 x 16 pixels, mean 0 and spread 1."""
    found = load_letters(count, device, train=train)
    return found.x, found.y


# What it must cost


def count_parameters(channels: int, depth: int) -> int:
    hidden = EXPANSION * channels
    block = 2 * channels + channels * hidden + hidden + hidden * channels + channels
    return (INPUTS + 1) * channels + depth * block + 2 * channels + (channels + 1) * CLASSES


BLOCK_KEEPS: Mapping[str, str] = {
    "x": "LayerNorm's input",
    "its mean and spread": "LayerNorm's, one of each a sample",
    "norm(x)": "the input of the layer up",
    "up(…)": "the input of GELU",
    "gelu(…)": "the input of the layer down",
}


def block_keeps(channels: int) -> dict[str, int]:
    """Numbers that autograd keeps of one block for each sample, in the order of BLOCK_KEEPS."""
    hidden = EXPANSION * channels
    return dict(zip(BLOCK_KEEPS, (channels, 2, channels, hidden, hidden), strict=True))


def activation_bytes(batch_size: int, channels: int, depth: int, dtype: torch.dtype, device: torch.device) -> int:
    """What autograd keeps of cross_entropy(model(x), y) besides parameters, x and y.

    Blocks as above; the last LayerNorm keeps its input, statistics and, for the head, its output; cross-entropy keeps
    log-probabilities and one number, the sum of its weights. On a GPU statistics are float32 whatever the dtype.
    """
    numbers = depth * (sum(block_keeps(channels).values()) - 2) + 2 * channels + CLASSES
    statistics = 2 * (depth + 1)
    size = dtype.itemsize
    return batch_size * (numbers * size + statistics * (size if device.type == "cpu" else 4)) + size


def product_flops(batch_size: int, channels: int, depth: int) -> tuple[int, int]:
    """Floating-point operations in matrix products: of one block forwards, and of a training step that keeps all.

    Backward needs two products for each of forward: one for the weights, one for the input. The stem's input is data.
    """
    block = 2 * 2 * batch_size * channels * EXPANSION * channels
    stem, head = 2 * batch_size * INPUTS * channels, 2 * batch_size * channels * CLASSES
    return block, 3 * depth * block + 2 * stem + 3 * head


class ProductFlops(Watcher):
    """Counts the floating-point operations of matrix products inside the block: 2 m k n each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        name = name_of(operation)
        if name in ("mm.default", "addmm.default"):
            left, right = args[-2:]
            self.count += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        elif name == "linear.default":  # MPS computes a layer, and its backward pass, in one operation
            self.count += 2 * args[0].numel() * args[1].shape[0]
        elif name == "linear_backward.default":
            wants_input, wants_weight, _ = args[3]
            self.count += (wants_input + wants_weight) * 2 * args[0].numel() * args[2].shape[0]
