"""The oracle is nn.BatchNorm1d on the frames alone; then the padding is filled with anything, and nothing may change."""

import copy
from collections.abc import Callable
from typing import Any

from shared.agreement import deviation
from shared.practice import expect
from shared.traps import expect_tensor, shown

import torch
from torch import nn

EXACT = 1e-9
Forward = Callable[[nn.BatchNorm1d, torch.Tensor, torch.Tensor], torch.Tensor]


def mask_of(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[-1]) < lengths[:, None]


def frames_alone(norm: nn.BatchNorm1d, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    mask = mask_of(x, lengths)
    y = torch.zeros_like(x)
    y.mT[mask] = norm(x.mT[mask])
    return y


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return 3 * torch.randn(shape, generator=generator, dtype=torch.float64) + 5

    expect_example(answer)
    cases: list[tuple[str, torch.Tensor, list[int]]] = [
        ("without padding", draw(3, 4, 6), [6, 6, 6]),
        ("with padding", draw(3, 4, 6), [6, 2, 4]),
        ("mostly padding", draw(4, 2, 20), [20, 1, 1, 3]),
        ("padded further than its longest recording", draw(2, 3, 9), [5, 4]),
        ("of recordings with one frame", draw(5, 3, 4), [1, 1, 1, 1, 1]),
        ("of one recording", draw(1, 3, 7), [5]),
        ("whose channels lie last in memory", draw(3, 6, 4).mT, [2, 6, 3]),
    ]
    for case, x, lengths in cases:
        expect_right(answer, case, x, torch.tensor(lengths))
    for rubbish in (float("nan"), float("inf"), -1e9):
        x, some = draw(3, 4, 6), torch.tensor([6, 2, 4])
        x.masked_fill_(~mask_of(x, some)[:, None], rubbish)
        expect_right(answer, f"with {rubbish:g} in the padding", x, some)
    x = draw(3, 4, 6).float()
    expect_right(answer, "of float32 numbers", x, torch.tensor([6, 2, 4]))


def made(answer: Any, channels: int, dtype: torch.dtype) -> tuple[nn.Module, nn.BatchNorm1d]:
    """The learner's module, and the library's norm with the same state."""
    call = f"MaskedBatchNorm({channels})"
    model = answer.MaskedBatchNorm(channels)
    expect(isinstance(model, nn.Module), f"{call} is {shown(model)}; it should be a torch.nn.Module")
    found = getattr(model, "norm", None)
    expect(
        isinstance(found, nn.BatchNorm1d),
        f"{call}.norm is {shown(found)}; keep the BatchNorm1d that is trained already",
    )
    assert isinstance(found, nn.BatchNorm1d)
    with torch.no_grad():
        found.weight.copy_(torch.linspace(0.5, 2, channels))
        found.bias.copy_(torch.linspace(-1, 1, channels) + 0.25)
    model.to(dtype)
    return model, copy.deepcopy(found)


def expect_example(answer: Any) -> None:
    model, _ = made(answer, 1, torch.float64)
    nn.init.ones_(model.norm.weight)  # type: ignore[union-attr, arg-type]
    nn.init.zeros_(model.norm.bias)  # type: ignore[union-attr, arg-type]
    x = torch.tensor([[[1.0, 3.0]], [[5.0, 9.0]]], dtype=torch.float64)
    call = "the example, [[1, 3], [5, 9]] with lengths 2 and 1,"
    y = model(x, torch.tensor([2, 1]))
    expect_tensor(y, call, (2, 1, 2), x.dtype)
    values = [round(value, 2) + 0.0 for value in y.detach().flatten().tolist()]  # + 0.0: no -0.0
    expect(values[:3] == [-1.22, 0.0, 1.22], f"{call} became [[{values[0]}, {values[1]}], [{values[2]}, {values[3]}]]; the "
           "frames 1, 3 and 5 should become -1.22, 0 and 1.22: which numbers belong to the mean?")  # fmt: skip
    expect(values[3] == 0, f"{call} has {values[3]} in the padding of the result; it should be 0")


def expect_right(answer: Any, case: str, x: torch.Tensor, lengths: torch.Tensor) -> None:
    model, library = made(answer, x.shape[1], x.dtype)
    tolerance = EXACT if x.dtype is torch.float64 else 1e-5
    mask = mask_of(x, lengths)[:, None].expand_as(x)
    kept = x.clone()
    for mode in ("training", "training once more", "eval mode", "training after eval mode"):
        call = f"a batch {case}, {tuple(x.shape)} with lengths {lengths.tolist()}, in {mode},"
        model.train(mode != "eval mode")
        library.train(mode != "eval mode")
        leaf, oracle = x.clone(memory_format=torch.preserve_format).requires_grad_(), x.clone().requires_grad_()
        y, right = model(leaf, lengths), frames_alone(library, oracle, lengths)
        expect_tensor(y, call, tuple(x.shape), x.dtype)
        expect(same(leaf, kept), f"{call} was changed; x belongs to the caller")
        off = deviation(y[mask], right[mask])
        expect(
            off < tolerance,
            f"{call} is off by {off:.2g} in its frames; they should be what the norm makes of the frames alone",
        )
        padding = y[~mask]
        expect((padding == 0).all(), f"{call} has {first_other(padding)} in the padding of the result; it should be 0")
        expect_averages(model.norm, library, call, tolerance)  # type: ignore[arg-type]
        expect_gradients(model, library, call, (leaf, y), (oracle, right), tolerance)


def same(x: torch.Tensor, kept: torch.Tensor) -> bool:
    return bool(torch.isclose(x.detach(), kept, rtol=0, atol=0, equal_nan=True).all())


def first_other(padding: torch.Tensor) -> str:
    others = padding[padding != 0]
    return f"{others[0].item():.3g}" if len(others) else "0"


def expect_averages(norm: nn.BatchNorm1d, library: nn.BatchNorm1d, call: str, tolerance: float) -> None:
    for (name, found), wanted in zip(norm.named_buffers(), library.buffers(), strict=True):
        off = deviation(found.detach().double(), wanted.double())
        where = f"{call} left {name} off by {off:.2g}"
        explained = "; eval mode moves no average" if "eval" in call.rpartition(", in ")[2] else ""
        expect(off < tolerance, f"{where}; it should be as after the frames alone{explained}")
        expect(not found.requires_grad, f"{call} left a graph in {name}; averages are no part of the loss")


def expect_gradients(
    model: nn.Module,
    library: nn.BatchNorm1d,
    call: str,
    own: tuple[torch.Tensor, torch.Tensor],
    right: tuple[torch.Tensor, torch.Tensor],
    tolerance: float,
) -> None:
    """Of a weighted sum of squares, in which every frame has a weight of its own."""
    found: list[list[torch.Tensor | None]] = []
    for (x, y), norm in ((own, model.norm), (right, library)):
        weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
        expect(y.requires_grad, f"{call} has lost the graph")
        parameters = [x, norm.weight, norm.bias]  # type: ignore[union-attr]
        found.append(list(torch.autograd.grad((weights * y.square()).sum(), parameters, allow_unused=True)))  # type: ignore[arg-type]
    for name, gradient, wanted in zip(("x", "norm.weight", "norm.bias"), *found, strict=True):
        assert wanted is not None
        expect(gradient is not None, f"{call}: backward() brings no gradient to {name}")
        assert gradient is not None
        off = deviation(gradient, wanted)
        expect(off < 10 * tolerance, f"{call} is right, and the gradient of {name} is off by up to {off:.2g}; mean and variance "
               "depend on the frames, and on nothing in the padding")  # fmt: skip


def written(forward: Forward) -> dict[str, object]:
    class MaskedBatchNorm(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(channels)

        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return forward(self.norm, x, lengths)

    return {"MaskedBatchNorm": MaskedBatchNorm}


def zeros_first(norm: nn.BatchNorm1d, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = norm(x * mask_of(x, lengths)[:, None])
    return y


def zeros_afterwards(norm: nn.BatchNorm1d, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return zeros_first(norm, x, lengths).masked_fill(~mask_of(x, lengths)[:, None], 0)


def leaves_padding_normalised(norm: nn.BatchNorm1d, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Right statistics, applied to all of x."""
    y = frames_alone(norm, x, lengths)
    return torch.where(mask_of(x, lengths)[:, None], y, norm.bias[:, None].expand_as(y))


def by_sums(norm: nn.BatchNorm1d, x: torch.Tensor, lengths: torch.Tensor, slip: str = "") -> torch.Tensor:
    """The formula written out, with sums under a mask; right unless there is a slip."""
    mask = mask_of(x, lengths)[:, None]
    clean = x * mask if slip == "nan" else x.masked_fill(~mask, 0)
    count = lengths.sum()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    if norm.training:
        mean = clean.sum((0, 2)) / count
        apart = (clean - mean[:, None]) ** 2
        var = (apart if slip == "apart" else apart * mask).sum((0, 2)) / count
        if slip == "detach":
            mean, var = mean.detach(), var.detach()
        with torch.no_grad():
            wide = var if slip == "biased" else var * count / (count - 1).clamp(min=1)
            norm.running_mean.lerp_(mean, 0.1)
            norm.running_var.lerp_(wide, 0.1)
            norm.num_batches_tracked += 1
    else:
        mean, var = norm.running_mean, norm.running_var
    y = (clean - mean[:, None]) / (var[:, None] + norm.eps).sqrt() * norm.weight[:, None] + norm.bias[:, None]
    return y * mask


def with_slip(slip: str) -> dict[str, object]:
    return written(lambda norm, x, lengths: by_sums(norm, x, lengths, slip))


def erases_in_place(norm: nn.BatchNorm1d, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        x.masked_fill_(~mask_of(x, lengths)[:, None], 0)
    return frames_alone(norm, x, lengths)


def averages_in_eval(norm: nn.BatchNorm1d, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    norm.train()
    return frames_alone(norm, x, lengths)


WRONG = {
    "is as it was": (written(zeros_first), "which numbers belong to the mean?"),
    "sets the padding to 0 and counts it": (written(zeros_afterwards), "which numbers belong to the mean?"),
    "leaves the bias in the padding": (written(leaves_padding_normalised), "in the padding of the result"),
    "multiplies nan by 0": (with_slip("nan"), "with nan in the padding"),
    "counts the padding's distance from the mean": (with_slip("apart"), "which numbers belong to the mean?"),
    "keeps the biased variance": (with_slip("biased"), "left running_var off by"),
    "takes the statistics for constants": (with_slip("detach"), "the gradient of x is off"),
    "erases the padding of x itself": (written(erases_in_place), "was changed; x belongs to the caller"),
    "trains in eval mode": (written(averages_in_eval), "in eval mode, is off by"),
}
