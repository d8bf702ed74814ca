"""The oracle is F.embedding_bag, values and gradients; loops are found by counting lines and operations."""

from typing import Any

from shared.agreement import deviation
from shared.practice import expect
from shared.traps import expect_tensor, operations, python_steps

import torch
import torch.nn.functional as F

EXACT = 1e-9


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def pick(vocabulary: int, count: int) -> torch.Tensor:
        return torch.randint(vocabulary, (count,), generator=generator)

    example = torch.tensor([[0.0, 0.0], [1.0, 10.0], [3.0, 30.0]], dtype=torch.float64)
    expect_right(answer, "the example", example, torch.tensor([1, 2, 2, 1]), [0, 3, 3], "mean")
    for mode in ("sum", "mean"):
        expect_right(answer, "bags of 3, 1 and 4", draw(9, 5), pick(9, 8), [0, 3, 4], mode)
        expect_right(answer, "a token many times in a bag", draw(4, 3), torch.tensor([2, 2, 2, 1, 2]), [0, 4], mode)
        expect_right(answer, "one bag", draw(5, 2), pick(5, 6), [0], mode)
        expect_right(answer, "an empty bag in the middle", draw(6, 3), pick(6, 7), [0, 4, 4, 5], mode)
        expect_right(answer, "empty bags at the beginning", draw(6, 3), pick(6, 5), [0, 0, 0, 2], mode)
        expect_right(answer, "empty bags at the end", draw(6, 3), pick(6, 5), [0, 2, 5, 5], mode)
        expect_right(answer, "no token at all", draw(6, 3), pick(6, 0), [0, 0, 0], mode)
        expect_right(answer, "a transposed table", draw(3, 8).t(), pick(8, 9), [0, 2, 7], mode)
        tokens = torch.tensor([0, 2, 2, 5, 2, 1, 3, 2])
        expect_right(answer, "padding", draw(6, 4), tokens, [0, 3, 6, 6], mode, padding_idx=2)
        expect_right(answer, "token 0 as padding", draw(6, 4), tokens, [0, 3, 6], mode, padding_idx=0)
        expect_right(answer, "a bag of padding only", draw(6, 4), tokens, [0, 1, 3], mode, padding_idx=2)
    expect_right(answer, "weights", draw(6, 3), pick(6, 9), [0, 2, 2, 6], "sum", draw(9))
    weights = draw(8)
    expect_right(answer, "weights and padding", draw(6, 3), tokens, [0, 3, 6], "sum", weights, padding_idx=2)
    expect_right(answer, "float32", draw(7, 3).float(), pick(7, 9), [0, 2, 6], "mean")
    table = draw(7, 2)
    table[3] = torch.inf
    expect_right(answer, "an infinite row as padding", table, torch.tensor([1, 3, 2, 3]), [0, 2], "sum", padding_idx=3)
    expect_no_loop(answer)


def expect_right(
    answer: Any,
    case: str,
    table: torch.Tensor,
    tokens: torch.Tensor,
    begin: list[int],
    mode: str,
    weights: torch.Tensor | None = None,
    padding_idx: int | None = None,
) -> None:
    offsets = torch.tensor(begin)
    call = f'bag_vectors with {case} (N {len(tokens)}, offsets {begin}, mode "{mode}")'
    named = {"table": table, "tokens": tokens, "offsets": offsets}
    kept = {name: x.clone() for name, x in named.items()}
    leaf = table.detach().requires_grad_()
    factors = None if weights is None else weights.detach().requires_grad_()
    found = answer.bag_vectors(leaf, tokens, offsets, mode, factors, padding_idx)
    expect_tensor(found, call, (len(begin), table.shape[1]), table.dtype)
    for name, before in kept.items():
        expect(torch.equal(named[name], before), f"{call} changed {name}; it belongs to the caller")
    own = table.detach().clone().requires_grad_()
    own_factors = None if weights is None else weights.detach().clone().requires_grad_()
    right = F.embedding_bag(
        tokens, own, offsets, mode=mode, per_sample_weights=own_factors, padding_idx=padding_idx
    ).detach()
    tolerance = EXACT if table.dtype is torch.float64 else 1e-5
    ends = [*begin[1:], len(tokens)]
    for bag, (start, end) in enumerate(zip(begin, ends, strict=True)):
        row, wanted = found[bag].detach(), right[bag]
        if not deviation(row, wanted) < tolerance:
            at = int((~torch.isclose(row, wanted, rtol=0, atol=tolerance)).nonzero()[0])
            inside = tokens[start:end].tolist()
            aside = f", padding {padding_idx}" if padding_idx is not None else ""
            expect(False, f"{call}: bag {bag} holds the tokens {inside}{aside}, and the result there, [{bag}, {at}], is "
                   f"{row[at].item():.6g} and should be {wanted[at].item():.6g}")  # fmt: skip
    expect(found.requires_grad or not len(tokens), f"{call} has lost the graph")
    if found.requires_grad and table.isfinite().all():
        expect_gradients(call, found, leaf, factors, tokens, begin, mode, padding_idx, tolerance)


def expect_gradients(
    call: str,
    found: torch.Tensor,
    table: torch.Tensor,
    weights: torch.Tensor | None,
    tokens: torch.Tensor,
    begin: list[int],
    mode: str,
    padding_idx: int | None,
    tolerance: float,
) -> None:
    """Against a loop over the bags: the library's own gradient of a weight on padding is not what is asked here."""
    back = torch.sin(torch.arange(found.numel(), dtype=found.dtype)).view(found.shape)
    rows = []
    for start, end in zip(begin, [*begin[1:], len(tokens)], strict=True):
        places = [place for place in range(start, end) if tokens[place] != padding_idx]
        vectors = table[tokens[places]] if places else table[:0]
        if weights is not None:
            vectors = vectors * weights[places][:, None] if places else vectors
        rows.append(vectors.sum(dim=0) / (max(1, len(places)) if mode == "mean" else 1))
    inputs = [table] if weights is None else [table, weights]
    gradients = torch.autograd.grad((found * back).sum(), inputs, allow_unused=True)
    oracles = torch.autograd.grad((torch.stack(rows) * back).sum(), inputs)
    for name, gradient, oracle in zip(("table", "weights"), gradients, oracles, strict=False):
        expect(gradient is not None, f"{call} is right, and no gradient comes back to {name}")
        assert gradient is not None
        off = deviation(gradient, oracle)
        expect(off < 10 * tolerance, f"{call} is right, and the gradient of {name} is off by up to {off:.2g}")


def expect_no_loop(answer: Any) -> None:
    """The same work in lines of Python and in operations, whether there are 10 bags or 300."""
    table = torch.arange(24.0).view(8, 3)
    counts = []
    for bags in (10, 300):
        tokens, offsets = torch.arange(3 * bags) % 8, torch.arange(bags) * 3
        given = table, tokens, offsets, "mean", None, 5
        counts.append((python_steps(answer.bag_vectors, *given), len(operations(answer.bag_vectors, *given))))
    (few_lines, few), (many_lines, many) = counts
    expect(many_lines <= few_lines + 20 and many <= few + 20, f"right, but 10 bags take {few} operations in {few_lines} lines of "
           f"Python, and 300 bags take {many} in {many_lines}; a loop goes over bags or tokens")  # fmt: skip


def written(slip: str) -> dict[str, object]:
    def bag_vectors(
        table: torch.Tensor,
        tokens: torch.Tensor,
        offsets: torch.Tensor,
        mode: str,
        weights: torch.Tensor | None = None,
        padding_idx: int | None = None,
    ) -> torch.Tensor:
        places = torch.arange(len(tokens))
        bag = torch.searchsorted(offsets, places, right=slip != "left")
        bag = bag if slip == "left" else bag - 1
        if slip == "starts":  # a 1 where a bag begins, added up: an empty bag begins where the next one does
            starts = torch.zeros(len(tokens) + 1, dtype=torch.int64)
            starts[offsets] = 1
            bag = starts.cumsum(0)[: len(tokens)] - 1
        rows, words = table[tokens], None
        if padding_idx if slip == "truth" else padding_idx is not None:
            is_word = tokens.ne(padding_idx)  # type: ignore[arg-type]
            if slip == "zeroed":
                rows, words = rows * is_word[:, None], bag[is_word]
            elif slip == "counts":
                rows = rows.masked_fill(~is_word[:, None], 0)
            else:
                rows, bag = rows[is_word], bag[is_word]
                weights = None if weights is None else weights[is_word]
        if weights is not None:
            rows = rows * (weights.detach() if slip == "detach" else weights)[:, None]
        sums = table.new_zeros(len(offsets), table.shape[1])
        if slip == "assign":
            sums[bag] += rows
        else:
            sums = sums.index_add(0, bag, rows)
        if mode == "sum":
            return sums
        count = torch.bincount(bag if words is None else words, minlength=len(offsets))[:, None]
        return sums / (count if slip == "nan" else count.clamp(min=1))

    return {"bag_vectors": bag_vectors}


def loops_over_bags(
    table: torch.Tensor,
    tokens: torch.Tensor,
    offsets: torch.Tensor,
    mode: str,
    weights: torch.Tensor | None = None,
    padding_idx: int | None = None,
) -> torch.Tensor:
    rows = []
    for start, end in zip(offsets.tolist(), [*offsets.tolist()[1:], len(tokens)], strict=True):
        inside = tokens[start:end]
        is_word = inside != padding_idx if padding_idx is not None else torch.ones(len(inside), dtype=torch.bool)
        vectors = table[inside[is_word]]
        if weights is not None:
            vectors = vectors * weights[start:end][is_word][:, None]
        rows.append(vectors.sum(dim=0) / (max(1, len(vectors)) if mode == "mean" else 1))
    return torch.stack(rows)


WRONG = {
    "adds by assignment": (written("assign"), "with the example (N 4, offsets [0, 3, 3], mode"),
    "divides by zero": (written("nan"), "bag 1 holds the tokens [], and the result there, [1, 0], is nan"),
    "counts bags that have not begun": (written("left"), "with the example"),
    "marks where bags begin": (written("starts"), "with the example"),
    "counts the padding in the mean": (written("counts"), "padding 2, and the result"),
    "multiplies the padding by 0": (written("zeroed"), "an infinite row as padding"),
    "takes token 0 for no padding": (written("truth"), "with token 0 as padding"),
    "cuts the weights from the graph": (written("detach"), "no gradient comes back to weights"),
    "loops over the bags": ({"bag_vectors": loops_over_bags}, "a loop goes over bags or tokens"),
}
