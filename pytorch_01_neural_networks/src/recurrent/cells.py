"""Recurrent cells from their gate equations, and the walk over time, layers and directions around them.

B sequences, T steps, C numbers in a step, H numbers in a state, L layers, D directions (1 or 2), G gates.
Parameters have the names, shapes, order and first values of nn.RNN, nn.LSTM and nn.GRU, so a state_dict fits both.
Left out, because they teach nothing about recurrence: dropout between layers, proj_size, input without a batch axis.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

State = tuple[torch.Tensor, ...]  # (h,), or (h, c) of an LSTM; each (B, H)
Weights = Sequence[torch.Tensor]  # weight_ih (G H, C), weight_hh (G H, H), bias_ih (G H), bias_hh (G H)
Step = Callable[[torch.Tensor, State, Weights], State]


# One step of each cell: x is (B, C), and what comes back is the new state


def tanh_step(x: torch.Tensor, state: State, weights: Weights) -> State:
    """Elman 1990."""
    w_ih, w_hh, b_ih, b_hh = weights
    (h,) = state
    return (torch.tanh(linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)),)


def relu_step(x: torch.Tensor, state: State, weights: Weights) -> State:
    w_ih, w_hh, b_ih, b_hh = weights
    (h,) = state
    return (torch.relu(linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)),)


def lstm_step(x: torch.Tensor, state: State, weights: Weights) -> State:
    """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; rows in the order i, f, g, o."""
    w_ih, w_hh, b_ih, b_hh = weights
    h, c = state
    i, f, g, o = (linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)).chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(x: torch.Tensor, state: State, weights: Weights) -> State:
    """Cho et al. 2014 in the form of cuDNN: the reset gate r is applied after the product; rows r, z, n."""
    w_ih, w_hh, b_ih, b_hh = weights
    (h,) = state
    r_x, z_x, n_x = linear(x, w_ih, b_ih).chunk(3, dim=1)
    r_h, z_h, n_h = linear(h, w_hh, b_hh).chunk(3, dim=1)
    r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
    n = (n_x + r * n_h).tanh()
    return ((1 - z) * n + z * h,)


# The walk


def walk(
    step: Step, x: torch.Tensor, batch_sizes: Sequence[int], state: State, weights: Weights, reverse: bool
) -> tuple[torch.Tensor, State]:
    """Outputs (sum of batch_sizes, H), and the state in which each sequence ends.

    `x` (sum of batch_sizes, C) is packed: the first elements of all sequences, then all second ones; step t has as many
    as there are sequences longer than t, longest first. In the forward direction a sequence that is over keeps its
    state; in the backward direction one that has not begun keeps its initial one. Both are what the last line does.
    """
    inputs = x.split(list(batch_sizes))
    outputs = [x] * len(inputs)
    for t in reversed(range(len(inputs))) if reverse else range(len(inputs)):
        size = batch_sizes[t]
        new = step(inputs[t], tuple(part[:size] for part in state), weights)
        outputs[t] = new[0]
        state = tuple(torch.cat([now, before[size:]]) for now, before in zip(new, state, strict=True))
    return torch.cat(outputs), state


class Recurrent(nn.Module):
    """What RNN, LSTM and GRU have in common. `forward` takes and returns what the library's modules do.

    x is (T, B, C), or (B, T, C) with batch_first, or a PackedSequence; the initial state is h0 (L D, B, H), or (h0, c0)
    for an LSTM, and zeros if it is not given. Returns the outputs of the last layer (T, B, D H), in the form of x, and
    the final states in the form of the initial ones.
    """

    gates: ClassVar[int]
    states: ClassVar[int] = 1
    step: Step

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, batch_first: bool = False,
        bidirectional: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.hidden_size, self.num_layers, self.batch_first = hidden_size, num_layers, batch_first
        self.directions = 2 if bidirectional else 1
        rows, bound = self.gates * hidden_size, 1 / math.sqrt(hidden_size)
        for layer in range(num_layers):
            width = input_size if layer == 0 else self.directions * hidden_size
            for direction in range(self.directions):
                shapes = ((rows, width), (rows, hidden_size), (rows,), (rows,))
                for name, shape in zip(self.weight_names(layer, direction), shapes, strict=True):
                    self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @staticmethod
    def weight_names(layer: int, direction: int) -> list[str]:
        end = f"l{layer}" + ("_reverse" if direction == 1 else "")
        return [f"{name}_{end}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

    def forward(self, x: Any, initial: Any = None) -> tuple[Any, Any]:
        is_packed = isinstance(x, PackedSequence)
        if is_packed:
            data, batch_sizes, order, back = x.data, x.batch_sizes.tolist(), x.sorted_indices, x.unsorted_indices
        else:
            x = x.transpose(0, 1) if self.batch_first else x
            data, batch_sizes = x.flatten(0, 1), [x.shape[1]] * len(x)  # (T B, C): all sequences are equally long
            order = back = None
        if initial is None:
            count = self.num_layers * self.directions
            begin = (data.new_zeros(count, batch_sizes[0], self.hidden_size),) * self.states
        else:
            begin = initial if isinstance(initial, tuple) else (initial,)
            begin = tuple(part if order is None else part[:, order] for part in begin)
        ends = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(self.directions):
                state = tuple(part[layer * self.directions + direction] for part in begin)
                weights = [getattr(self, name) for name in self.weight_names(layer, direction)]
                output, end = walk(self.step, data, batch_sizes, state, weights, reverse=direction == 1)
                outputs.append(output)
                ends.append(end)
            data = torch.cat(outputs, dim=1)  # (sum of batch_sizes, D H): the next layer reads both directions
        final = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))  # each (L D, B, H)
        if is_packed:
            final = tuple(part if back is None else part[:, back] for part in final)
            return PackedSequence(data, x.batch_sizes, order, back), final if self.states == 2 else final[0]
        data = data.unflatten(0, (len(x), -1))  # (T, B, D H)
        return data.transpose(0, 1) if self.batch_first else data, final if self.states == 2 else final[0]


class RNN(Recurrent):
    gates = 1

    def __init__(self, *sizes: Any, nonlinearity: str = "tanh", **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.step = {"tanh": tanh_step, "relu": relu_step}[nonlinearity]


class LSTM(Recurrent):
    gates, states, step = 4, 2, staticmethod(lstm_step)


class GRU(Recurrent):
    gates, step = 3, staticmethod(gru_step)
