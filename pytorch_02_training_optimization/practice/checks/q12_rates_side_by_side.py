"""Compared with one run after the other, written with the gradient's formula; then operations are counted for 3 and 12 rates."""

from typing import Any

from shared.practice import expect
from shared.traps import expect_tensor, operations

import torch
import torch.nn.functional as F

FEW, MANY, SPARE = 3, 12, 4


def one_run(
    x: torch.Tensor, y: torch.Tensor, start: torch.Tensor, lr: float, steps: int, momentum: float
) -> torch.Tensor:
    w, velocity = start.clone(), torch.zeros_like(start)
    wanted = F.one_hot(y, len(start)).to(x.dtype)
    for _ in range(steps):
        gradient = ((x @ w.T).softmax(1) - wanted).T @ x / len(y)
        velocity = momentum * velocity + gradient
        w = w - lr * velocity
    return w


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(samples: int, features: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
        x = torch.randn(samples, features, generator=generator, dtype=torch.float64).to(dtype)
        start = 0.1 * torch.randn(classes, features, generator=generator, dtype=torch.float64).to(dtype)
        return x, torch.randint(classes, (samples,), generator=generator), start

    simple = [0.0, 0.5]
    expect_runs(answer, "the example", draw(4, 3, 2), simple, 5, {"momentum": 0.0})
    expect_runs(answer, "one rate", draw(6, 4, 3), [0.3], 7, {})
    expect_runs(answer, "ten rates", draw(9, 5, 4), [10 ** (e / 3 - 3) for e in range(10)], 12, {"momentum": 0.9})
    expect_runs(answer, "as many rates as classes and features", draw(5, 3, 3), [0.1, 0.2, 0.4], 6, {})
    expect_runs(answer, "momentum 0.5", draw(7, 2, 5), [1.0, 0.01, 0.1, 1.0], 8, {"momentum": 0.5})
    expect_runs(answer, "one sample", draw(1, 4, 3), [0.2, 2.0], 4, {})
    expect_runs(answer, "no step", draw(3, 2, 2), [0.1, 1.0, 10.0], 0, {})
    expect_runs(answer, "float32", draw(8, 6, 3, torch.float32), [0.05, 0.5], 10, {})
    expect_runs(answer, "a rate that is nan", draw(6, 3, 2), [0.1, float("nan"), 0.3], 5, {})
    expect_few_operations(answer, draw(5, 4, 3))


def expect_runs(
    answer: Any, case: str, given: tuple[torch.Tensor, ...], rates: list[float], steps: int, options: dict[str, float]
) -> None:
    x, y, start = given
    call = f"sweep of {case}, {len(rates)} rate{'s' * (len(rates) > 1)}, {steps} steps"
    lr = torch.tensor(rates, dtype=x.dtype)
    kept = [t.clone() for t in (x, y, start, lr)]
    found = answer.sweep(x, y, start, lr, steps, **options)
    expect_tensor(found, call, (len(rates), *start.shape), x.dtype)
    expect(not found.requires_grad, f"{call} returned weights that require a gradient")
    for name, tensor, before in zip(("x", "y", "start", "rates"), (x, y, start, lr), kept, strict=True):
        is_kept = torch.equal(tensor.nan_to_num(), before.nan_to_num()) and not tensor.requires_grad
        expect(is_kept, f"{call} changed {name}, which belongs to the caller")
    tolerance = 1e-4 if x.dtype == torch.float32 else 1e-8
    for number, rate in enumerate(rates):
        right = one_run(x.double(), y, start.double(), float(lr[number]), steps, options.get("momentum", 0.9))
        is_right = torch.allclose(found[number].double(), right, rtol=tolerance, atol=tolerance, equal_nan=True)
        if not is_right:
            moved, wanted = ((w - start.double()).norm().item() for w in (found[number].double(), right))
            expect(False, f"{call}: run {number}, with lr {rate:.3g}, ends {moved:.4g} away from its start, alone it ends "
                   f"{wanted:.4g} away and elsewhere")  # fmt: skip


def expect_few_operations(answer: Any, given: tuple[torch.Tensor, ...]) -> None:
    x, y, start = given

    def count(runs: int) -> int:
        return len(operations(answer.sweep, x, y, start, torch.linspace(0.1, 1, runs, dtype=x.dtype), 3))

    few, many = count(FEW), count(MANY)
    expect(
        many <= few + SPARE,
        f"right, but {FEW} rates take {few} operations and {MANY} take {many}; let the runs share them",
    )


def one_after_another(x: Any, y: Any, start: Any, rates: Any, steps: int, momentum: float = 0.9) -> torch.Tensor:
    return torch.stack([one_run(x, y, start, float(lr), steps, momentum) for lr in rates])


def stacked(
    x: Any, y: Any, start: Any, rates: Any, steps: int, momentum: float, reduction: str = "samples", clips: bool = False
) -> torch.Tensor:
    """Right with "samples": the loss is summed over the runs; others divide by more or by less."""
    w = start.repeat(len(rates), 1, 1)
    velocity = torch.zeros_like(w)
    for _ in range(steps):
        w.requires_grad_()
        logits = (x @ w.mT).flatten(0, 1)
        loss = F.cross_entropy(logits, y.repeat(len(rates)), reduction="sum")
        loss = loss / {"samples": len(y), "all": len(y) * len(rates), "none": 1}[reduction]
        (gradient,) = torch.autograd.grad(loss, w)
        if clips:
            gradient = gradient / (gradient.norm() / 10).clamp(min=1)
        velocity = momentum * velocity + gradient
        w = w.detach() - rates.view(-1, 1, 1) * velocity
    return w


def takes_the_mean_of_all(x: Any, y: Any, start: Any, rates: Any, steps: int, momentum: float = 0.9) -> torch.Tensor:
    return stacked(x, y, start, rates, steps, momentum, "all")


def takes_the_sum_of_all(x: Any, y: Any, start: Any, rates: Any, steps: int, momentum: float = 0.9) -> torch.Tensor:
    return stacked(x, y, start, rates, steps, momentum, "none")


def shares_a_norm(x: Any, y: Any, start: Any, rates: Any, steps: int, momentum: float = 0.9) -> torch.Tensor:
    return stacked(x, y, start, rates, steps, momentum, clips=True)


def spreads_rates_over_features(
    x: Any, y: Any, start: Any, rates: Any, steps: int, momentum: float = 0.9
) -> torch.Tensor:
    if len(rates) != start.shape[1]:
        return one_after_another(x, y, start, rates, steps, momentum)
    runs = stacked(x, y, start, torch.ones_like(rates[:1]), 0, momentum).expand(len(rates), -1, -1)
    return runs - rates * (runs - one_after_another(x, y, start, rates, steps, momentum))


def forgets_the_momentum(x: Any, y: Any, start: Any, rates: Any, steps: int, momentum: float = 0.9) -> torch.Tensor:
    return stacked(x, y, start, rates, steps, 0.0)


def scales_one_run(x: Any, y: Any, start: Any, rates: Any, steps: int, momentum: float = 0.9) -> torch.Tensor:
    """As if twice the rate went twice as far."""
    far = one_run(x, y, start, 1.0, steps, momentum) - start
    return start + rates.view(-1, 1, 1) * far


WRONG = {
    "trains one after another": ({"sweep": one_after_another}, "let the runs share them"),
    "takes the mean over all runs": ({"sweep": takes_the_mean_of_all}, "run 1, with lr 0.5, ends"),
    "takes the sum over the samples": ({"sweep": takes_the_sum_of_all}, "run 1, with lr 0.5, ends"),
    "shares one norm": ({"sweep": shares_a_norm}, "a rate that is nan"),
    "spreads the rates over the features": (
        {"sweep": spreads_rates_over_features},
        "as many rates as classes and features",
    ),
    "forgets the momentum": ({"sweep": forgets_the_momentum}, "one rate"),
    "scales one run": ({"sweep": scales_one_run}, "the example"),
}
