"""Gradients that hold only the rows in use: what they save, who takes them, and what a lazy update leaves out."""

import math
from collections.abc import Callable

from shared.lesson import Lesson
from shared.snippets import complaint
from shared.timing import compare
from shared.units import bytes_text, seconds_text, significant

import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, SparseAdam

CPU = torch.device("cpu")
MakeOptimizer = Callable[[list[torch.Tensor]], Optimizer]


def device_with_sparse_tensors(device: torch.device) -> torch.device:
    """MPS does not have all operations on sparse tensors, nor EmbeddingBag, in every version; the CPU has."""
    return CPU if device.type == "mps" else device


def sparse_bytes(gradient: torch.Tensor) -> int:
    """Of the row numbers and of the rows in a COO gradient."""
    return gradient._indices().nbytes + gradient._values().nbytes


def gradient_of(embedding: nn.Embedding, tokens: torch.Tensor) -> torch.Tensor:
    """Of a loss in which every looked-up number counts differently, so that rows can be told apart."""
    embedding.weight.grad = None
    looked_up = embedding(tokens)
    (looked_up * torch.arange(looked_up.numel(), device=tokens.device).view_as(looked_up).sin()).sum().backward()
    assert embedding.weight.grad is not None
    return embedding.weight.grad


def twins(vocabulary: int, width: int, device: torch.device) -> tuple[nn.Embedding, nn.Embedding]:
    """The same table twice; the second has sparse gradients."""
    dense, sparse = (nn.Embedding(vocabulary, width, sparse=flag, device=device) for flag in (False, True))
    sparse.load_state_dict(dense.state_dict())
    return dense, sparse


@torch.no_grad()
def update_used_rows(table: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
    """One step of gradient descent that touches only the rows in the COO `gradient`; rows named twice are added twice."""
    table.index_add_(0, gradient._indices()[0], gradient._values(), alpha=-lr)


@torch.no_grad()
def update_all_rows(table: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
    table -= lr * gradient


def show_sparse(lesson: Lesson) -> None:
    vocabulary, width, used = lesson.pick(full=200_000, quick=20_000), 64, 1024
    device = device_with_sparse_tensors(lesson.device)
    lesson.section(
        "Sparse gradients: only the rows in use",
        f"A batch of {used:,} tokens uses at most {used:,} rows of the table, and yet its gradient has the size of the "
        f"table: {vocabulary:,} rows, nearly all zero, filled with zeros, read by the optimizer, and sent over the "
        "network where several GPUs train. With sparse=True the gradient is a COO tensor: a list of row numbers and a "
        "list of rows.",
    )
    dense, sparse = twins(vocabulary, width, device)
    tokens = torch.randint(vocabulary // 2, (used,), device=device)
    tokens[: used // 4] = 7  # one token that comes again and again
    full, listed = gradient_of(dense, tokens), gradient_of(sparse, tokens)
    merged = listed.coalesce()
    forms = {
        "dense": (full.layout, vocabulary, full.nbytes),
        "sparse, as backward() leaves it": (listed.layout, listed._nnz(), sparse_bytes(listed)),
        "sparse, coalesced": (merged.layout, merged._nnz(), sparse_bytes(merged)),
    }
    lesson.table(
        [{"gradient": name, "layout": str(layout).removeprefix("torch."), "rows": rows, "memory": bytes_text(size)}
         for name, (layout, rows, size) in forms.items()]
    )  # fmt: skip
    lesson.check("dense: vocabulary x width x 4 bytes", full.nbytes == vocabulary * width * 4, bytes_text(full.nbytes))
    expected = used * (8 + 4 * width)
    lesson.check("sparse: tokens x (8 + 4 x width) bytes", sparse_bytes(listed) == expected,
                 f"{bytes_text(expected)}, {full.nbytes / expected:,.0f} times less")  # fmt: skip
    distinct = len(tokens.unique())
    lesson.check("a repeated token is listed again; coalesce() adds up",
                 not listed.is_coalesced() and (listed._nnz(), merged._nnz()) == (used, distinct),
                 f"{used:,} rows, then {distinct:,}")  # fmt: skip
    off = (listed.to_dense() - full).abs().max().item()
    lesson.check("both are the same gradient", off < 1e-4, f"{significant(off, 2) if off else 'nothing'} off")
    lr = 0.1
    with torch.no_grad():
        before = dense.weight.detach().clone()
        update_all_rows(dense.weight, full, lr)
        update_used_rows(sparse.weight, listed, lr)
    apart = (dense.weight - sparse.weight).abs().max().item()
    touched = int((sparse.weight != before).any(dim=1).sum())
    lesson.check("a step on the used rows is the step on all", apart < 1e-4 and touched <= distinct,
                 f"{touched:,} rows written instead of {vocabulary:,}")  # fmt: skip
    (sparse(tokens).sum()).backward()
    assert sparse.weight.grad is not None
    lesson.check("a second backward() appends to the list", sparse.weight.grad._nnz() == 2 * used,
                 f"{sparse.weight.grad._nnz():,} rows until somebody coalesces")  # fmt: skip
    budget_s = lesson.pick(full=1.0, quick=0.2)
    timings = compare(
        {
            "dense": lambda: update_all_rows(dense.weight, gradient_of(dense, tokens), lr),
            "sparse": lambda: update_used_rows(sparse.weight, gradient_of(sparse, tokens), lr),
        },
        device, budget_s=budget_s,
    )  # fmt: skip
    for name, timing in timings.items():
        lesson.record("backward and step", timing.median_s * 1e3, "ms", timing, gradient=name, vocabulary=vocabulary)
    lesson.shows(
        f"forward, backward and step took {seconds_text(timings['dense'].median_s)} with the dense gradient and "
        f"{seconds_text(timings['sparse'].median_s)} with the sparse one. The first time grows with the vocabulary, "
        f"the second with the batch. A hundred million rows would mean {bytes_text(1e8 * width * 4)} of zeros in every "
        "step: tables of users or products are trained sparse or not at all."
    )


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "SGD, momentum=0.9": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "SGD, weight_decay=0.1": lambda p: SGD(p, lr=0.1, weight_decay=0.1),
    "Adagrad": lambda p: Adagrad(p, lr=0.1),
    "Adam": lambda p: Adam(p, lr=0.1),
    "AdamW": lambda p: AdamW(p, lr=0.1),
    "RMSprop": lambda p: RMSprop(p, lr=0.1),
    "SparseAdam": lambda p: SparseAdam(p, lr=0.1),
}
FIRST, OTHERS = 0, (1, 2)  # a token that is used in the first step only, and the tokens of all later steps


def refuses_sparse(make: MakeOptimizer) -> str:
    """What the optimizer says to one step with a sparse gradient; "" where it takes it."""
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = make([embedding.weight])
    gradient_of(embedding, torch.tensor([1, 1, 2]))
    return complaint(optimizer.step)


def follow_first_row(make: MakeOptimizer, steps: int, *, sparse: bool) -> list[float]:
    """How far the row FIRST is from its start after each step; its gradient is 1 in the first step, and none later."""
    embedding = nn.Embedding(3, 2, sparse=sparse)
    nn.init.zeros_(embedding.weight)
    optimizer, path = make([embedding.weight]), []
    for step in range(steps):
        optimizer.zero_grad()
        embedding(torch.tensor([FIRST] if step == 0 else OTHERS)).sum().backward()
        optimizer.step()
        path.append(-embedding.weight[FIRST, 0].item())
    return path


def momentum_rows(vocabulary: int, used: int, steps: int) -> int:
    """How many rows SGD's momentum lists after so many steps with sparse gradients; the same row may stand there often."""
    embedding = nn.Embedding(vocabulary, 2, sparse=True)
    optimizer = SGD([embedding.weight], lr=0.1, momentum=0.9)
    for _ in range(steps):
        gradient_of(embedding, torch.randint(vocabulary, (used,)))
        optimizer.step()
    return int(optimizer.state[embedding.weight]["momentum_buffer"]._nnz())


def show_optimizers(lesson: Lesson) -> None:
    lesson.section(
        "Which optimizer takes a sparse gradient, and what it does",
        "An optimizer that keeps a running mean for each weight has to move all of them in every step, used or not. So "
        "most refuse a sparse gradient, and those that take it are lazy: they leave alone what was not used. For plain "
        "SGD that is the same thing. Where there is a memory of past gradients it is another algorithm.",
    )
    with torch.sparse.check_sparse_tensor_invariants(False):  # Adagrad warns unless this is said, either way
        answers = {name: refuses_sparse(make) for name, make in OPTIMIZERS.items()}
        steps = 40
        paths = {
            (name, sparse): follow_first_row(OPTIMIZERS[name], steps, sparse=sparse)
            for name, sparse in (("SGD", False), ("SGD", True), ("SGD, momentum=0.9", False), ("SGD, momentum=0.9", True),
                                 ("Adagrad", False), ("Adagrad", True), ("Adam", False), ("SparseAdam", True))
        }  # fmt: skip
    lesson.table([{"optimizer": name, "takes it": "no" if answer else "yes", "its answer": answer.partition(": ")[2]}
                  for name, answer in answers.items()])  # fmt: skip
    takes = [name for name, answer in answers.items() if not answer]
    lesson.check("SGD, Adagrad and SparseAdam take it", takes == ["SGD", "SGD, momentum=0.9", "Adagrad", "SparseAdam"],
                 f"{len(takes)} of {len(answers)}")  # fmt: skip
    lesson.check("Adam names the remedy", "SparseAdam" in answers["Adam"], "and so does AdamW")
    lesson.text(
        "A row is used in the first step, with gradient 1, and never again. How far has it gone after 1 and after "
        f"{steps} steps, lr 0.1?"
    )
    lesson.table(
        [{"optimizer": name, "gradient": "sparse" if sparse else "dense", "after 1": path[0], f"after {steps}": path[-1],
          "so it": "moves on" if path[-1] > 1.01 * path[0] else "stays"}
         for (name, sparse), path in paths.items()]
    )  # fmt: skip
    ends = {key: path[-1] / path[0] for key, path in paths.items()}
    lesson.check("without memory, sparse and dense do the same",
                 all(math.isclose(ends[name, flag], 1, rel_tol=1e-5) for name in ("SGD", "Adagrad") for flag in (True, False)),
                 "SGD and Adagrad leave an unused row where it is")  # fmt: skip
    coasting = (1 - 0.9**steps) / (1 - 0.9)
    lesson.check("momentum moves an unused row on, by 1 + 0.9 + 0.81 + …",
                 all(math.isclose(ends["SGD, momentum=0.9", flag], coasting, rel_tol=1e-3) for flag in (True, False)),
                 f"{ends['SGD, momentum=0.9', True]:.2f} times the first step, {coasting:.2f} foreseen")  # fmt: skip
    vocabulary, steps = 1000, 60
    buffered = momentum_rows(vocabulary, 50, steps)
    lesson.check("its buffer of sparse gradients outgrows the table", buffered > vocabulary,
                 f"{buffered:,} rows after {steps} steps, for a table of {vocabulary:,}")  # fmt: skip
    lesson.check("Adam moves an unused row on, SparseAdam does not",
                 ends["Adam", False] > 2 and math.isclose(ends["SparseAdam", True], 1, rel_tol=1e-5),
                 f"{ends['Adam', False]:.1f} times the first step, and 1")  # fmt: skip
    lesson.shows(
        "sparse=True is not only a saving. SparseAdam is a lazy Adam: a rare token keeps its place between two uses, "
        f"where Adam carries it {ends['Adam', False]:.1f} times as far as its one gradient said. Both are used; they "
        "are not the same training. SGD with momentum takes a sparse gradient and pays for it in memory."
    )
