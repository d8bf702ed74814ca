"""The oracle goes picture by picture through the measured pixels alone, in float64; then values and gradients."""

from collections.abc import Callable
from typing import Any

from shared.practice import expect
from shared.traps import expect_tensor
from shared.units import significant

import torch

FLOOR = 1e-6
Batch = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def oracle(predicted: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """float64; nothing that was not measured is looked at."""
    spreads = []
    for ours, theirs in zip(predicted.double(), measured.double(), strict=True):
        d = (ours[theirs > 0] / theirs[theirs > 0]).log()
        if len(d):
            spreads.append((d.var(correction=0) + FLOOR).sqrt())
    return torch.stack(spreads).mean() if spreads else predicted.double().sum() * 0


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(b: int, h: int, w: int, share: float = 0.6) -> Batch:
        """Pictures with `share` of their pixels measured."""
        measured = torch.rand(b, h, w, generator=generator) + 0.1
        predicted = measured * torch.exp(0.5 * torch.randn(b, h, w, generator=generator))
        return predicted, torch.where(torch.rand(b, h, w, generator=generator) < share, measured, 0)

    cases: list[tuple[str, Batch]] = [
        ("the example", (torch.tensor([[[2.0, 4.0, 0.0]]]), torch.tensor([[[1.0, 1.0, 0.0]]]))),
        ("three pictures, all pixels measured", draw(3, 4, 5, 1.0)),
        ("three pictures, some pixels measured", draw(3, 4, 5)),
        ("transposed pictures", (lambda pair: (pair[0].mT, pair[1].mT))(draw(2, 3, 6))),
    ]
    sky = draw(3, 4, 5)
    cases.append(("pixels of sky, predicted as 0, where nothing was measured", (sky[0] * (sky[1] > 0), sky[1])))
    empty = draw(4, 3, 5)
    empty[1][2] = 0
    cases.append(("one picture of four without a measured pixel", empty))
    cases.append(("no measured pixel at all", draw(2, 3, 4, 0.0)))
    cases.append(("no measured pixel and sky everywhere", (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))))
    one = torch.zeros(2, 3, 3)
    one[:, 1, 1] = 0.7
    cases.append(("one measured pixel in each picture", (3 * one + 0.2, one)))
    for factor, name in ((1e5, "100,000"), (1e-5, "1 / 100,000")):
        predicted, measured = draw(6, 8, 8)
        cases.append((f"predictions that are off by a factor near {name}", (factor * predicted, measured)))
        exact = draw(6, 8, 8, 1.0)[1]
        cases.append((f"predictions that are right but for the factor {name}", (factor * exact, exact)))
    for case, batch in cases:
        expect_loss(answer, case, *batch)


def with_gradient(
    loss: Loss, predicted: torch.Tensor, measured: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    leaf = predicted.detach().clone().requires_grad_()
    value = loss(leaf, measured)
    if isinstance(value, torch.Tensor) and value.requires_grad and value.ndim == 0:
        value.backward()
    return value, leaf.grad


def expect_loss(answer: Any, case: str, predicted: torch.Tensor, measured: torch.Tensor) -> None:
    call = f"nearness_loss of {case}"
    kept = predicted.clone(), measured.clone()
    found, gradient = with_gradient(answer.nearness_loss, predicted, measured)
    expect_tensor(found, call, (), torch.float32)
    unchanged = torch.equal(predicted, kept[0]) and torch.equal(measured, kept[1])
    expect(unchanged, f"{call} changed what it was given")
    right, oracle_gradient = with_gradient(oracle, predicted, measured)
    value, wanted = found.item(), right.item()
    expect(value == value, f"{call} is NaN and should be {significant(wanted)}")
    expect(
        abs(value - wanted) <= 1e-4 + 1e-3 * wanted,
        f"{call} is {significant(value)} and should be {significant(wanted)}",
    )
    expect(gradient is not None, f"{call} is right, and backward() brings no gradient to predicted; zeros are one, too")
    assert gradient is not None
    assert oracle_gradient is not None
    bad = int((~gradient.isfinite()).sum())
    expect(bad == 0, f"{call} is right, and {bad} of {gradient.numel()} numbers of its gradient are not finite")
    strangers = int((gradient[measured == 0] != 0).sum())
    expect(strangers == 0, f"{call}: {strangers} pixels that were not measured have a gradient")
    # As slopes by the logarithm of the prediction: those are of the size of the loss, whatever the factor.
    off = ((gradient - oracle_gradient) * predicted).abs().max().item()
    expect(
        off < 1e-3, f"{call} is right, and its gradient is not: by log predicted it is off by up to {significant(off)}"
    )


def written(*, safe_log: bool = True, skips: bool = True, centres: bool = True, clamps: bool = False,
            divides_by_all: bool = False, last: Loss | None = None) -> dict[str, object]:  # fmt: skip
    """The way of the solution with some of the mistakes."""

    def nearness_loss(predicted: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
        is_seen = measured > 0
        if safe_log:
            d = torch.where(is_seen, predicted, 1).log() - torch.where(is_seen, measured, 1).log()
        else:
            d = torch.where(is_seen, predicted.log() - measured.log(), 0)
        count = is_seen.sum((1, 2), keepdim=True)
        n = count.clamp(min=1) if skips else count
        mean = d.sum((1, 2), keepdim=True) / n
        if centres:
            variance = torch.where(is_seen, d - mean, 0).square().sum((1, 2), keepdim=True) / n
        else:
            variance = d.square().sum((1, 2), keepdim=True) / n - mean.square()
        each = ((variance.clamp(min=0) if clamps else variance) + FLOOR).sqrt()
        if not skips:
            return each.mean()
        pictures = torch.tensor(len(count)) if divides_by_all else (count > 0).sum().clamp(min=1)
        return torch.where(count > 0, each, 0).sum() / pictures

    return {"nearness_loss": nearness_loss}


def hides_it(predicted: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    function: Any = written(safe_log=False)["nearness_loss"]
    return torch.nan_to_num(function(predicted, measured))


def multiplies_by_the_mask(predicted: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    is_seen = measured > 0
    d = (predicted.log() - measured.log()) * is_seen
    return (d.square().sum((1, 2)) / is_seen.sum((1, 2)) + FLOOR).sqrt().mean()


def lifts_all(predicted: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """A floor under both logarithms keeps them finite, and moves every number."""
    function: Any = written()["nearness_loss"]
    result: torch.Tensor = function(predicted + 0.01, torch.where(measured > 0, measured + 0.01, 0))
    return result


WRONG = {
    "leaves log in front of where": (written(safe_log=False), "numbers of its gradient are not finite"),
    "hides it at the end": ({"nearness_loss": hides_it}, "numbers of its gradient are not finite"),
    "divides by no pixel": (written(skips=False), "one picture of four without a measured pixel is NaN"),
    "counts empty pictures as 0": (written(divides_by_all=True), "one picture of four without a measured pixel is"),
    "subtracts squares": (written(centres=False), "right but for the factor 100,000"),
    "clamps the rounding away": (written(centres=False, clamps=True), "right but for the factor 100,000"),
    "multiplies by the mask": ({"nearness_loss": multiplies_by_the_mask}, "is NaN and should be"),
    "lifts all numbers a little": ({"nearness_loss": lifts_all}, "and should be"),
}
