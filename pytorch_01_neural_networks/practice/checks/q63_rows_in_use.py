"""The oracle is the dense step in float64; then every new tensor's size is looked at, and lines and operations are counted."""

from collections.abc import Callable
from typing import Any

from shared.dispatch import Watcher, name_of, tensors_in
from shared.practice import expect
from shared.traps import expect_close, operations, python_steps

import torch

EPSILON = 1e-10
Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], None]


class NewNumbers(Watcher):
    """The largest tensor that is made, and by what; writing into what was there before makes none."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in known}
        self.largest, self.made_by = 0, ""

    def saw(self, operation: Any, args: Any, kwargs: Any, result: Any) -> None:
        for x in tensors_in(result):
            if x.layout is not torch.strided or x.untyped_storage().data_ptr() in self.known:
                continue  # a sparse tensor is counted by the rows and indices that it was made of
            size = x.untyped_storage().nbytes() // x.element_size()
            if size > self.largest:
                self.largest, self.made_by = size, name_of(operation)


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def case(vocabulary: int, shape: tuple[int, ...], width: int, used: int) -> list[torch.Tensor]:
        table, squares = (torch.randn(vocabulary, width, generator=generator, dtype=torch.float64) for _ in range(2))
        tokens = torch.randint(used, shape, generator=generator) * (vocabulary // used)
        upstream = torch.randn(*shape, width, generator=generator, dtype=torch.float64)
        return [table, squares.square(), tokens, upstream]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    zeros, ones = torch.zeros(7, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    expect_right(answer, "the example", [zeros, zeros, torch.tensor([3, 5, 3]), ones], 0.1)
    once = [*case(9, (5,), 3, 9)[:2], torch.tensor([8, 0, 4]), draw(3, 3)]
    expect_right(answer, "each row at most once", once)
    expect_right(answer, "rows used many times", case(9, (40,), 3, 4))
    expect_right(answer, "all rows in use", case(5, (60,), 2, 5))
    expect_right(answer, "a batch of sentences", case(30, (4, 6), 3, 10))
    expect_right(answer, "one token", case(6, (1,), 4, 6))
    expect_right(answer, "no tokens", case(6, (0,), 4, 6))
    cancels = case(6, (2,), 3, 6)
    cancels[2], cancels[1] = torch.tensor([4, 4]), torch.zeros(6, 3, dtype=torch.float64)
    cancels[3][1] = -cancels[3][0]
    expect_right(answer, "two uses that cancel each other, and squares 0", cancels)
    tiny = [*cancels[:3], torch.full((2, 3), 1e-9, dtype=torch.float64)]
    expect_right(answer, "gradients of 1e-9 and squares 0", tiny)
    spread = case(9, (3, 4), 3, 9)
    spread[3] = spread[3].transpose(0, 1).contiguous().transpose(0, 1)
    expect_right(answer, "a transposed upstream", spread)
    expanded = [*case(9, (2, 4), 3, 5)[:3], draw(3).expand(2, 4, 3)]
    expect_right(answer, "an upstream that is one expanded row", expanded)
    expect_right(answer, "a table that is a Parameter", case(9, (12,), 3, 6), parameter=True)
    expect_two_steps(answer, case(9, (8,), 3, 5))
    expect_right(
        answer, "float32", [x.float() if x.is_floating_point() else x for x in case(9, (20,), 3, 5)], tolerance=1e-4
    )
    expect_lean(answer)


def dense(table: torch.Tensor, squares: torch.Tensor, tokens: torch.Tensor, upstream: torch.Tensor, lr: float) -> None:
    gradient = torch.zeros_like(table).index_add_(0, tokens.flatten(), upstream.reshape(-1, upstream.shape[-1]))
    squares += gradient**2
    table -= lr * gradient / (squares.sqrt() + EPSILON)


def expect_right(
    answer: Any, case: str, given: list[torch.Tensor], lr: float = 0.3, tolerance: float = 1e-9, parameter: bool = False
) -> None:
    call = f"adagrad_step with {case}, tokens {tuple(given[2].shape)}"
    table = torch.nn.Parameter(given[0].clone()) if parameter else given[0].clone()
    squares, tokens, upstream = given[1].clone(), given[2], given[3]
    kept = [x.clone() for x in given]
    answer.adagrad_step(table, squares, tokens, upstream, lr)
    for name, x, before in (("tokens", tokens, kept[2]), ("upstream", upstream, kept[3])):
        expect(torch.equal(x, before), f"{call}: {name} changed; it belongs to the caller")
    expect(not squares.requires_grad, f"{call}: squares now require gradients; keep torch.no_grad()")
    right_table, right_squares = kept[0].double(), kept[1].double()
    dense(right_table, right_squares, tokens, kept[3].double(), lr)
    expect_rows(call, "squares", squares, right_squares, kept[1], tokens, tolerance)
    expect_rows(call, "table", table.detach(), right_table, kept[0], tokens, tolerance)


def expect_rows(
    call: str,
    name: str,
    found: torch.Tensor,
    right: torch.Tensor,
    before: torch.Tensor,
    tokens: torch.Tensor,
    tolerance: float,
) -> None:
    for row in range(len(right)):
        uses = int((tokens == row).sum())
        if uses == 0:
            expect(torch.equal(found[row], before[row]), f"{call}: {name}[{row}] changed, and nobody looked it up")
        where = f"{call}: row {row} was used {uses} time{'s' * (uses != 1)}; {name}[{row}]"
        expect_close(found[row], right[row], where, tolerance)


def expect_two_steps(answer: Any, given: list[torch.Tensor]) -> None:
    found, right = [x.clone() for x in given], [x.clone() for x in given]
    for _ in range(2):
        answer.adagrad_step(*found, 0.3)
        dense(right[0], right[1], right[2], right[3], 0.3)
    expect_close(found[0], right[0], "after two steps with the same batch, table", 1e-9)


def expect_lean(answer: Any) -> None:
    width, counts = 6, []
    for vocabulary, count in ((5000, 50), (5000, 400)):
        table, squares = torch.ones(vocabulary, width), torch.ones(vocabulary, width)
        tokens, upstream = (torch.arange(count) * 7) % 311, torch.ones(count, width)
        given = table, squares, tokens, upstream
        with NewNumbers(list(given)) as new:
            answer.adagrad_step(*given, 0.1)
        made_by = new.made_by.split(".")[0]
        expect(
            new.largest <= count * width,
            f"right, but with {vocabulary:,} rows of {width} numbers and {count} tokens it makes a tensor of {new.largest:,} "
            f"numbers ({made_by}), where {count * width:,} are allowed: the work of a step should not grow with the rows "
            "that nobody used",
        )
        counts.append(
            (python_steps(answer.adagrad_step, *given, 0.1), len(operations(answer.adagrad_step, *given, 0.1)))
        )
    (few_lines, few), (many_lines, many) = counts
    expect(
        many_lines <= few_lines + 20 and many <= few + 20,
        f"right, but 50 tokens take {few} operations in {few_lines} lines of Python, and 400 take {many} in {many_lines}; a loop "
        "goes over tokens",
    )


def written(step: Step) -> dict[str, object]:
    @torch.no_grad()
    def adagrad_step(
        table: torch.Tensor, squares: torch.Tensor, tokens: torch.Tensor, upstream: torch.Tensor, lr: float
    ) -> None:
        step(table, squares, tokens.flatten(), upstream.reshape(-1, upstream.shape[-1]), lr)

    return {"adagrad_step": adagrad_step}


def squares_each_use(table: Any, squares: Any, tokens: Any, upstream: Any, lr: float) -> None:
    squares.index_add_(0, tokens, upstream**2)
    table.index_add_(0, tokens, upstream / (squares[tokens].sqrt() + EPSILON), alpha=-lr)


def assigns_with_repetitions(table: Any, squares: Any, tokens: Any, upstream: Any, lr: float) -> None:
    squares[tokens] += upstream**2
    table[tokens] -= lr * upstream / (squares[tokens].sqrt() + EPSILON)


def steps_before_it_squares(table: Any, squares: Any, tokens: Any, upstream: Any, lr: float) -> None:
    rows, place = tokens.unique(return_inverse=True)
    gradient = upstream.new_zeros(len(rows), upstream.shape[1]).index_add_(0, place, upstream)
    table[rows] -= lr * gradient / (squares[rows].sqrt() + EPSILON)
    squares[rows] += gradient**2


def works_on_a_copy(table: Any, squares: Any, tokens: Any, upstream: Any, lr: float) -> None:
    rows, place = tokens.unique(return_inverse=True)
    gradient = upstream.new_zeros(len(rows), upstream.shape[1]).index_add_(0, place, upstream)
    part = squares[rows]
    part += gradient**2
    table[rows] -= lr * gradient / (part.sqrt() + EPSILON)


def looks_for_the_rows_in_a_mask(table: Any, squares: Any, tokens: Any, upstream: Any, lr: float) -> None:
    rows = (torch.bincount(tokens, minlength=len(table)) > 0).nonzero()[:, 0]
    place = torch.searchsorted(rows, tokens)
    gradient = upstream.new_zeros(len(rows), upstream.shape[1]).index_add_(0, place, upstream)
    squares[rows] += gradient**2
    table[rows] -= lr * gradient / (squares[rows].sqrt() + EPSILON)


def loops_over_rows(table: Any, squares: Any, tokens: Any, upstream: Any, lr: float) -> None:
    for row in tokens.unique().tolist():
        gradient = upstream[tokens == row].sum(dim=0)
        squares[row] += gradient**2
        table[row] -= lr * gradient / (squares[row].sqrt() + EPSILON)


WRONG = {
    "is as it was": (written(dense), "should not grow with the rows that nobody used"),
    "squares each use": (written(squares_each_use), "row 3 was used 2 times; squares[3][0] is 2 and should be 4"),
    "assigns with repetitions": (written(assigns_with_repetitions), "squares[3][0] is 1 and should be 4"),
    "steps before it squares": (written(steps_before_it_squares), "row 3 was used 2 times; table[3][0]"),
    "squares a copy": (written(works_on_a_copy), "squares[3][0] is 0 and should be 4"),
    "asks every row whether it was used": (
        written(looks_for_the_rows_in_a_mask),
        "a tensor of 5,000 numbers (bincount)",
    ),
    "loops over the rows": (written(loops_over_rows), "a loop goes over tokens"),
}
