"""Each step is compared with the gradient of its parts joined to one batch; the source counts what was taken from it."""

from collections.abc import Iterator, Sequence
from typing import Any

from shared.practice import expect
from shared.traps import SavedTensors, expect_integer
from shared.units import significant

import torch
import torch.nn.functional as F
from torch import nn

FEATURES, CLASSES, LR = 4, 3, 0.1
Part = tuple[torch.Tensor, torch.Tensor]


class Network(nn.Module):
    """Notes what autograd still keeps when it is called."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(FEATURES, 5, generator=generator, dtype=torch.float64))
        self.out = nn.Parameter(torch.randn(5, CLASSES, generator=generator, dtype=torch.float64))
        self.saved: SavedTensors | None = None
        self.alive = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.saved is not None:
            self.alive = max(self.alive, self.saved.alive())
        return torch.tanh(x @ self.first) @ self.out

    def flat(self) -> torch.Tensor:
        return torch.cat([weight.detach().flatten() for weight in self.parameters()])


class Descent:
    """Plain gradient descent that keeps how far each of its steps went."""

    def __init__(self, model: Network) -> None:
        self.model = model
        self.moves: list[torch.Tensor] = []
        self.taken_at_step: list[int] = []
        self.source: Source | None = None

    def zero_grad(self) -> None:
        self.model.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        before = self.model.flat()
        for weight in self.model.parameters():
            if weight.grad is not None:
                weight -= LR * weight.grad
        self.moves.append(self.model.flat() - before)
        self.taken_at_step.append(self.source.taken if self.source else 0)


class Source:
    """Can be read once, does not know its length, and counts."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts, self.taken = iter(parts), 0

    def __iter__(self) -> Iterator[Part]:
        return self

    def __next__(self) -> Part:
        part = next(self._parts)
        self.taken += 1
        return part


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for count, per_step in ((4, 4), (8, 4), (10, 4), (3, 4), (9, 4), (5, 1), (7, 3), (0, 2)):
        parts = [(torch.randn(2, FEATURES, generator=generator, dtype=torch.float64),
                  torch.randint(CLASSES, (2,), generator=generator)) for _ in range(count)]  # fmt: skip
        expect_epoch(answer, Network(generator), parts, per_step)


def expect_epoch(answer: Any, model: Network, parts: Sequence[Part], per_step: int) -> None:
    call = f"train_epoch with {len(parts)} parts and per_step {per_step}"
    groups = [parts[first : first + per_step] for first in range(0, len(parts), per_step)]
    optimizer: Any = Descent(model)
    optimizer.source = source = Source(parts)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)  # of an epoch before
    start = [weight.detach().clone() for weight in model.parameters()]
    model.saved = SavedTensors()
    with model.saved:
        found = answer.train_epoch(model, optimizer, source, per_step)
    model.saved = None
    expect_integer(found, call, "the number of steps, a whole number")
    made = len(optimizer.moves)
    expect(made == len(groups), f"{call} made {made} steps and should make {len(groups)}, so that each part is in one of "
                                "them and none is empty")  # fmt: skip
    expect(found == made, f"{call} returned {found} and made {made} steps")
    with torch.no_grad():
        for weight, value in zip(model.parameters(), start, strict=True):
            weight.copy_(value)
    for number, (group, moved) in enumerate(zip(groups, optimizer.moves, strict=True), start=1):
        x, y = torch.cat([x for x, _ in group]), torch.cat([y for _, y in group])
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        wanted = torch.cat([(-LR * gradient).flatten() for gradient in gradients])
        ratio, likeness = (moved.norm() / wanted.norm()).item(), F.cosine_similarity(moved, wanted, dim=0).item()
        expect(torch.allclose(moved, wanted, rtol=1e-6, atol=1e-9),
               f"{call}: step {number}, on {len(group)} of them, went {significant(ratio)} times as far as the mean of its "
               f"samples says, with a cosine of {likeness:.2f}")  # fmt: skip
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()) + moved,
                                                model.parameters())  # fmt: skip
    held = [taken - per_step * (number - 1) for number, taken in enumerate(optimizer.taken_at_step, start=1)]
    expect(max(held, default=0) <= per_step, f"{call} held {max(held, default=0)} parts at once; the source may be larger "
                                             "than memory")  # fmt: skip
    expect(model.alive == 0, f"{call}: when a part went in, autograd still kept {model.alive} tensors of those before; "
                             "call backward() for each part")  # fmt: skip


def leaves_them_out(model: Any, optimizer: Any, parts: Any, per_step: int) -> int:
    optimizer.zero_grad()
    steps = 0
    for number, (x, y) in enumerate(parts, start=1):
        (F.cross_entropy(model(x), y) / per_step).backward()
        if number % per_step == 0:
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    return steps


def one_more_step_always(model: Any, optimizer: Any, parts: Any, per_step: int) -> int:
    steps = leaves_them_out(model, optimizer, parts, per_step)
    optimizer.step()
    return steps + 1


def divides_the_rest_by_per_step(model: Any, optimizer: Any, parts: Any, per_step: int) -> int:
    steps = leaves_them_out(model, optimizer, parts, per_step)
    if any(weight.grad is not None for weight in model.parameters()):
        optimizer.step()
        steps += 1
    return steps


def by_groups(model: Any, optimizer: Any, parts: Any, per_step: int) -> int:
    groups = [parts[first : first + per_step] for first in range(0, len(parts), per_step)]
    for group in groups:
        optimizer.zero_grad()
        for x, y in group:
            (F.cross_entropy(model(x), y) / len(group)).backward()
        optimizer.step()
    return len(groups)


def reads_everything_first(model: Any, optimizer: Any, parts: Any, per_step: int) -> int:
    return by_groups(model, optimizer, list(parts), per_step)


def one_graph_for_a_step(model: Any, optimizer: Any, parts: Any, per_step: int) -> int:
    steps, group = 0, []
    for x, y in parts:
        group.append(F.cross_entropy(model(x), y))
        if len(group) == per_step:
            steps, group = steps + finish(optimizer, group), []
    return steps + finish(optimizer, group) if group else steps


def finish(optimizer: Any, losses: list[torch.Tensor]) -> int:
    optimizer.zero_grad()
    torch.stack(losses).mean().backward()
    optimizer.step()
    return 1


def keeps_old_gradients(model: Any, optimizer: Any, parts: Any, per_step: int) -> int:
    steps, source = 0, list(parts)
    for first in range(0, len(source), per_step):
        for x, y in source[first : first + per_step]:
            (F.cross_entropy(model(x), y) / len(source[first : first + per_step])).backward()
        optimizer.step()
        steps += 1
    return steps


WRONG = {
    "leaves them out": ({"train_epoch": leaves_them_out}, "made 2 steps and should make 3"),
    "one more step, always": ({"train_epoch": one_more_step_always}, "made 2 steps and should make 1"),
    "divides the rest by per_step": (
        {"train_epoch": divides_the_rest_by_per_step}, "step 3, on 2 of them, went 0.500 times as far",
    ),
    "reads everything first": ({"train_epoch": reads_everything_first}, "held 8 parts at once"),
    "one graph for a step": ({"train_epoch": one_graph_for_a_step}, "call backward() for each part"),
    "keeps old gradients": ({"train_epoch": keeps_old_gradients}, "step 1, on 4 of them, went"),
}  # fmt: skip
