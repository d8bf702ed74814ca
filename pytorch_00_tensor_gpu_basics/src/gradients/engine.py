"""Reverse-mode differentiation over tensors, the heart of autograd, in about a hundred lines.

An operation computes its result at once and gives it one edge for each input. An edge holds a function, here called
`pull`, that takes the gradient of the loss with respect to the result and returns the gradient with respect to that
input. backward() starts at the loss with 1 and follows the edges, and where several meet it adds.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

Pull = Callable[[torch.Tensor], torch.Tensor]


def unbroadcast(gradient: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Sums `gradient` over every axis along which a tensor of `shape` was repeated.

    A number that was repeated n times reaches the loss by n paths, and the gradients of paths add.
    """
    extra = gradient.ndim - len(shape)
    repeated = [axis for axis, size in enumerate(shape, extra) if size == 1 and gradient.shape[axis] > 1]
    if axes := [*range(extra), *repeated]:  # sum() over no axes at all would sum over all of them
        gradient = gradient.sum(axes, keepdim=True)
    return gradient.reshape(shape)


class Tracked:
    """A tensor that remembers how it was computed. A leaf, made from data alone, has its gradient in `grad`.

    `grad` adds up from one backward() to the next, as in autograd. Read it and replace it, but do not write into it:
    two leaves may share one. Every input gets a gradient, data and constants too; autograd's requires_grad saves that.
    """

    def __init__(self, data: torch.Tensor, *edges: tuple["Tracked", Pull]) -> None:
        self.data, self.edges = data.detach(), edges
        self.grad: torch.Tensor | None = None

    def backward(self, gradient: torch.Tensor | None = None) -> None:
        """Adds to each leaf's `grad`. `gradient`, of this tensor's shape, is needed where it is not a single number."""
        if gradient is None:
            if self.data.numel() != 1:
                raise ValueError(
                    f"backward() starts at one number, not at shape {tuple(self.data.shape)}: sum it first"
                )
            gradient = torch.ones_like(self.data)
        arrived = {self: gradient}
        for node in self._users_first():
            gradient = arrived.pop(node)  # complete: everything that used this node has had its turn
            if not node.edges:
                node.grad = gradient if node.grad is None else node.grad + gradient
            for source, pull in node.edges:
                share = unbroadcast(pull(gradient), source.data.shape)
                arrived[source] = arrived[source] + share if source in arrived else share

    def _users_first(self) -> Iterator["Tracked"]:
        """This node and all it was computed from, each after everything that used it. No recursion: graphs are deep."""
        uses: Counter[Tracked] = Counter()
        found, unread = {self}, [self]
        while unread:
            for source, _ in unread.pop().edges:
                uses[source] += 1
                if source not in found:
                    found.add(source)
                    unread.append(source)
        ready = [self]
        while ready:
            node = ready.pop()
            yield node
            for source, _ in node.edges:
                uses[source] -= 1
                if uses[source] == 0:
                    ready.append(source)

    def _like(self, value: "Operand") -> "Tracked":
        if isinstance(value, Tracked):
            return value
        return Tracked(torch.as_tensor(value, dtype=self.data.dtype, device=self.data.device))

    # Two inputs; their shapes broadcast

    def __add__(self, other: "Operand") -> "Tracked":
        b = self._like(other)
        return Tracked(self.data + b.data, (self, lambda g: g), (b, lambda g: g))

    def __sub__(self, other: "Operand") -> "Tracked":
        b = self._like(other)
        return Tracked(self.data - b.data, (self, lambda g: g), (b, lambda g: -g))

    def __mul__(self, other: "Operand") -> "Tracked":
        a, b = self, self._like(other)
        return Tracked(a.data * b.data, (a, lambda g: g * b.data), (b, lambda g: g * a.data))

    def __truediv__(self, other: "Operand") -> "Tracked":
        a, b = self, self._like(other)
        return Tracked(a.data / b.data, (a, lambda g: g / b.data), (b, lambda g: -g * a.data / b.data**2))

    def __matmul__(self, other: "Operand") -> "Tracked":
        """Matrices, or batches of them: (…, n, k) @ (…, k, m)."""
        a, b = self, self._like(other)
        if min(a.data.ndim, b.data.ndim) < 2:
            raise ValueError("@ takes matrices here: reshape a vector to one column or one row first")
        return Tracked(a.data @ b.data, (a, lambda g: g @ b.data.mT), (b, lambda g: a.data.mT @ g))

    def __radd__(self, other: "Operand") -> "Tracked":
        return self + other

    def __rmul__(self, other: "Operand") -> "Tracked":
        return self * other

    def __rsub__(self, other: "Operand") -> "Tracked":
        return self._like(other) - self

    def __rtruediv__(self, other: "Operand") -> "Tracked":
        return self._like(other) / self

    def __rmatmul__(self, other: "Operand") -> "Tracked":
        return self._like(other) @ self

    # One input

    def __neg__(self) -> "Tracked":
        return Tracked(-self.data, (self, lambda g: -g))

    def __pow__(self, exponent: float) -> "Tracked":
        return Tracked(self.data**exponent, (self, lambda g: g * exponent * self.data ** (exponent - 1)))

    def exp(self) -> "Tracked":
        out = self.data.exp()
        return Tracked(out, (self, lambda g: g * out))

    def log(self) -> "Tracked":
        return Tracked(self.data.log(), (self, lambda g: g / self.data))

    def tanh(self) -> "Tracked":
        out = self.data.tanh()
        return Tracked(out, (self, lambda g: g * (1 - out**2)))

    def sin(self) -> "Tracked":
        return Tracked(self.data.sin(), (self, lambda g: g * self.data.cos()))

    def relu(self) -> "Tracked":
        return Tracked(self.data.relu(), (self, lambda g: g * (self.data > 0)))

    # Other shapes

    def sum(self, dim: int | None = None, keepdim: bool = False) -> "Tracked":
        """Every summand has slope 1, so its gradient is that of the sum, repeated."""
        shape = self.data.shape
        kept = [1 if dim is None or axis == dim % len(shape) else size for axis, size in enumerate(shape)]
        return Tracked(self.data.sum(dim, keepdim), (self, lambda g: g.reshape(kept).expand(shape)))

    def mean(self, dim: int | None = None, keepdim: bool = False) -> "Tracked":
        total = self.sum(dim, keepdim)
        return total / (self.data.numel() / total.data.numel())

    def reshape(self, *shape: int) -> "Tracked":
        return Tracked(self.data.reshape(shape), (self, lambda g: g.reshape(self.data.shape)))

    def transpose(self, first: int, second: int) -> "Tracked":
        return Tracked(self.data.transpose(first, second), (self, lambda g: g.transpose(first, second)))

    def __getitem__(self, index: Any) -> "Tracked":
        """Any index that a tensor takes. What is read twice, as the row of a frequent word, gets both gradients."""

        def pull(gradient: torch.Tensor) -> torch.Tensor:
            places = torch.arange(self.data.numel(), device=gradient.device).reshape(self.data.shape)[index]
            flat = gradient.new_zeros(self.data.numel()).index_add(0, places.reshape(-1), gradient.reshape(-1))
            return flat.reshape(self.data.shape)

        return Tracked(self.data[index], (self, pull))


Operand = Tracked | torch.Tensor | float
