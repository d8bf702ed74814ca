"""The oracle is torch.nn.GroupNorm in float64, in value and in every gradient; its state dict is the other half."""

from collections.abc import Callable
from typing import Any

from shared.agreement import agreement, deviation
from shared.practice import expect
from shared.traps import expect_tensor, operations, shown

import torch
from torch import nn

Draw = Callable[..., torch.Tensor]
FINISHED = ("group_norm", "layer_norm", "batch_norm")
LIBRARY, EXACT = "torch.nn.GroupNorm", 1e-9


def made(answer: Any, *arguments: Any, **options: Any) -> tuple[nn.Module, str]:
    words = [*map(str, arguments), *(f"{name}={value}" for name, value in options.items())]
    call = f"GroupNorm({', '.join(words)})"
    layer = answer.GroupNorm(*arguments, **options)
    expect(isinstance(layer, nn.Module), f"{call} is {shown(layer)}; it should be a torch.nn.Module")
    return layer, call


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    layer, call = made(answer, 2, 4)
    expect_state(layer, call, nn.GroupNorm(2, 4))
    expect_example(layer, call)
    few, many = (2, 6), (3, 12)
    cases: list[tuple[str, torch.Tensor, tuple[Any, ...], dict[str, Any]]] = [
        ("images", draw(3, 12, 5, 4), many, {}),
        ("images, another eps", 0.01 * draw(3, 12, 5, 4), many, {"eps": 1e-3}),
        ("vectors, with no axis behind the channels", draw(5, 6), few, {}),
        ("sequences", draw(2, 6, 7), few, {}),
        ("volumes", draw(2, 6, 2, 3, 2), few, {}),
        ("one group of all channels", draw(3, 7, 2, 3), (1, 7), {}),
        ("a group for each channel", draw(3, 7, 2, 3), (7, 7), {}),
        ("one image", draw(1, 6, 3, 3), few, {}),
        ("no image", draw(0, 6, 3, 3), few, {}),
        ("images whose channels lie last in memory", draw(2, 3, 4, 6).permute(0, 3, 1, 2), few, {}),
        ("no weight and no bias", draw(3, 6, 4), few, {"affine": False}),
    ]
    for case, x, arguments, options in cases:
        expect_right(answer, draw, case, x, arguments, options)
    expect_digits(answer, draw)
    expect_written_out(answer, draw)
    expect_refusals(answer, draw)


def expect_state(layer: nn.Module, call: str, library: nn.Module) -> None:
    found, wanted = layer.state_dict(), library.state_dict()
    expect(
        found.keys() == wanted.keys(), f"{call}.state_dict() has {names(found)}; that of {LIBRARY} has {names(wanted)}"
    )
    parameters = dict(layer.named_parameters())
    expect(parameters.keys() == wanted.keys(), f"{call} trains {names(parameters)}; {LIBRARY} trains {names(wanted)}")
    for name, x in wanted.items():
        expect_tensor(found[name], f"{call}.{name}", tuple(x.shape), x.dtype)
        is_start = torch.equal(found[name], x)
        expect(is_start, f"{call}: at the start {name} should be all {x[0].item():g}, so that it changes nothing")


def names(state: dict[str, Any]) -> str:
    return ", ".join(state) or "nothing"


def expect_example(layer: nn.Module, call: str) -> None:
    x = torch.tensor([[1.0, 3.0, 10.0, 20.0]])
    y = layer(x)
    expect_tensor(y, f"{call} of a tensor of shape (1, 4)", (1, 4), torch.float32)
    values = ", ".join(f"{value:.3f}" for value in y.detach().flatten().tolist())
    is_right = deviation(y, torch.tensor([[-1.0, 1.0, -1.0, 1.0]])) < 1e-3
    expect(is_right, f"{call} made [[1, 3, 10, 20]] [[{values}]] and should make it almost [[-1, 1, -1, 1]]: its "
           "groups are [1, 3] and [10, 20], and the variance of [1, 3] is 1, divided by n")  # fmt: skip


def expect_right(
    answer: Any, draw: Draw, case: str, x: torch.Tensor, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    layer, call = made(answer, *arguments, **options)
    library = nn.GroupNorm(*arguments, **options)
    expect_state(layer, call, library)
    layer, library = layer.double(), library.double()
    with torch.no_grad():
        for parameter in library.parameters():
            parameter.copy_(draw(*parameter.shape))
    layer.load_state_dict(library.state_dict())
    call, kept = f"{call} with {case}, {tuple(x.shape)}", x.clone()
    for mode in (True, False):
        y = layer.train(mode)(x)
        expect_tensor(y, call, tuple(x.shape), x.dtype)
        expect(torch.equal(x, kept), f"{call} changed x; it belongs to the caller")
        off = deviation(y, library(x))
        where = "" if mode else ", in eval(),"
        expect(off < EXACT, f"{call}{where} is off by up to {off:.2g}{explain(off, *arguments)}")
    found = agreement(layer.train(), library, x)
    expect(found.gradient < EXACT, f"{call} has the right values, and gradients that are off by up to {found.gradient:.2g}; "
           "mean and variance depend on x, and a gradient flows through them too")  # fmt: skip


def explain(off: float, num_groups: int, num_channels: int) -> str:
    if off < 1e-3:
        return "; for so little look at eps, which is added to the variance, under the root"
    size = num_channels // num_groups
    return f"; a sample's first group is its own channels 0 to {size - 1}, at all places" if size > 1 else ""


def expect_digits(answer: Any, draw: Draw) -> None:
    """Numbers far from zero, where a difference of two large numbers or a half-precision mean has no digit left."""
    for dtype, mean, tolerance in (
        (torch.float32, 1e4, 0.02),
        (torch.bfloat16, 100.0, 0.02),
        (torch.float16, 600.0, 0.02),
    ):
        layer, call = made(answer, 8, 16)
        library = nn.GroupNorm(8, 16).double()
        with torch.no_grad():
            for parameter in library.parameters():
                parameter.copy_(draw(*parameter.shape).to(dtype))
        layer.load_state_dict(library.state_dict())
        x = (mean + draw(2, 16, 5, 5)).to(dtype)
        y = layer.to(dtype)(x)
        name = str(dtype).removeprefix("torch.")
        call = f"{call} of {name} numbers about {mean:g}"
        expect_tensor(y, call, tuple(x.shape), dtype)
        off = deviation(y.double(), library(x.double()))
        reason = (
            "a mean of squares minus the square of a mean has no digits left there"
            if dtype is torch.float32
            else f"compute in float32, since {name} rounds the mean before it is subtracted"
        )
        expect(off < tolerance, f"{call} is off by {off:.2g}, in units of the largest result: {reason}")


def expect_written_out(answer: Any, draw: Draw) -> None:
    layer, call = made(answer, 2, 6)
    with torch.no_grad():
        used = [name.partition(".")[0] for name in operations(layer, draw(3, 6, 4).float())]
    finished = [name for name in used if name.removeprefix("native_").endswith(FINISHED)]
    expect(not finished, f"{call} is right, but {', '.join(finished)} does the work; write out what it computes")


def expect_refusals(answer: Any, draw: Draw) -> None:
    for groups, channels in ((4, 6), (8, 4)):
        call = f"GroupNorm({groups}, {channels})"
        said = complaint(lambda: answer.GroupNorm(groups, channels))
        expect(said == "ValueError", f"{call} cannot make equal groups; it should raise ValueError when it is made, and "
               f"{said or 'nothing'} came")  # fmt: skip
    for affine in (True, False):
        layer, call = made(answer, 2, 4, affine=affine)
        said = complaint(lambda: layer(draw(3, 6, 2).float()))
        expect(
            said == "ValueError",
            f"{call} of a tensor with 6 channels should raise ValueError, and {said or 'nothing'} came",
        )


def complaint(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return ""


class Right(nn.Module):
    """What the wrong answers change one part of."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        if num_channels % num_groups:
            raise ValueError
        self.groups, self.channels, self.eps = num_groups, num_channels, eps
        self.register_parameter("weight", nn.Parameter(torch.ones(num_channels)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_channels)) if affine else None)

    def widen(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        groups: torch.Tensor = x.unflatten(1, (self.groups, -1)).flatten(2)
        return groups

    def moments(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = groups.mean(-1, keepdim=True)
        return mean, (groups - mean).square().mean(-1, keepdim=True)

    def refuse(self, x: torch.Tensor) -> None:
        if x.shape[1] != self.channels:
            raise ValueError

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        groups = self.split(self.widen(x))
        mean, variance = self.moments(groups)
        return ((groups - mean) / (variance + self.eps).sqrt()).reshape(x.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.refuse(x)
        y, each = self.normalise(x), (-1, *[1] * (x.ndim - 2))
        for name, parameter in self.named_parameters():
            y = y * parameter.reshape(each) if name == "weight" else y + parameter.reshape(each)
        return y.to(x.dtype)


class DividesByOneLess(Right):
    def moments(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return groups.mean(-1, keepdim=True), groups.var(-1, keepdim=True)


class DealsChannelsOut(Right):
    """Channel c to group c modulo groups, as one deals cards."""

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        y = super().normalise(x.unflatten(1, (-1, self.groups)).transpose(1, 2).flatten(1, 2))
        back: torch.Tensor = y.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return back


class MixesTheSamples(Right):
    def moments(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().moments(groups.transpose(0, 1).flatten(1))  # (groups, 1), which fits every sample


class AddsEpsilonOutsideTheRoot(Right):
    def moments(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, variance = super().moments(groups)
        return mean, (variance.sqrt() + self.eps) ** 2 - self.eps


class TakesStatisticsForConstants(Right):
    def moments(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, variance = super().moments(groups.detach())
        return mean, variance


class SubtractsSquares(Right):
    def moments(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = groups.mean(-1, keepdim=True)
        return mean, groups.square().mean(-1, keepdim=True) - mean.square()


class StaysInHalfPrecision(Right):
    def widen(self, x: torch.Tensor) -> torch.Tensor:
        return x


class TakesAnyChannels(Right):
    def refuse(self, x: torch.Tensor) -> None:
        pass


class KeepsRunningStatistics(Right):
    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_groups, num_channels, eps, affine)
        self.register_buffer("running_mean", torch.zeros(num_groups))


class IsNoMultipleAndGoesOn(Right):
    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        nn.Module.__init__(self)
        self.groups, self.channels, self.eps = num_groups, num_channels, eps
        self.register_parameter("weight", nn.Parameter(torch.ones(num_channels)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_channels)) if affine else None)


class WorksInPlace(Right):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        with torch.no_grad():
            x -= x.mean()
        return y


WRONG = {
    "divides by n - 1": ({"GroupNorm": DividesByOneLess}, "the variance of [1, 3] is 1"),
    "deals the channels out like cards": ({"GroupNorm": DealsChannelsOut}, "its groups are [1, 3] and [10, 20]"),
    "mixes the samples": ({"GroupNorm": MixesTheSamples}, "a sample's first group is its own channels 0 to 3"),
    "adds eps outside the root": ({"GroupNorm": AddsEpsilonOutsideTheRoot}, "for so little look at eps"),
    "takes mean and variance for constants": ({"GroupNorm": TakesStatisticsForConstants}, "flows through them too"),
    "subtracts two large numbers": ({"GroupNorm": SubtractsSquares}, "has no digits left there"),
    "stays in half precision": ({"GroupNorm": StaysInHalfPrecision}, "compute in float32"),
    "keeps running statistics": ({"GroupNorm": KeepsRunningStatistics}, "has weight, bias, running_mean; that of"),
    "leaves it to the library": ({"GroupNorm": nn.GroupNorm}, "does the work; write out what it computes"),
    "takes any number of channels": (
        {"GroupNorm": TakesAnyChannels},
        "of a tensor with 6 channels should raise ValueError",
    ),
    "refuses no number of groups": ({"GroupNorm": IsNoMultipleAndGoesOn}, "cannot make equal groups"),
    "centres x in place": ({"GroupNorm": WorksInPlace}, "changed x"),
}
