"""Compared with the four graphs in value and gradient, then compiled by a backend that counts."""

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from shared.practice import expect
from shared.traps import expect_close, expect_tensor, shown

import torch

CALL = "bounded_loss(prediction, target, used, limit)"


def right(prediction: torch.Tensor, target: torch.Tensor, used: torch.Tensor, limit: float) -> tuple[Any, Any]:
    error = (prediction - target)[used]
    factor = min(1.0, limit / error.detach().abs().max().item())
    return (error * factor).square().mean(), torch.tensor(factor, dtype=prediction.dtype)


def make_batch(
    rows: int, columns: int, count: int, generator: torch.Generator, dtype: torch.dtype
) -> list[torch.Tensor]:
    """A prediction, a target and `count` used rows; the error that is largest by far is negative."""
    prediction, target = torch.randn(2, columns, rows, generator=generator, dtype=dtype).transpose(1, 2).unbind()
    used = torch.zeros(rows, dtype=torch.bool)
    used[torch.randperm(rows, generator=generator)[:count]] = True
    prediction[int(used.nonzero()[-1]), 0] -= 6
    return [prediction, target, used]


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for dtype in (torch.float32, torch.float64):
        for rows, columns, count in ((5, 3, 2), (7, 1, 7), (2, 4, 1)):
            batch = make_batch(rows, columns, count, generator, dtype)
            for limit in (0.5, 100.0):
                expect_numbers(answer, batch, limit, f"{CALL} with {count} of {rows} rows used and a limit of {limit}")
    batch = make_batch(6, 3, 4, generator, torch.float32)
    for rest in (1e6, float("nan"), float("inf")):
        left_over = [batch[0].clone(), *batch[1:]]
        left_over[0][~batch[2]] = rest
        expect_numbers(answer, left_over, 0.5, f"{CALL}, the unused rows full of {rest}")
    said = io.StringIO()
    with redirect_stdout(said):
        answer.bounded_loss(*batch, 0.5)
    expect(not said.getvalue(), f"{CALL} printed {shown(said.getvalue())}; the caller prints")
    expect_one_graph(answer.bounded_loss, [batch, make_batch(6, 3, 1, generator, torch.float32)])


def expect_numbers(answer: Any, batch: list[torch.Tensor], limit: float, call: str) -> None:
    prediction, target, used = batch
    copies = [prediction.clone().requires_grad_() for _ in range(2)]
    with redirect_stdout(io.StringIO()):
        result = answer.bounded_loss(copies[0], target, used, limit)
    is_pair = isinstance(result, tuple) and len(result) == 2
    expect(is_pair, f"{call} returned {shown(result)}; return the loss and the factor")
    wanted = right(copies[1], target, used, limit)
    for value, oracle, name in zip(result, wanted, ("loss", "factor"), strict=True):
        expect_tensor(value, f"the {name} of {call}", (), prediction.dtype)
        expect_close(value, oracle, f"the {name} of {call}", 1e-5)
    expect(result[0].requires_grad, f"{call}: no gradient comes back from the loss")
    (found,) = torch.autograd.grad(result[0], copies[0])
    (gradient,) = torch.autograd.grad(wanted[0], copies[1])
    expect(
        torch.allclose(found, gradient, rtol=1e-4, atol=1e-6),
        f"{call}: the loss is right and its gradient is not; to the gradient the factor is a constant, and unused rows "
        "get 0",
    )


@contextmanager
def quiet_compiler() -> Iterator[None]:
    """Nothing compiled before or afterwards, and no log about breaks: that is what the check says itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.compiler.reset()
        logging.disable(before)


def expect_one_graph(function: Callable[..., Any], batches: list[list[torch.Tensor]]) -> None:
    graphs = 0

    def count(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    with quiet_compiler(), redirect_stdout(io.StringIO()):
        compiled = torch.compile(function, backend=count)
        compiled(*batches[0], 0.5)
        expect(graphs > 0, f"compiled, {CALL} is no graph at all; nothing of it was given to the compiler")
        expect(graphs == 1, f"compiled, one call of {CALL} is {graphs} graphs; something still waits for a number")
        for batch, limit in ((batches[1], 0.5), (batches[0], 0.5)):
            compiled(*batch, limit)
        compiled(batches[0][0] * 0, batches[0][1] * 0, batches[0][2], 0.5)
        expect(graphs == 1, f"the first call of {CALL} is one graph, and other numbers of the same shape make {graphs}")


def answers_with(loss: Callable[..., Any]) -> dict[str, object]:
    return {"bounded_loss": loss}


def picks_rows(prediction: torch.Tensor, target: torch.Tensor, used: torch.Tensor, limit: float) -> Any:
    error = (prediction - target)[used]
    factor = limit / error.detach().abs().max().clamp(min=limit)
    return (error * factor).square().mean(), factor


def lets_python_decide(prediction: torch.Tensor, target: torch.Tensor, used: torch.Tensor, limit: float) -> Any:
    error = torch.where(used[:, None], prediction - target, 0)
    largest = error.detach().abs().max()
    factor = limit / largest if largest > limit else torch.ones_like(largest)
    return (error * factor).square().sum() / (used.sum() * error.shape[1]), factor


def trains_the_factor(prediction: torch.Tensor, target: torch.Tensor, used: torch.Tensor, limit: float) -> Any:
    error = torch.where(used[:, None], prediction - target, 0)
    factor = limit / error.abs().max().clamp(min=limit)
    return (error * factor).square().sum() / (used.sum() * error.shape[1]), factor.detach()


def multiplies_by_the_mask(prediction: torch.Tensor, target: torch.Tensor, used: torch.Tensor, limit: float) -> Any:
    error = (prediction - target) * used[:, None]
    factor = limit / error.detach().abs().max().clamp(min=limit)
    return (error * factor).square().sum() / (used.sum() * error.shape[1]), factor


def averages_all_rows(prediction: torch.Tensor, target: torch.Tensor, used: torch.Tensor, limit: float) -> Any:
    error = torch.where(used[:, None], prediction - target, 0)
    factor = limit / error.detach().abs().max().clamp(min=limit)
    return (error * factor).square().mean(), factor


picks_rows_in_python = torch.compiler.disable(picks_rows)


def keeps_it_from_the_compiler(prediction: torch.Tensor, target: torch.Tensor, used: torch.Tensor, limit: float) -> Any:
    return picks_rows_in_python(prediction, target, used, limit)


def still_prints(prediction: torch.Tensor, target: torch.Tensor, used: torch.Tensor, limit: float) -> Any:
    print("shrunk")
    return picks_rows(prediction, target, used, limit)


def returns_a_number(prediction: torch.Tensor, target: torch.Tensor, used: torch.Tensor, limit: float) -> Any:
    loss, factor = picks_rows(prediction, target, used, limit)
    return loss, factor.item()


WRONG = {
    "picks rows by the mask": (answers_with(picks_rows), "is 2 graphs; something still waits"),
    "lets Python decide": (answers_with(lets_python_decide), "is 2 graphs; something still waits"),
    "is kept from the compiler": (answers_with(keeps_it_from_the_compiler), "is no graph at all"),
    "trains the factor": (answers_with(trains_the_factor), "its gradient is not"),
    "multiplies by the mask": (answers_with(multiplies_by_the_mask), "full of nan"),
    "averages all rows": (answers_with(averages_all_rows), "the loss of bounded_loss"),
    "still prints": (answers_with(still_prints), "the caller prints"),
    "returns a number": (answers_with(returns_a_number), "the factor of bounded_loss"),
}
