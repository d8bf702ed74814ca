"""A two-layer classifier from plain tensors, its gradients by hand, and the same recursion for any number of layers.

B samples, D numbers in each, H hidden units, K classes; y (B,) int64 is the right class of each sample. Weights have
the shape of torch.nn.Linear: (outputs, inputs).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

Batch = tuple[torch.Tensor, torch.Tensor]  # x (B, D) and y (B,)
Layer = tuple[torch.Tensor, torch.Tensor]  # weight (outputs, inputs) and bias (outputs,)


class Parameters(NamedTuple):
    """The four tensors that learn, or a gradient of each."""

    w1: torch.Tensor  # (H, D)
    b1: torch.Tensor  # (H,)
    w2: torch.Tensor  # (K, H)
    b2: torch.Tensor  # (K,)

    def to(self, *args: Any) -> "Parameters":
        """Each tensor's .to()."""
        return Parameters(*(tensor.to(*args) for tensor in self))


@dataclass(frozen=True)
class Activation:
    """The bend f between the layers, its slope f', and the same as a module."""

    name: str
    value: Callable[[torch.Tensor], torch.Tensor]
    slope: Callable[[torch.Tensor], torch.Tensor]
    module: type[nn.Module]


RELU = Activation("ReLU", torch.relu, lambda z: (z > 0).to(z.dtype), nn.ReLU)
TANH = Activation("tanh", torch.tanh, lambda z: 1 - torch.tanh(z) ** 2, nn.Tanh)


def initial_layers(sizes: Sequence[int], generator: torch.Generator) -> list[Layer]:
    """One layer from each size to the next, drawn on the CPU as torch.nn.Linear draws: weight first, then bias.

    Both are uniform between -1/sqrt(inputs) and 1/sqrt(inputs)
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html).
    """
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        bound = 1 / math.sqrt(inputs)
        shapes = (outputs, inputs), (outputs,)
        weight, bias = (torch.empty(shape).uniform_(-bound, bound, generator=generator) for shape in shapes)
        layers.append((weight, bias))
    return layers


def initial_parameters(inputs: int, hidden: int, classes: int, generator: torch.Generator) -> Parameters:
    """`initial_layers` for a network with one hidden layer."""
    (w1, b1), (w2, b2) = initial_layers((inputs, hidden, classes), generator)
    return Parameters(w1, b1, w2, b2)


def forward(net: Parameters, x: torch.Tensor, f: Activation) -> torch.Tensor:
    """The logits (B, K) of x (B, D)."""
    return f.value(x @ net.w1.T + net.b1) @ net.w2.T + net.b2


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean over the batch of -log(softmax(logits)[right class]), without ever dividing by a small number."""
    log_p = logits - logits.logsumexp(1, keepdim=True)  # (B, K)
    return -log_p.gather(1, y[:, None]).mean()


def loss_and_gradients(
    net: Parameters, x: torch.Tensor, y: torch.Tensor, f: Activation
) -> tuple[torch.Tensor, Parameters]:
    """One forward and one backward pass, without autograd."""
    z1 = x @ net.w1.T + net.b1  # (B, H)
    h = f.value(z1)  # (B, H)
    z2 = h @ net.w2.T + net.b2  # (B, K), the logits
    log_p = z2 - z2.logsumexp(1, keepdim=True)  # (B, K)
    loss = -log_p.gather(1, y[:, None]).mean()

    delta2 = (log_p.exp() - F.one_hot(y, z2.shape[1])) / len(x)  # (B, K)
    grad_w2, grad_b2 = delta2.T @ h, delta2.sum(0)  # (K, H) and (K,)
    delta1 = (delta2 @ net.w2) * f.slope(z1)  # (B, H)
    grad_w1, grad_b1 = delta1.T @ x, delta1.sum(0)  # (H, D) and (H,)
    return loss, Parameters(grad_w1, grad_b1, grad_w2, grad_b2)


def loss_and_gradients_of_layers(
    layers: Sequence[Layer], x: torch.Tensor, y: torch.Tensor, f: Activation
) -> tuple[torch.Tensor, list[Layer]]:
    """The same for any number of layers; one layer is a linear classifier, also called softmax regression."""
    inputs, sums = [x], []  # of each layer: what it was given, and its sums z before the activation
    for weight, bias in layers:
        sums.append(inputs[-1] @ weight.T + bias)
        inputs.append(f.value(sums[-1]))
    log_p = sums[-1] - sums[-1].logsumexp(1, keepdim=True)
    loss = -log_p.gather(1, y[:, None]).mean()

    delta = (log_p.exp() - F.one_hot(y, log_p.shape[1])) / len(x)
    gradients: list[Layer] = []
    for i in reversed(range(len(layers))):
        gradients.insert(0, (delta.T @ inputs[i], delta.sum(0)))
        if i > 0:  # nobody asks for the gradient of the data
            delta = (delta @ layers[i][0]) * f.slope(sums[i - 1])
    return loss, gradients


def train_by_hand(
    start: Parameters, batches: Iterable[Batch], lr: float, f: Activation
) -> Iterator[tuple[torch.Tensor, Parameters]]:
    """Gradient descent without autograd: after each step its loss, and the parameters that it led to."""
    net = start
    for x, y in batches:
        loss, gradients = loss_and_gradients(net, x, y, f)
        net = Parameters(*(old - lr * grad for old, grad in zip(net, gradients, strict=True)))
        yield loss, net


def train_layers_by_hand(
    layers: Sequence[Layer], batches: Iterable[Batch], lr: float, f: Activation
) -> Iterator[tuple[torch.Tensor, list[Layer]]]:
    """`train_by_hand` for any number of layers."""
    now = list(layers)
    for x, y in batches:
        loss, gradients = loss_and_gradients_of_layers(now, x, y, f)
        now = [(w - lr * dw, b - lr * db) for (w, b), (dw, db) in zip(now, gradients, strict=True)]
        yield loss, now


def accuracy(logits: torch.Tensor, y: torch.Tensor) -> float:
    """The share of samples whose largest logit is that of the right class."""
    return (logits.argmax(1) == y).float().mean().item()
