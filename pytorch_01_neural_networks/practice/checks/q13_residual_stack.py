"""The oracle computes the stack from its state dict with torch.nn.functional, nothing in place."""

import copy
from collections.abc import Callable
from typing import Any

from shared.agreement import deviation
from shared.practice import expect
from shared.traps import expect_tensor, operations, shown

import torch
from torch import nn
from torch.nn import functional as F

OPERATIONS = 5  # of a block: two ReLUs, two convolutions, one addition


def oracle(state: dict[str, torch.Tensor], depth: int, x: torch.Tensor) -> torch.Tensor:
    for i in range(depth):
        first, last = (state[f"blocks.{i}.inner.{place}.weight"] for place in (1, 3))
        x = x + F.conv2d(F.conv2d(x.relu(), first, padding=1).relu(), last)
    return x.relu()


def check(answer: Any, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for channels, hidden, depth in ((4, 3, 1), (3, 5, 4), (2, 7, 8)):
            call = f"ResidualStack({channels}, {hidden}, {depth})"
            model = answer.ResidualStack(channels, hidden, depth)
            expect(isinstance(model, nn.Module), f"{call} is {shown(model)}; it should stay a torch.nn.Module")
            expect_weights(model, call, channels, hidden, depth)
            x = torch.randn(2, channels, 5, 6, dtype=torch.float64)
            expect_forward(model.double(), call, depth, x)
            expect_gradients(model, call, depth, x)
            expect_few_operations(model, call, depth, x)


def expect_weights(model: nn.Module, call: str, channels: int, hidden: int, depth: int) -> None:
    shapes = {1: (hidden, channels, 3, 3), 3: (channels, hidden, 1, 1)}
    wanted = {f"blocks.{i}.inner.{place}.weight": shape for i in range(depth) for place, shape in shapes.items()}
    state = model.state_dict()
    found = {name: tuple(x.shape) for name, x in state.items()}
    differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    expect(not differ, f"{call}.state_dict(): {', '.join(differ[:3])} should {'' if differ[:1] <= list(wanted) else 'not '}"
           "be there as the docstring says, with the shapes of one 3x3 and one 1x1 convolution")  # fmt: skip
    seen, alone = sum(p.numel() for p in model.parameters()), channels * hidden * 10
    expect(seen == depth * alone, f"{call} has {seen:,} parameters, and a single block has {alone:,}: {depth} blocks with "
           f"weights of their own have {depth * alone:,}")  # fmt: skip
    starts = {state[name].flatten()[0].item() for name in wanted if name.endswith("1.weight")}
    expect(len(starts) == depth, f"{call}: some of the {depth} blocks begin with the same weights; copies begin alike, so make "
           "each of them")  # fmt: skip


def expect_forward(model: nn.Module, call: str, depth: int, x: torch.Tensor) -> None:
    kept = x.clone()
    with torch.no_grad():
        first = model(x)
        expect_tensor(first, f"{call} of a tensor of shape {tuple(x.shape)}", tuple(x.shape), x.dtype)
        changed = int((x != kept).sum())
        which = "all that are negative" if torch.equal(x, kept.relu()) else "and not only negative ones"
        expect(changed == 0, f"{call} changed {changed} of {x.numel()} numbers of the batch that it was given, {which}; its "
               "caller reads it again")  # fmt: skip
        off = deviation(first, oracle(model.state_dict(), depth, kept))
        expect(off < 1e-9, f"{call} is off by up to {off:.2g} from x + inner(x) in each block, and relu at the end: what "
               "is x when the addition reads it?")  # fmt: skip
        silent = copy.deepcopy(model)
        for name, parameter in silent.named_parameters():
            if name.endswith("3.weight"):
                parameter.zero_()
        expect(
            torch.equal(silent(kept), kept.relu()),
            f"{call} with weights of 0 in all last convolutions should be relu(x)",
        )


def expect_gradients(model: nn.Module, call: str, depth: int, x: torch.Tensor) -> None:
    backward = torch.randn_like(x)
    gradients = []
    functions: tuple[Callable[..., torch.Tensor], ...] = (
        model,
        lambda leaf: oracle(dict(model.named_parameters()), depth, leaf),
    )
    for function in functions:
        leaf = x.clone().requires_grad_()
        try:
            (function(leaf) * backward).sum().backward()
        except RuntimeError as error:
            reason = str(error).partition(".")[0]
            expect(False, f"{call} of an x that requires a gradient: something that is still needed was written over; PyTorch "
                   f"says: {reason}")  # fmt: skip
        gradients.append([leaf.grad, *(parameter.grad for parameter in model.parameters())])
        model.zero_grad()
    for found, right in zip(*gradients, strict=True):
        expect(found is not None, f"{call}: backward() brings no gradient to x or to one of the weights")
        assert found is not None
        assert right is not None
        off = deviation(found, right)
        expect(off < 1e-9, f"{call}: the gradients are off by up to {off:.2g}; is the skip still in the graph?")


def expect_few_operations(model: nn.Module, call: str, depth: int, x: torch.Tensor) -> None:
    with torch.no_grad():
        used = [name.partition(".")[0] for name in operations(model, x)]
    expect(len(used) <= depth * OPERATIONS + 1, f"{call} is right, but takes {len(used)} operations where "
           f"{depth * OPERATIONS + 1} are enough; {used.count('clone')} of them copy what an operation could have left "
           "alone")  # fmt: skip


def stack_of(make: Callable[[int, int, int], list[nn.Module]]) -> dict[str, object]:
    """The stack is right, what stands in it comes from `make`."""

    class ResidualStack(nn.Module):
        def __init__(self, channels: int, hidden: int, depth: int) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(make(channels, hidden, depth))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return torch.relu(x)

    return {"ResidualStack": ResidualStack}


class Block(nn.Module):
    """Right; what is wrong in a block is one of the three steps."""

    in_place = False

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.ReLU(inplace=self.in_place),
            nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.inner(x)
        return y


class LeavesItInPlace(Block):
    in_place = True


class AddsFirst(LeavesItInPlace):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        y: torch.Tensor = shortcut + self.inner(x)
        return y


class AddsInPlace(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += self.inner(x)
        return x


class CopiesTheShortcut(LeavesItInPlace):
    """relu(x) is then kept where x was: the values are right, and the caller's batch is not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x.clone()
        y: torch.Tensor = shortcut + self.inner(x)
        return y


class CopiesForInner(LeavesItInPlace):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.inner(x.clone())
        return y


class DetachesTheShortcut(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x.detach() + self.inner(x)
        return y


def each(kind: type[Block]) -> dict[str, object]:
    return stack_of(lambda channels, hidden, depth: [kind(channels, hidden) for _ in range(depth)])


def copies(channels: int, hidden: int, depth: int) -> list[nn.Module]:
    block = Block(channels, hidden)
    return [copy.deepcopy(block) for _ in range(depth)]


WRONG = {
    "repairs the block alone": (
        stack_of(lambda channels, hidden, depth: [Block(channels, hidden)] * depth),
        "ResidualStack(3, 5, 4) has 150 parameters, and a single block has 150",
    ),
    "copies one block": (stack_of(copies), "some of the 4 blocks begin with the same weights"),
    "repairs the stack alone": (each(LeavesItInPlace), "of the batch that it was given"),
    "gives the shortcut another name": (each(AddsFirst), "of the batch that it was given"),
    "copies the shortcut": (each(CopiesTheShortcut), "of the batch that it was given"),
    "adds in place": (each(AddsInPlace), "of the batch that it was given"),
    "copies for the inner layers": (each(CopiesForInner), "1 of them copy"),
    "detaches the shortcut": (each(DetachesTheShortcut), "is the skip still in the graph?"),
}
