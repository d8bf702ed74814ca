"""One step of one sample is changed at a time: which forecasts may change is known. Then the numbers, against an oracle."""

from collections.abc import Callable
from typing import Any

from shared.agreement import agreement, deviation
from shared.practice import expect
from shared.traps import expect_tensor, shown

import torch
from torch import nn
from torch.nn import functional as F

EXACT = 1e-9
SERIES, CHANNELS = 2, 6
Norm = Callable[[nn.Module, torch.Tensor], torch.Tensor]
Conv = Callable[[nn.Conv1d, torch.Tensor], torch.Tensor]


def reads_the_past(conv: nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    return F.conv1d(F.pad(x, (past(conv), 0)), conv.weight, conv.bias, dilation=conv.dilation)


def past(conv: nn.Conv1d) -> int:
    return conv.dilation[0] * (conv.kernel_size[0] - 1)


def each_step(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Written out, so that any module with weight and bias will do."""
    centred = x - x.mean(1, keepdim=True)
    y = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return y * norm.weight[:, None] + norm.bias[:, None]  # type: ignore[index]


class Block(nn.Module):
    def __init__(self, channels: int, kernel_size: int, dilation: int, conv: Conv, norm: Norm) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(channels, channels, kernel_size, dilation=dilation), nn.LayerNorm(channels)
        self.applied_conv, self.applied_norm = conv, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.applied_norm(self.norm, self.applied_conv(self.conv, x)))


class Right(nn.Module):
    def __init__(
        self,
        series: int,
        channels: int,
        depth: int,
        kernel_size: int,
        conv: Conv = reads_the_past,
        norm: Norm = each_step,
    ) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv1d(series, channels, 1), nn.Conv1d(channels, 1, 1)
        self.blocks = nn.ModuleList(Block(channels, kernel_size, 2**i, conv, norm) for i in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.enter(x)
        for block in self.blocks:
            y = block(y)
        y = self.leave(y)
        return y[:, 0]


def check(answer: Any, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for depth, kernel_size, steps in (
            (1, 3, 9),
            (2, 3, 12),
            (3, 2, 14),
            (2, 5, 30),
            (2, 1, 5),
            (0, 3, 4),
            (2, 3, 1),
        ):
            expect_right(answer, depth, kernel_size, steps)


def expect_right(answer: Any, depth: int, kernel_size: int, steps: int) -> None:
    call = f"Forecaster(series={SERIES}, channels={CHANNELS}, depth={depth}, kernel_size={kernel_size})"
    model = answer.Forecaster(SERIES, CHANNELS, depth, kernel_size)
    expect(isinstance(model, nn.Module), f"{call} is {shown(model)}; it should be a torch.nn.Module")
    library = Right(SERIES, CHANNELS, depth, kernel_size).double()
    for parameter in library.parameters():
        nn.init.normal_(parameter)
    expect_names(model, library, call)
    model = model.double()
    model.load_state_dict(library.state_dict())
    x = torch.randn(3, SERIES, steps, dtype=torch.float64)
    call = f"{call} of a tensor {tuple(x.shape)}"
    reach = (kernel_size - 1) * (2**depth - 1)
    for mode in (True, False):
        model.train(mode)
        expect_no_future(model, call, x.clone(), reach)
        y = model(x)
        expect_tensor(y, call, (3, steps), x.dtype)
        off = deviation(y, library(x))
        expect(off < EXACT, f"{call} depends on the right steps{'' if mode else ', but in eval()'}, and its numbers are off by "
               f"up to {off:.2g}; which weight of a kernel is for which step, and which numbers share a mean?")  # fmt: skip
    found = agreement(lambda x: model.train()(x), lambda x: library(x), x)
    expect(found.gradient < EXACT, f"{call} is right, and the gradient of x is off by up to {found.gradient:.2g}")


def expect_names(model: nn.Module, library: nn.Module, call: str) -> None:
    found, wanted = model.state_dict(), library.state_dict()
    for name in sorted(found.keys() ^ wanted.keys()):
        verb = "has" if name in found else "lacks"
        expect(False, f"{call}.state_dict() {verb} {name}; keep the names, so that the trained weights can be loaded")
    for name, x in wanted.items():
        expect_tensor(found[name], f"{call}: {name}", tuple(x.shape), found[name].dtype)


def expect_no_future(model: nn.Module, call: str, x: torch.Tensor, reach: int) -> None:
    """Changes one step of the first sample at a time, and notes which forecasts change."""
    before = model(x)
    expect_tensor(before, call, (len(x), x.shape[-1]), x.dtype)
    rows = []
    for step in range(x.shape[-1]):
        other = x.clone()
        other[0, :, step] += torch.tensor([3.0, -2.0], dtype=x.dtype)
        changed = (model(other) - before).abs() > 1e-7  # (B, T)
        expect(
            not changed[1:].any(),
            f"{call}: one sample was changed, and the forecasts for another sample change with it",
        )
        rows.append(changed[0])
    influence = torch.stack(rows)  # (step changed, forecast)
    early = influence.tril(-1)
    if early.any():
        step, forecast = early.nonzero()[0].tolist()
        knows_all = len(x[0, 0]) > 3 and torch.equal(early, torch.ones_like(early).tril(-1))
        more = (
            "; so it is with every step and every forecast before it: what knows of all steps at once?"
            if knows_all
            else ""
        )
        expect(False, f"{call}: x was changed at step {step} only, and the forecast at step {forecast}, which comes before it, "
               f"changes{more}")  # fmt: skip
    blind = (~influence.diagonal()).nonzero().flatten().tolist()
    expect(
        not blind,
        f"{call}: x was changed at step {(blind or [0])[0]}, and the forecast at this very step does not notice",
    )
    late = influence.triu(reach + 1)
    if late.any():
        step, forecast = late.nonzero()[0].tolist()
        expect(False, f"{call}: x was changed at step {step} only, and the forecast {forecast - step} steps later changes; by "
               f"the kernels it should be {reach} at most")  # fmt: skip


def centred(conv: nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    left = past(conv) // 2
    return F.conv1d(F.pad(x, (left, past(conv) - left)), conv.weight, conv.bias, dilation=conv.dilation)


def padded_right(conv: nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    return F.conv1d(F.pad(x, (0, past(conv))), conv.weight, conv.bias, dilation=conv.dilation)


def cut_at_the_wrong_end(conv: nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    y = F.conv1d(x, conv.weight, conv.bias, dilation=conv.dilation, padding=past(conv))
    return y[..., past(conv) :]


def one_step_late(conv: nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    y = F.conv1d(F.pad(x, (past(conv) + 1, 0)), conv.weight, conv.bias, dilation=conv.dilation)
    return y[..., : x.shape[-1]]


def turned_round(conv: nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    return F.conv1d(F.pad(x, (past(conv), 0)), conv.weight.flip(-1), conv.bias, dilation=conv.dilation)


def whole_sample(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, 1, norm.weight, norm.bias)  # type: ignore[arg-type]


def each_channel(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Over the last axis, which is time here."""
    y = F.layer_norm(x, x.shape[-1:])
    return y * norm.weight[:, None] + norm.bias[:, None]  # type: ignore[index]


def whole_batch(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if not norm.training:
        return each_step(norm, x)
    centred = x - x.mean((0, 1), keepdim=True)
    y = centred / (centred.square().mean((0, 1), keepdim=True) + 1e-5).sqrt()
    return y * norm.weight[:, None] + norm.bias[:, None]  # type: ignore[index]


def no_norm(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x * norm.weight[:, None] + norm.bias[:, None]  # type: ignore[index]


def written(conv: Conv = reads_the_past, norm: Norm = each_step) -> dict[str, object]:
    def make(series: int, channels: int, depth: int, kernel_size: int) -> nn.Module:
        return Right(series, channels, depth, kernel_size, conv, norm)

    return {"Forecaster": make}


WRONG = {
    "is as it was": (written(centred, whole_sample), "what knows of all steps at once?"),
    "repairs the norm only": (written(centred), "the forecast at step 0, which comes before it, changes"),
    "repairs the convolution only": (written(norm=whole_sample), "what knows of all steps at once?"),
    "pads at the end": (written(padded_right), "which comes before it, changes"),
    "pads both ends and cuts the wrong one": (written(cut_at_the_wrong_end), "which comes before it, changes"),
    "does not see the present step": (written(one_step_late), "steps later changes"),
    "turns the kernel round": (written(turned_round), "which weight of a kernel is for which step"),
    "normalises each channel over time": (written(norm=each_channel), "what knows of all steps at once?"),
    "normalises over the batch": (written(norm=whole_batch), "another sample change with it"),
    "leaves the norm out": (written(norm=no_norm), "which numbers share a mean"),
}
