"""Trains with three small optimizers of its own, on the model, on a copy of it, and on one that was loaded; the oracle is
one table, indexed."""

import copy
from collections.abc import Callable
from typing import Any

from shared.agreement import deviation
from shared.dispatch import Watcher, tensors_in
from shared.practice import expect
from shared.traps import expect_tensor, shown

import torch
import torch.nn.functional as F
from torch import nn

EXACT = 1e-9


class NewNumbers(Watcher):
    """The size of the largest tensor that is made, views of what was there before left out."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in known}
        self.largest = 0

    def saw(self, operation: Any, args: Any, kwargs: Any, result: Any) -> None:
        for x in tensors_in(result):
            if x.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, x.numel())


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    expect_table(answer, "the example", torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 1)
    expect_table(answer, "one bought row", draw(1, 3), 2)
    expect_table(answer, "more new rows than bought ones", draw(3, 4), 7)
    expect_table(answer, "a table of half precision", draw(6, 4).to(torch.bfloat16), 2)
    expect_own_memory(answer, draw(5, 3))
    bought = draw(7, 4)
    for name, train in OPTIMIZERS.items():
        model = made(answer, bought, 3)
        expect_training(model, f"trained with {name}", bought, 3, train, generator)
    expect_training(
        copy.deepcopy(model), "made by deepcopy of one whose bought rows stood still", bought, 3, shrinks, generator
    )
    expect_parameters(made(answer, bought, 3), bought, 3)
    expect_checkpoint(answer, draw(5, 3), draw(5, 3), generator)
    expect_lean(answer, draw(3000, 4))


def made(answer: Any, bought: torch.Tensor, added: int) -> Any:
    model = answer.GrownEmbedding(bought, added)
    call = f"GrownEmbedding(bought {tuple(bought.shape)}, {added})"
    expect(isinstance(model, nn.Module), f"{call} is {shown(model)}; it should be a torch.nn.Module")
    return model


def table_of(model: Any, rows: int) -> torch.Tensor:
    table: torch.Tensor = model(torch.arange(rows))
    return table.detach().clone()


def expect_table(answer: Any, case: str, bought: torch.Tensor, added: int) -> None:
    count, width = bought.shape
    call = f"GrownEmbedding with {case}, bought {tuple(bought.shape)} and {added} new,"
    model = made(answer, bought, added)
    for tokens in (torch.arange(count + added), torch.tensor(count), torch.arange(2 * count).view(2, -1) % (count + added),
                   torch.zeros(0, 3, dtype=torch.int64), torch.tensor([[0, count], [count + added - 1, 0]]).t()):  # fmt: skip
        found = model(tokens)
        expect_tensor(found, f"{call} for tokens {tuple(tokens.shape)}", (*tokens.shape, width), bought.dtype)
        start = bought.mean(dim=0).expand(added, width)
        right = torch.cat([bought, start])[tokens]
        is_old = tokens < count
        expect(
            torch.equal(found[is_old], right[is_old]),
            f"{call} does not give back the bought rows for the tokens 0 to {count - 1}",
        )
        off = deviation(found[~is_old], right[~is_old])
        expect(off < 1e-6, f"{call}: a new row is {off:.2g} away from the mean of the bought rows")


def expect_own_memory(answer: Any, bought: torch.Tensor) -> None:
    kept = bought.clone()
    model = made(answer, bought, 2)
    bought.fill_(7)
    call = "after GrownEmbedding(bought, 2) the caller fills bought with 7:"
    expect(torch.equal(table_of(model, 5), kept), f"{call} the model's rows change with it; keep a copy")
    source = nn.Parameter(kept.clone())
    loss = loss_of(made(answer, source, 2), torch.tensor([0, 5]), kept[:2])
    expect(
        loss.requires_grad, "GrownEmbedding of another model's parameter has lost the graph; nothing would be learned"
    )
    loss.backward()
    is_apart = source.grad is None
    expect(
        is_apart,
        "bought was a parameter of another model, and that model got a gradient; nothing should connect the two",
    )


def loss_of(model: Any, tokens: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (model(tokens) - target).square().sum()


def shrinks(model: Any, backward: Callable[[], None]) -> None:
    for _ in range(3):
        model.zero_grad()
        backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.1 * (p.grad + 0.5 * p)


def carries_on(model: Any, backward: Callable[[], None]) -> None:
    speeds = {p: torch.full_like(p, 0.01) for p in model.parameters()}  # as if it had been trained before
    for _ in range(3):
        model.zero_grad()
        backward()
        with torch.no_grad():
            for p, speed in speeds.items():
                if p.grad is not None:
                    speed.mul_(0.9).add_(p.grad)
                    p -= 0.1 * speed


def follows_the_gradient(model: Any, backward: Callable[[], None]) -> None:
    for _ in range(3):
        model.zero_grad()
        backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad


OPTIMIZERS = {
    "plain gradient descent": follows_the_gradient,
    "weight decay": shrinks,
    "momentum from an earlier training": carries_on,
}


def expect_training(
    model: Any, case: str, bought: torch.Tensor, added: int, train: Callable[..., None], generator: torch.Generator
) -> None:
    """One table as the oracle: its new rows are trained as a parameter of their own, by the same optimizer."""
    count, width = bought.shape
    oracle = Oracle(bought, table_of(model, count + added)[count:])
    before = table_of(model, count + added)
    tokens = torch.randint(count + added, (4, 6), generator=generator)
    tokens[0, :3] = count  # a new row that is used again and again
    tokens[tokens == count + 1] = 0  # and one that is not used
    target = torch.randn(4, 6, width, generator=generator, dtype=bought.dtype)
    call = f"a GrownEmbedding with {count} bought rows, {case},"
    loss = loss_of(model, tokens, target)
    expect(loss.requires_grad, f"{call} has lost the graph; nothing would be learned")
    for each in (model, oracle):
        train(each, lambda each=each: loss_of(each, tokens, target).backward())
    after, right = table_of(model, count + added), table_of(oracle, count + added)
    moved = (after[:count] - before[:count]).norm(dim=1)
    worst = int(moved.argmax())
    why = (
        "what does this optimizer do with a weight whose gradient is 0?"
        if "trained" in case
        else "what does a copy not have?"
    )
    expect(not moved.any(), f"{call} has moved its bought rows, row {worst} by {moved[worst].item():.3g}: {why}")
    off = deviation(after[count:], right[count:])
    expect(off < EXACT, f"{call} has its new rows off by {off:.2g}; they should be trained as a table of their own, by the sum "
           "of the gradients of all their uses")  # fmt: skip


class Oracle(nn.Module):
    def __init__(self, bought: torch.Tensor, new: torch.Tensor) -> None:
        super().__init__()
        self.bought, self.new = bought.clone(), nn.Parameter(new.clone())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.bought, self.new])[tokens]


def expect_parameters(model: Any, bought: torch.Tensor, added: int) -> None:
    count, width = bought.shape
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    call = f"GrownEmbedding with {count} bought and {added} new rows of {width} numbers"
    wanted = added * width
    expect(trained == wanted, f"{call} hands {trained} numbers to the optimizer for training; {wanted} learn")
    model.float()
    found = model(torch.tensor([0, count]))
    name = str(found.dtype).removeprefix("torch.")
    expect(found.dtype is torch.float32, f"after model.float() the rows are {name}; .to() should convert all of them")


def expect_checkpoint(answer: Any, one: torch.Tensor, other: torch.Tensor, generator: torch.Generator) -> None:
    first, second = made(answer, one, 2), made(answer, other, 2)
    tokens = torch.tensor([5, 6, 1])
    follows_the_gradient(first, lambda: loss_of(first, tokens, torch.zeros(3, 3, dtype=one.dtype)).backward())
    try:
        second.load_state_dict(first.state_dict())
    except RuntimeError as error:
        expect(False, f"load_state_dict() of another model's state dict stopped: {' '.join(str(error).split())[:120]}")
    moved = deviation(table_of(second, 7), table_of(first, 7))
    expect(
        moved == 0, "a model that has loaded the state dict of another one gives other rows; all rows belong into it"
    )


def expect_lean(answer: Any, bought: torch.Tensor) -> None:
    model = made(answer, bought, 2)
    tokens = torch.tensor([[3, 3001, 7], [3000, 0, 2999]])
    with NewNumbers([*model.parameters(), *model.buffers()]) as new:
        model(tokens)
    rows, width = bought.shape
    expect(
        new.largest < rows,
        f"right, but to look up {tokens.numel()} tokens it makes a tensor of {new.largest:,} numbers, and the table has "
        f"{rows + 2:,} x {width}; the table should not be copied for each batch",
    )


class Base(nn.Module):
    """What most wrong answers have in common: a whole table as parameter."""

    def __init__(self, bought: torch.Tensor, added: int) -> None:
        super().__init__()
        self.count = len(bought)
        self.weight = nn.Parameter(torch.cat([bought.detach(), bought.detach().mean(dim=0).expand(added, -1)]))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.embedding(tokens, self.weight)


class HookOnTheGradient(Base):
    def __init__(self, bought: torch.Tensor, added: int) -> None:
        super().__init__(bought, added)
        count = self.count
        self.weight.register_hook(lambda gradient: torch.cat([torch.zeros_like(gradient[:count]), gradient[count:]]))


class DetachedRows(Base):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = super().forward(tokens)
        return torch.where((tokens < self.count)[..., None], rows.detach(), rows)


class TrainsEverything(Base):
    pass


class WritesItBack(Base):
    """Restores the bought rows at the next forward pass."""

    kept: torch.Tensor

    def __init__(self, bought: torch.Tensor, added: int) -> None:
        super().__init__(bought, added)
        self.register_buffer("kept", bought.detach().clone())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight[: self.count] = self.kept
        return super().forward(tokens)


class RestoresByAHandle(Base):
    """Before each forward pass it writes the bought rows back into the parameter that it was made with."""

    def __init__(self, bought: torch.Tensor, added: int) -> None:
        super().__init__(bought, added)
        weight, kept = self.weight, bought.detach().clone()

        def restore(*_: object) -> None:
            with torch.no_grad():
                weight[: len(kept)] = kept

        self.register_forward_pre_hook(restore)


class Parts(nn.Module):
    """Right, but for one slip of the pen."""

    slip = ""
    bought: torch.Tensor

    def __init__(self, bought: torch.Tensor, added: int) -> None:
        super().__init__()
        kept = (
            bought if self.slip == "shares" else bought.clone() if self.slip == "connected" else bought.detach().clone()
        )
        if self.slip == "attribute":
            self.bought = kept
        else:
            self.register_buffer("bought", kept, persistent=self.slip != "not saved")
        start = torch.randn(added, bought.shape[1], dtype=bought.dtype)
        mean = bought.detach().mean(dim=0).expand(added, -1).clone()
        self.new = nn.Parameter(start if self.slip == "random" else mean)
        if self.slip == "frozen":
            self.new.requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.slip == "cat":
            return F.embedding(tokens, torch.cat([self.bought, self.new]))
        place = tokens - len(self.bought)
        old, new = self.bought[tokens.clamp(max=len(self.bought) - 1)], self.new[place.clamp(min=0)]
        return torch.where((place >= 0)[..., None], new, old)


def with_slip(slip: str) -> dict[str, object]:
    return {"GrownEmbedding": type("GrownEmbedding", (Parts,), {"slip": slip})}


WRONG = {
    "writes them back, but not in a copy": ({"GrownEmbedding": RestoresByAHandle}, "what does a copy not have?"),
    "is as it was": ({"GrownEmbedding": HookOnTheGradient}, "trained with weight decay, has moved its bought rows"),
    "detaches the bought rows": ({"GrownEmbedding": DetachedRows}, "trained with weight decay, has moved"),
    "trains everything": ({"GrownEmbedding": TrainsEverything}, "trained with plain gradient descent, has moved"),
    "writes the rows back": ({"GrownEmbedding": WritesItBack}, "numbers to the optimizer for training; 12 learn"),
    "shares the caller's memory": (with_slip("shares"), "keep a copy"),
    "stays connected to the other model": (with_slip("connected"), "nothing should connect the two"),
    "keeps the rows as a plain attribute": (with_slip("attribute"), ".to() should convert all of them"),
    "does not save the bought rows": (with_slip("not saved"), "all rows belong into it"),
    "begins at random": (with_slip("random"), "away from the mean of the bought rows"),
    "trains nothing": (with_slip("frozen"), "has lost the graph"),
    "copies the table for each batch": (with_slip("cat"), "should not be copied for each batch"),
}
