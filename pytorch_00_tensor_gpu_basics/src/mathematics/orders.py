"""Contractions of several tensors, two at a time: what an order costs, how to run it, and how to find the cheapest."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

# A way to contract tensors two at a time: a tensor's number, or a pair of such ways. ((0, 1), 2) begins with 0 and 1.
Order = int | tuple["Order", "Order"]


# Counting


@dataclass(frozen=True)
class Network:
    """Tensors that become one: the letters of each, of the result, and how long each letter's axis is."""

    inputs: tuple[str, ...]
    output: str
    lengths: Mapping[str, int]

    @staticmethod
    def of(equation: str, **lengths: int) -> "Network":
        left, _, output = equation.partition("->")
        return Network(tuple(left.split(",")), output, lengths)

    @property
    def equation(self) -> str:
        return f"{','.join(self.inputs)}->{self.output}"

    def letters(self, group: frozenset[int]) -> str:
        """The axes of the product of a `group` of tensors: those that the result or a tensor outside still needs."""
        inside = {letter for i in group for letter in self.inputs[i]}
        if len(group) == 1:
            return "".join(sorted(inside))  # an input that nobody has summed yet
        outside = {letter for i, letters in enumerate(self.inputs) if i not in group for letter in letters}
        return "".join(sorted(inside & (outside | set(self.output))))

    def numbers(self, letters: str) -> int:
        return math.prod(self.lengths[letter] for letter in letters)

    def pair_flops(self, left: frozenset[int], right: frozenset[int]) -> int:
        """Of one step: every value of every letter of both is a multiplication, and an addition if a letter goes."""
        met = set(self.letters(left)) | set(self.letters(right))
        summed = met - set(self.letters(left | right))
        return self.numbers("".join(met)) * (2 if summed else 1)

    def tensors(self, device: torch.device) -> list[torch.Tensor]:
        """Random ones of the right shapes, scaled so that the numbers of the result are of the order of 1."""
        shapes = [[self.lengths[letter] for letter in letters] for letters in self.inputs]
        summed = self.numbers("".join(set("".join(self.inputs)) - set(self.output)))
        return [torch.randn(shape, device=device) * summed ** (-0.5 / len(shapes)) for shape in shapes]


def members(order: Order) -> frozenset[int]:
    """The numbers of all tensors in an order."""
    return frozenset([order]) if isinstance(order, int) else members(order[0]) | members(order[1])


def count_flops(network: Network, order: Order) -> int:
    """The operations of all steps of an order."""
    if isinstance(order, int):
        return 0
    left, right = order
    return count_flops(network, left) + count_flops(network, right) + network.pair_flops(members(left), members(right))


def largest_intermediate(network: Network, order: Order) -> int:
    """Numbers in the largest tensor that exists only on the way; 0 where there is none."""
    if isinstance(order, int):
        return 0
    here = max(
        (network.numbers(network.letters(members(part))) for part in order if not isinstance(part, int)), default=0
    )
    return max(here, *(largest_intermediate(network, part) for part in order))


def contract(network: Network, order: Order, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Runs an order: a torch.einsum of two tensors for each step."""

    def run(part: Order) -> tuple[str, torch.Tensor]:
        if isinstance(part, int):
            return network.inputs[part], tensors[part]
        (a, x), (b, y) = run(part[0]), run(part[1])
        group = members(part)
        letters = network.output if len(group) == len(tensors) else network.letters(group)
        return letters, torch.einsum(f"{a},{b}->{letters}", x, y)

    return run(order)[1]


def written(order: Order, names: Sequence[str]) -> str:
    """An order in brackets, such as ((A B) C)."""
    return names[order] if isinstance(order, int) else f"({written(order[0], names)} {written(order[1], names)})"


# Searching


def left_to_right(count: int) -> Order:
    """What torch.einsum does by itself, and what a @ b @ c means in Python."""
    order: Order = 0
    for i in range(1, count):
        order = (order, i)
    return order


def chain_orders(first: int, last: int) -> Iterator[Order]:
    """All ways to bracket a chain of matrices, in which only neighbours meet: 1, 2, 5, 14, 42 for 2 to 6 of them."""
    if first == last:
        yield first
    for end in range(first, last):
        yield from itertools.product(chain_orders(first, end), chain_orders(end + 1, last))


def all_orders(group: Sequence[int]) -> Iterator[Order]:
    """All ways whatever: 3 for three tensors, 15 for four, 105 for five, 34,459,425 for ten."""
    first, *others = group
    if not others:
        yield first
    for size in range(len(others)):
        for chosen in itertools.combinations(others, size):
            rest = [i for i in others if i not in chosen]
            yield from itertools.product(all_orders([first, *chosen]), all_orders(rest))


def best_order(network: Network) -> Order:
    """The order with the fewest operations, by dynamic programming over groups of tensors.

    What a group costs at best does not depend on what happens to its product later, so each group is solved once:
    3^n steps in place of 1 x 3 x 5 x ... x (2n - 3) orders.
    """
    everything = range(len(network.inputs))
    best: dict[frozenset[int], tuple[int, Order]] = {frozenset([i]): (0, i) for i in everything}
    for size in range(2, len(network.inputs) + 1):
        for group in map(frozenset, itertools.combinations(everything, size)):
            first, *others = sorted(group)  # `first` stays on the left, or every split would come twice
            choices: list[tuple[int, Order]] = []
            for count in range(len(others)):
                for chosen in itertools.combinations(others, count):
                    left = frozenset([first, *chosen])
                    (cost_left, order_left), (cost_right, order_right) = best[left], best[group - left]
                    flops = cost_left + cost_right + network.pair_flops(left, group - left)
                    choices.append((flops, (order_left, order_right)))
            best[group] = min(choices, key=lambda choice: choice[0])
    return best[frozenset(everything)][1]


def order_of_path(path: Sequence[Sequence[int]], count: int) -> Order:
    """An order from the notation of NumPy and opt_einsum: places in a list, whose products are put at its end."""
    parts: list[Order] = list(range(count))
    for pair in path:
        right, left = (parts.pop(place) for place in sorted(pair, reverse=True))
        parts.append((left, right))
    (order,) = parts
    return order


def numpys_order(network: Network) -> Order:
    """The best order according to NumPy, which looks at shapes only."""
    arrays = [np.broadcast_to(0.0, [network.lengths[letter] for letter in letters]) for letters in network.inputs]
    path = np.einsum_path(network.equation, *arrays, optimize=("optimal", 10**18))[0]
    return order_of_path(path[1:], len(arrays))
