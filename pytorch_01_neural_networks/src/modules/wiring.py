"""Models that are no chain: skip connections, and two inputs with two outputs and two losses."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from shared.agreement import deviation
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import significant

import torch
from torch import nn
from torch.nn import functional as F

CPU = torch.device("cpu")


# Skip connections


class Residual(nn.Module):
    """shortcut(x) + inner(x): the inner layers learn what is to be changed of x (He et al. 2015, eq. 1 and 2).

    The shortcut is the identity unless another is given, which is needed where `inner` changes the shape.
    """

    def __init__(self, inner: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.shortcut(x) + self.inner(x)
        return y


def residual_block(inputs: int, outputs: int, stride: int = 1) -> Residual:
    """Two convolutions with a shortcut, projected by a 1x1 convolution where channels or size change.

    (B, inputs, H, W) → (B, outputs, H / stride, W / stride).
    """
    inner = nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),  # BatchNorm would take a bias away again
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )
    if (inputs, stride) == (outputs, 1):
        return Residual(inner)
    return Residual(inner, nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)))


class AddsInPlace(Residual):
    """The mistake: += writes into the tensor that the caller still has, and that inner layers may have kept."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += self.inner(x)
        return x


class Scaled(nn.Module):
    """x times a number that learns, 0 at the start (ReZero, Bachlechner et al. 2020, eq. 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


def gradients_by_depth(blocks: Sequence[nn.Module], x: torch.Tensor, backward: torch.Tensor) -> list[float]:
    """The norm of the gradient at the input of each block, as a share of the norm of `backward` at the last output."""
    inputs: list[torch.Tensor] = []
    for block in blocks:
        x = x.detach().requires_grad_() if not inputs else x
        x.retain_grad()
        inputs.append(x)
        x = block(x)
    (x * backward).sum().backward()
    # In float64, because the square of 1e-25 is 0 in float32; on the CPU, because MPS has no float64.
    norms = [h.grad.cpu().double().norm().item() for h in inputs if h.grad is not None]
    return [norm / backward.norm().item() for norm in norms]


def draw_gradients(axis: Any, shares: Mapping[str, Sequence[float]]) -> None:
    for name, of_name in shares.items():
        axis.plot(range(1, len(of_name) + 1), of_name, label=name, markevery=4)
    axis.set(yscale="log", xlabel="block, counted from the input", ylabel="gradient, as a share of that at the output",
             title="What arrives of the gradient, with and without a way around")  # fmt: skip
    axis.legend(loc="center right")


def show_skips(lesson: Lesson) -> None:
    depth, width = lesson.pick(full=32, quick=16), 64
    lesson.section(
        "Skip connections",
        "A block with a skip computes x + f(x). Its slope is 1 plus that of f, so the gradient has a way to the first "
        f"layer on which nothing is multiplied. Here are {depth} blocks of Linear, ReLU, Linear, {width} wide, with PyTorch's "
        "initial weights, the same in all three models. What arrives of the gradient at the input of a block:",
    )
    inner = [
        nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)).to(lesson.device)
        for _ in range(depth)
    ]
    models: dict[str, list[nn.Module]] = {
        "f(x)": list(inner),
        "x + f(x)": [Residual(f) for f in inner],
        "x + 0 f(x)": [Residual(nn.Sequential(f, Scaled().to(lesson.device))) for f in inner],
    }
    x, backward = (torch.randn(32, width, device=lesson.device) for _ in range(2))
    shares = {name: gradients_by_depth(blocks, x, backward) for name, blocks in models.items()}
    shown = [0, depth // 4, depth // 2, 3 * depth // 4, depth - 2, depth - 1]
    lesson.table(
        [{"block": i + 1, **{name: significant(of_name[i], 2) for name, of_name in shares.items()}} for i in shown]
    )
    for name, of_name in shares.items():
        lesson.record("gradient at the first block", of_name[0], "of that at the output", model=name, depth=depth)
    first = {name: of_name[0] for name, of_name in shares.items()}
    lesson.check(f"without skips the gradient is lost on {depth} blocks", first["f(x)"] < 1e-6,
                 f"{first['f(x)']:.0e} of it arrives at the first")  # fmt: skip
    lesson.check(
        "with skips it arrives",
        1 < first["x + f(x)"] < 1e3,
        f"{significant(first['x + f(x)'], 2)} times what was sent",
    )
    lesson.check("scaled by 0 at the start, a block passes it unchanged", abs(first["x + 0 f(x)"] - 1) < 1e-4,
                 f"{first['x + 0 f(x)']:.6f}; the 0 is a parameter and learns")  # fmt: skip
    lesson.figure("gradient_by_depth", lambda axis: draw_gradients(axis, shares))
    show_shapes_of_skips(lesson)
    lesson.shows(
        f"one addition per block, and no parameter, turns {first['f(x)']:.0e} of the gradient into "
        f"{significant(first['x + f(x)'], 2)} (picture gradient_by_depth.png). That it grows is the reason why deep "
        "residual models normalise inside the block, or let each block begin at 0."
    )


def show_shapes_of_skips(lesson: Lesson) -> None:
    images = torch.randn(4, 16, 9, 9, device=lesson.device)
    blocks = {
        "residual_block(16, 16)": residual_block(16, 16),
        "residual_block(16, 32, stride=2)": residual_block(16, 32, stride=2),
    }
    lesson.text(
        "In a model for images a block may halve the size or add channels, and x must be brought to the new shape. For "
        f"images of shape {tuple(images.shape)}:"
    )
    table = []
    for call, block in blocks.items():
        block.to(lesson.device)
        y, shortcut = block(images), sum(p.numel() for p in block.shortcut.parameters())
        table.append({"block": call, "returns": str(tuple(y.shape)),
                      "shortcut": "identity" if shortcut == 0 else "1x1 convolution",
                      "its parameters": shortcut, "of": sum(p.numel() for p in block.parameters())})  # fmt: skip
    lesson.table(table)
    forgotten = Residual(blocks["residual_block(16, 32, stride=2)"].inner)
    refused = complaint(lambda: forgotten(images))
    lesson.check("an identity that does not fit is refused", "must match" in refused, "RuntimeError: sizes must match")
    grey = torch.randn(4, 1, 9, 9, device=lesson.device)
    block = Residual(nn.Conv2d(1, 16, 3, padding=1).to(lesson.device))
    lesson.check("unless x has one channel: then it is silently broadcast", block(grey).shape[1] == 16,
                 "1 channel + 16 channels = 16")  # fmt: skip
    f = nn.Conv2d(16, 16, 3, padding=1).to(lesson.device)
    right, before = Residual(f)(images), images.clone()
    wrong = AddsInPlace(f)(images)
    lesson.check("x += f(x) gives the same output, and ruins the batch",
                 deviation(wrong, right) < 1e-5 and not torch.equal(images, before),
                 f"the caller's images changed by up to {(images - before).abs().max().item():.1f}")  # fmt: skip
    hidden = before.clone().requires_grad_() * 1
    refused = complaint(lambda: AddsInPlace(f)(hidden).sum().backward())
    lesson.check("in the middle of a model it breaks backward()", "inplace" in refused,
                 "the convolution had kept x for its gradient")  # fmt: skip


# Two inputs, two outputs


class Offer(NamedTuple):
    """What the model returns: names instead of positions, so that nobody mixes them up."""

    district: torch.Tensor
    price: torch.Tensor


class HouseModel(nn.Module):
    """A picture and a few facts about a house → scores for its district, and its price.

    picture (B, 1, 12, 12), facts (B, 5) → district (B, 4), price (B,).
    """

    def __init__(self) -> None:
        super().__init__()
        self.from_picture = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(200, 32))
        self.from_facts = nn.Linear(5, 32)
        self.trunk = nn.Sequential(nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.district = nn.Linear(64, 4)
        self.price = nn.Linear(64, 1)

    def forward(self, picture: torch.Tensor, facts: torch.Tensor) -> Offer:
        both = torch.cat([self.from_picture(picture), self.from_facts(facts)], dim=-1)  # (B, 64)
        h = self.trunk(both)
        return Offer(self.district(h), self.price(h).squeeze(-1))


class Houses(NamedTuple):
    picture: torch.Tensor
    facts: torch.Tensor
    district: torch.Tensor
    price: torch.Tensor


def make_houses(count: int) -> Houses:
    """Made-up houses in float64, on the CPU; prices in 100,000s, with mean 0 and variance 1."""
    numbers = torch.randn(count, 1, 12, 12).double(), torch.randn(count, 5).double()
    return Houses(*numbers, torch.randint(4, (count,)), torch.randn(count).double())


Gradients = dict[str, torch.Tensor | None]


def losses_of(model: nn.Module, houses: Houses, unit: float = 1) -> dict[str, torch.Tensor]:
    """Both losses; the price as a multiple of 100,000 / `unit`."""
    offer = model(houses.picture, houses.facts)
    return {
        "district": F.cross_entropy(offer.district, houses.district),
        "price": F.mse_loss(offer.price, unit * houses.price),
    }


def gradients_of(model: nn.Module, loss: torch.Tensor) -> Gradients:
    """The gradient of each parameter, by name; None where the loss does not depend on it. The graph is kept."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True), strict=True))


def norm_of(gradients: Gradients, part: str) -> float | None:
    """The norm of the gradient of a child module; None where there is none."""
    inside = [g.flatten() for name, g in gradients.items() if name.startswith(f"{part}.") and g is not None]
    return torch.cat(inside).norm().item() if inside else None


def share_of_price(model: nn.Module, houses: Houses, unit: float) -> float:
    """Of the two gradients that pull at the trunk, how much of their summed length comes from the price."""
    norms = {name: norm_of(gradients_of(model, loss), "trunk") for name, loss in losses_of(model, houses, unit).items()}
    assert norms["price"] is not None
    assert norms["district"] is not None
    return norms["price"] / (norms["price"] + norms["district"])


def show_two_heads(lesson: Lesson) -> None:
    lesson.section(
        "Two inputs, two outputs, two losses",
        "A house has a picture and five facts; wanted are its district (cross-entropy) and its price (squared error). "
        "forward() takes as many inputs as you like and returns what you like, best with names. Both heads share a "
        "trunk, and what the trunk learns is decided by the sum of two gradients. For 32 made-up houses, in float64, the "
        "norm of the gradient in each part of the model:",
    )
    model, houses = HouseModel().double(), make_houses(32)
    losses = losses_of(model, houses)
    of_each = {name: gradients_of(model, loss) for name, loss in losses.items()}
    total = gradients_of(model, losses["district"] + losses["price"])
    lesson.table(
        [
            {"part": part, "parameters": sum(p.numel() for p in child.parameters())}
            | {f"from {name}": norm_of(gradients, part) for name, gradients in of_each.items()}
            | {"from their sum": norm_of(total, part)}
            for part, child in model.named_children()
        ]
    )
    shared = {name: g for name, g in total.items() if not name.startswith(("district.", "price."))}
    off = max(deviation(added(of_each, name), g) for name, g in shared.items() if g is not None)
    lesson.check(
        "shared parts: gradient of the sum = sum of gradients",
        off < 1e-12,
        f"{len(shared)} tensors, off by {significant(off, 1)}",
    )
    strangers = [of_each["price"]["district.weight"], of_each["district"]["price.weight"]]
    lesson.check(
        "a head gets nothing from the other's loss", strangers == [None, None], "its gradient is None, not zeros"
    )
    refused = complaint(lambda: [loss.backward() for loss in losses_of(model, houses).values()])
    lesson.check(
        "one backward() after the other is refused", "second time" in refused, "the trunk's graph is freed; add first"
    )
    lesson.text(
        "The sum treats both losses alike, whatever they are measured in. The same prices, counted in other units:"
    )
    units = {"100,000": 1, "10,000": 10, "1,000": 100}
    shares = {name: share_of_price(model, houses, unit) for name, unit in units.items()}
    lesson.table(
        [
            {"price counted in": name, "its loss": losses_of(model, houses, unit)["price"].item(),
             "loss of the district": losses["district"].item(),
             "price's share of the trunk's gradients": f"{100 * shares[name]:.1f} %"}
            for name, unit in units.items()
        ]
    )  # fmt: skip
    lesson.check("a smaller unit gives the price the whole trunk", shares["1,000"] > max(0.9, shares["100,000"]),
                 f"{100 * shares['100,000']:.1f} % becomes {100 * shares['1,000']:.1f} %")  # fmt: skip
    lesson.shows(
        f"counted in thousands, {100 * shares['1,000']:.1f} % of what pulls at the trunk is about the price, and the district "
        "goes unheard though its loss is in the sum. Bring targets to one scale before you add losses, and compare their "
        "gradients in the trunk rather than the losses."
    )


def added(of_each: Mapping[str, Gradients], name: str) -> torch.Tensor:
    return torch.stack([g for gradients in of_each.values() if (g := gradients[name]) is not None]).sum(0)
