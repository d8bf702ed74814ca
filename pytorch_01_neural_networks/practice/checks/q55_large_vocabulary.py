"""Right first, against one call on all logits in float64; then every new tensor is followed from its making to its end."""

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from shared.dispatch import Watcher, name_of, tensors_in
from shared.practice import expect
from shared.traps import expect_tensor, shown

import torch
import torch.nn.functional as F

IGNORED = -100
Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class NewTensors(Watcher):
    """The most numbers in new tensors that were alive at once, and the operations that had made the large ones."""

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in known}
        self.alive: dict[int, tuple[int, str]] = {}
        self.peak, self.made_by = 0, Counter[str]()

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        for x in tensors_in(result):
            storage = x.untyped_storage()
            address = storage.data_ptr()
            if address in self.known or address in self.alive:
                continue
            self.alive[address] = storage.nbytes() // x.element_size(), name_of(operation).split(".")[0]
            weakref.finalize(storage, self.alive.pop, address)
        total = sum(size for size, _ in self.alive.values())
        if total > self.peak:
            self.peak, largest = total, max(size for size, _ in self.alive.values())
            self.made_by = Counter(name for size, name in self.alive.values() if 2 * size >= largest)


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(
        n: int, c: int, d: int, dtype: torch.dtype = torch.float64
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden, weight = (torch.randn(size, d, generator=generator, dtype=torch.float64).to(dtype) for size in (n, c))
        return hidden, weight, torch.randint(c, (n,), generator=generator)

    axes = torch.eye(2, dtype=torch.float64)
    expect_right(answer, "the example", axes, 0 * axes, torch.tensor([0, 1]), 2)
    expect_right(answer, "all tokens at once", *draw(6, 5, 3), 6)
    expect_right(answer, "two parts of 3", *draw(6, 5, 3), 3)
    expect_right(answer, "parts of 4, 4 and 2", *draw(10, 7, 3), 4)
    expect_right(answer, "one token at a time", *draw(5, 7, 3), 1)
    expect_right(answer, "more rows than tokens", *draw(3, 7, 2), 50)
    hidden, weight, labels = draw(9, 6, 4)
    labels[[0, 1, 4]] = IGNORED
    expect_right(answer, "labels that do not count, 2 of 3 in the first part", hidden, weight, labels, 3)
    labels[3:6] = IGNORED
    expect_right(answer, "a part in which no label counts", hidden, weight, labels, 3)
    hidden, weight, labels = draw(8, 6, 4)
    expect_right(answer, "logits in the thousands", 1e3 * hidden, weight, labels, 3)
    expect_right(answer, "tensors that require gradients", hidden.requires_grad_(), weight.requires_grad_(), labels, 3)
    sideways = draw(5, 7, 4)[0]
    expect_right(
        answer, "transposed views", sideways.t(), torch.randn(5, 7, generator=generator).double().t(), labels[:4], 3
    )
    expect_right(answer, "float32", *draw(20, 9, 5, torch.float32), 6, 1e-5)
    expect_lean(answer, *draw(400, 300, 6, torch.float32), 20)


def expect_right(
    answer: Any,
    case: str,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    rows: int,
    tolerance: float = 1e-6,
) -> None:
    call = f"loss_and_gradients with {case} (hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, rows {rows})"
    given = hidden, weight, labels
    kept, learn = [x.detach().clone() for x in given], [x.requires_grad for x in given]
    found = answer.loss_and_gradients(*given, rows)
    is_triple = isinstance(found, tuple | list) and len(found) == 3
    expect(is_triple, f"{call} returned {shown(found)}; return the loss and the gradients of hidden and of weight")
    names = "the loss", "the gradient of hidden", "the gradient of weight"
    for name, x, like in zip(names, found, (hidden[0, 0], hidden, weight), strict=True):
        expect_tensor(x, f"{call}, as {name},", tuple(like.shape), like.dtype)
        expect(not x.requires_grad, f"{call}: {name} carries a graph, and with it the logits; detach it")
    for name, x, before, required in zip(("hidden", "weight", "labels"), given, kept, learn, strict=True):
        expect(torch.equal(x.detach(), before), f"{call} changed {name}; the caller still needs it")
        expect(x.requires_grad == required, f"{call} changed whether {name} requires a gradient; that is the caller's")
        expect(
            x.grad is None, f"{call} left something in {name}.grad; return the gradient, others collect theirs there"
        )
    for name, x, right in zip(names, found, by_library(*kept), strict=True):
        apart = ~((x.double() - right).abs() <= tolerance * right.abs().max().clamp(min=1e-3))  # NaN is apart too
        if apart.any():
            at = tuple(apart.nonzero()[0].tolist())
            place = f"[{', '.join(map(str, at))}]" if at else ""
            expect(False, f"{call}: {name}{place} is {x[at].item():.6g} and should be {right[at].item():.6g}")


def by_library(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> Results:
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    loss = F.cross_entropy(hidden @ weight.T, labels)
    to_hidden, to_weight = torch.autograd.grad(loss, (hidden, weight))
    return loss.detach(), to_hidden, to_weight


def expect_lean(answer: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, rows: int) -> None:
    (n, d), c = hidden.shape, len(weight)
    with NewTensors([hidden, weight, labels]) as new:
        answer.loss_and_gradients(hidden, weight, labels, rows)
    allowed = 4 * rows * c + 3 * (n + c) * d
    made_by = ", ".join(f"{count} of {name}" for name, count in new.made_by.most_common(4))
    expect(
        new.peak <= allowed,
        f"right, but at one moment {new.peak:,} numbers in new tensors are alive, where {allowed:,} are allowed and all "
        f"logits together have {n * c:,}. The largest are results: {made_by}. Which of them does a graph or a name still hold?",
    )


def part_by_part(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, rows: int, loss_of: Any) -> Results:
    """loss_of(logits, labels of the part) gives the part's share of the loss."""
    hidden, weight = (x.detach().requires_grad_() for x in (hidden, weight))
    total, to_hidden, to_weight = torch.zeros_like(hidden[0, 0]), [], torch.zeros_like(weight)
    for part, y in zip(hidden.split(rows), labels.split(rows), strict=True):
        loss = loss_of(part @ weight.T, y)
        to_part, share = torch.autograd.grad(loss, (part, weight))
        to_hidden.append(to_part)
        to_weight += share
        total += loss.detach()
    return total, torch.cat(to_hidden), to_weight


def looks_at_all_at_once(hidden: Any, weight: Any, labels: torch.Tensor, rows: int) -> Results:
    return part_by_part(hidden, weight, labels, len(hidden), F.cross_entropy)


def averages_the_means(hidden: Any, weight: Any, labels: torch.Tensor, rows: int) -> Results:
    parts = len(labels.split(rows))
    return part_by_part(hidden, weight, labels, rows, lambda z, y: F.cross_entropy(z, y) / parts)


def divides_by_all_tokens(hidden: Any, weight: Any, labels: torch.Tensor, rows: int) -> Results:
    return part_by_part(hidden, weight, labels, rows, lambda z, y: F.cross_entropy(z, y, reduction="sum") / len(hidden))


def weighs_the_means(hidden: Any, weight: Any, labels: torch.Tensor, rows: int) -> Results:
    def share(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(z, y) * (y != IGNORED).sum() / (labels != IGNORED).sum()

    return part_by_part(hidden, weight, labels, rows, share)


def sum_of_parts(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, rows: int) -> torch.Tensor:
    losses = [
        F.cross_entropy(part @ weight.T, y, reduction="sum")
        for part, y in zip(hidden.split(rows), labels.split(rows), strict=True)
    ]
    return torch.stack(losses).sum() / (labels != IGNORED).sum()


def keeps_the_graphs(hidden: Any, weight: Any, labels: torch.Tensor, rows: int) -> Results:
    hidden, weight = (x.detach().requires_grad_() for x in (hidden, weight))
    loss = sum_of_parts(hidden, weight, labels, rows)
    to_hidden, to_weight = torch.autograd.grad(loss, (hidden, weight))
    return loss.detach(), to_hidden, to_weight


def returns_the_graph(hidden: Any, weight: Any, labels: torch.Tensor, rows: int) -> Results:
    hidden, weight = (x.detach().requires_grad_() for x in (hidden, weight))
    _, to_hidden, to_weight = keeps_the_graphs(hidden, weight, labels, rows)
    return sum_of_parts(hidden, weight, labels, rows), to_hidden, to_weight


def leaves_out_the_rest(hidden: Any, weight: Any, labels: torch.Tensor, rows: int) -> Results:
    whole = max(1, len(hidden) // rows) * rows
    loss, to_hidden, to_weight = keeps_the_graphs(hidden[:whole], weight, labels[:whole], rows)
    return loss, torch.cat([to_hidden, torch.zeros_like(hidden[whole:])]), to_weight


def marks_the_inputs(hidden: Any, weight: Any, labels: torch.Tensor, rows: int) -> Results:
    hidden.requires_grad_()
    return keeps_the_graphs(hidden, weight, labels, rows)


WRONG = {
    "looks at all tokens at once": ({"loss_and_gradients": looks_at_all_at_once}, "all logits together have 120,000"),
    "keeps the graphs of all parts": ({"loss_and_gradients": keeps_the_graphs}, "does a graph or a name still hold"),
    "averages the parts' means": ({"loss_and_gradients": averages_the_means}, "parts of 4, 4 and 2"),
    "leaves out the rest": ({"loss_and_gradients": leaves_out_the_rest}, "parts of 4, 4 and 2"),
    "divides by all tokens": ({"loss_and_gradients": divides_by_all_tokens}, "labels that do not count"),
    "weighs the parts' means": ({"loss_and_gradients": weighs_the_means}, "a part in which no label counts"),
    "returns the graph": ({"loss_and_gradients": returns_the_graph}, "carries a graph"),
    "marks the caller's tensors": ({"loss_and_gradients": marks_the_inputs}, "that is the caller's"),
}
