"""What the measured chapters train: many small networks side by side, each with its own rate at every step."""

import itertools
import math
from collections.abc import Callable, Sequence

from pytorch_02_training_optimization.src.letters.rows import CLASSES, PIXELS, Letters

import torch
import torch.nn.functional as F

HIDDEN = 64

Parameters = list[torch.Tensor]
Update = Callable[[Parameters, Parameters, torch.Tensor], None]


def start_weights(seed: int, seeds: int, copies: int, device: torch.device, layers: int = 3) -> Parameters:
    """Weight (R, out, in) and bias (R, 1, out) of each layer, R = copies x seeds: `copies` times the same starts."""
    generator = torch.Generator().manual_seed(seed)
    widths = [PIXELS, *[HIDDEN] * (layers - 1), CLASSES]
    parameters = []
    for columns, rows in itertools.pairwise(widths):
        weight = math.sqrt(2 / columns) * torch.randn(seeds, rows, columns, generator=generator)
        parameters += [weight.repeat(copies, 1, 1).to(device), torch.zeros(copies * seeds, 1, rows, device=device)]
    return [parameter.requires_grad_() for parameter in parameters]


def scores(parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    """(R, B, 256) → (R, B, 10): R networks, each with its own batch."""
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = torch.relu(torch.baddbmm(bias, x, weight.mT))
    return torch.baddbmm(parameters[-1], x, parameters[-2].mT)


def draw_batches(seed: int, steps: int, seeds: int, count: int, batch_size: int) -> torch.Tensor:
    """Which letters each step sees (steps, seeds, B)."""
    return torch.randint(count, (steps, seeds, batch_size), generator=torch.Generator().manual_seed(seed))


class Momentum:
    """m = 0.9 m + g;  w -= lr m. The rate (R, 1, 1) is handed over at each step: one for each network."""

    def __init__(self, parameters: Parameters, momentum: float = 0.9) -> None:
        self.parameters, self.momentum = parameters, momentum
        self.m = [torch.zeros_like(w) for w in parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor], lr: torch.Tensor) -> None:
        for w, g, m in zip(self.parameters, gradients, self.m, strict=True):
            m.mul_(self.momentum).add_(g)
            w.sub_(lr * m)


class Adam:
    """As torch.optim.Adam with its defaults; the rate (R, 1, 1) is handed over at each step."""

    def __init__(self, parameters: Parameters, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.parameters, self.betas, self.eps, self.t = parameters, betas, eps, 0
        self.m, self.v = ([torch.zeros_like(w) for w in parameters] for _ in range(2))

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor], lr: torch.Tensor) -> None:
        self.t += 1
        first, second = (1 - beta**self.t for beta in self.betas)
        for w, g, m, v in zip(self.parameters, gradients, self.m, self.v, strict=True):
            m.lerp_(g, 1 - self.betas[0])
            v.mul_(self.betas[1]).addcmul_(g, g, value=1 - self.betas[1])
            w.sub_(lr / first * m / ((v / second).sqrt() + self.eps))


def train(optimizer: Momentum | Adam, letters: Letters, batches: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """Trains R networks in one loop, with rates (steps, R); returns the loss of each before each step, (steps, R).

    `batches` (steps, seeds, B) with R a multiple of seeds: run i sees those of seed i % seeds. The runs share the
    products and not the numbers: what is differentiated is a sum over runs, so each has its own gradient.
    """
    device, parameters = letters.x.device, optimizer.parameters
    runs = rates.shape[1]
    batches, rates = batches.to(device), rates.to(device, torch.float32)
    losses = []
    for batch, lr in zip(batches, rates, strict=True):
        batch = batch.repeat(runs // batches.shape[1], 1)
        logits = scores(parameters, letters.x[batch])
        loss = F.cross_entropy(logits.mT, letters.y[batch], reduction="none").mean(dim=1)
        optimizer.step(torch.autograd.grad(loss.sum(), parameters), lr.view(-1, 1, 1))
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


@torch.no_grad()
def judge(parameters: Parameters, letters: Letters) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss and accuracy (R,) on letters that all runs are given alike; a run that diverged has a loss of inf."""
    logits = scores(parameters, letters.x.expand(len(parameters[0]), -1, -1))
    loss = F.cross_entropy(logits.mT, letters.y.expand(len(logits), -1), reduction="none").mean(dim=1)
    right = (logits.argmax(dim=-1) == letters.y).float().mean(dim=1)
    return loss.nan_to_num(math.inf, math.inf).cpu(), right.cpu()


def with_error(values: torch.Tensor, digits: int = 3) -> str:
    """The mean of one number for each seed, and its standard error in brackets."""
    return f"{values.mean():.{digits}f} ({values.std() / math.sqrt(len(values)):.{digits}f})"
