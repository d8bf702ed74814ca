"""Fewer bits for what waits: activations packed into 16 or 8 bits between forward and backward."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pytorch_02_training_optimization.src.budget.checkpoints import error_of, sizes_of
from pytorch_02_training_optimization.src.budget.ledger import Ledger
from pytorch_02_training_optimization.src.budget.network import (
    CLASSES,
    EXPANSION,
    Batch,
    Network,
    letters,
    make_network,
    random_batch,
)
from shared.lesson import Lesson
from shared.units import bytes_text, percent

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

Packed = tuple[torch.Tensor, ...]


def to_bf16(x: torch.Tensor) -> Packed:
    return (x.to(torch.bfloat16),)


def from_bf16(packed: Packed) -> torch.Tensor:
    return packed[0].float()


def to_int8(x: torch.Tensor) -> Packed:
    """Whole numbers from -127 to 127 and, for each row, what the largest of them stands for."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127
    return (x / scale).round().to(torch.int8), scale


def from_int8(packed: Packed) -> torch.Tensor:
    whole, scale = packed
    return whole.float() * scale


class Packing(saved_tensors_hooks):
    """Inside the block, what autograd saves is encoded, and decoded when backward asks for it.

    Left alone: the storages of `but_not`, and tensors with one number a row, such as the statistics of LayerNorm.
    """

    def __init__(self, encode: Callable[[torch.Tensor], Any], decode: Callable[[Any], torch.Tensor],
                 but_not: Iterable[torch.Tensor]) -> None:  # fmt: skip
        others = {x.untyped_storage()._cdata for x in but_not}

        def pack(x: torch.Tensor) -> Any:
            is_left = (
                x.untyped_storage()._cdata in others or not x.is_floating_point() or x.ndim < 2 or x.shape[-1] == 1
            )
            return x if is_left else (encode(x),)

        super().__init__(pack, lambda kept: kept if isinstance(kept, torch.Tensor) else decode(kept[0]))


def pack_the_weights_too(model: Network, batch: Batch) -> Packing:
    """The mistake: weights are saved too, but they are there anyway, and so each of them gets a copy."""
    return Packing(to_bf16, from_bf16, batch)


Context = Callable[[Network, Batch], AbstractContextManager[Any]]
WAYS: dict[str, Context] = {
    "float32": lambda model, batch: nullcontext(),
    "bfloat16": lambda model, batch: Packing(to_bf16, from_bf16, [*model.parameters(), *batch]),
    "int8": lambda model, batch: Packing(to_int8, from_int8, [*model.parameters(), *batch]),
}


def kept_and_gradients(context: Context, model: Network, batch: Batch) -> tuple[int, list[torch.Tensor]]:
    """Bytes alive after forward, besides model and batch, and the gradients."""
    x, y = batch
    model.zero_grad()
    with Ledger(x.device) as ledger:
        with context(model, batch):
            loss = F.cross_entropy(model(x), y)
        kept = ledger.live_bytes
        loss.backward()
        del loss
    return kept, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def packed_bytes(way: str, batch_size: int, channels: int, depth: int) -> int:
    """What `kept_and_gradients` should find: each row of the tensors that are packed, the rest in float32.

    Log-probabilities are saved by two operations, log_softmax and the loss: one tensor, but packed twice.
    """
    rows = [channels, channels, EXPANSION * channels, EXPANSION * channels] * depth + [channels, channels, CLASSES]
    rows += [CLASSES] * (way != "float32")
    row_bytes: dict[str, Callable[[int], int]] = {
        "float32": lambda n: 4 * n,
        "bfloat16": lambda n: 2 * n,
        "int8": lambda n: n + 4,
    }
    return batch_size * (sum(map(row_bytes[way], rows)) + 8 * (depth + 1)) + 8


def train_on_letters(context: Context, train: Batch, test: Batch, steps: int, seed: int) -> tuple[list[float], float]:
    """Losses of all steps of Adam and the accuracy on letters never seen; the same start and batches for one seed."""
    x, y = train
    torch.manual_seed(seed)
    model = make_network(64, 3, x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        some = torch.randint(len(y), (64,)).to(x.device)
        batch = x[some], y[some]
        with context(model, batch):
            loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    with torch.no_grad():
        accuracy = (model(test[0]).argmax(dim=1) == test[1]).float().mean().item()
    return torch.stack(losses).tolist(), accuracy


def show_packing(lesson: Lesson) -> None:
    device = lesson.device
    channels, depth, batch_size = sizes_of(lesson)
    steps, test_count = lesson.pick(full=300, quick=20), lesson.pick(full=1000, quick=200)
    lesson.section(
        "Fewer bits for what waits",
        "An activation is computed in float32 and then waits for backward. The same two hooks can store it in fewer bits "
        "while it waits: forward stays exact, only the gradient is rounded. 16 bits keep the range and lose digits; for 8 "
        "each row gets a scale of its own. What that does to gradients, and to a network that learns letters:",
    )
    torch.manual_seed(lesson.options.seed)
    model, batch = make_network(channels, depth, device), random_batch(batch_size, device)
    found = {way: kept_and_gradients(context, model, batch) for way, context in WAYS.items()}
    errors = {way: error_of(gradients, found["float32"][1]) for way, (_, gradients) in found.items()}
    train, test = letters(16 * steps, device, train=True), letters(test_count, device, train=False)
    runs = {way: train_on_letters(context, train, test, steps, lesson.options.seed)
            for way, context in lesson.progress(WAYS.items(), "training", len(WAYS))}  # fmt: skip
    right, rows = 0, []
    for way, (kept, _) in found.items():
        losses, accuracy = runs[way]
        right += kept == packed_bytes(way, batch_size, channels, depth)
        lesson.record("kept after forward", kept, "B", way=way)
        lesson.record("accuracy on letters", accuracy, "", way=way)
        rows.append({"kept in": way, "bytes": bytes_text(kept), "share": percent(kept / found["float32"][0]),
                     "gradient off by": percent(errors[way]) if errors[way] else "0",
                     "loss, last 10 steps": sum(losses[-10:]) / 10, "letters read right": percent(accuracy)})  # fmt: skip
    lesson.table(rows)
    lesson.check("what is kept is what the formula says", right == len(WAYS), f"{right} of {len(WAYS)} to the byte")
    lesson.check("bfloat16 moves gradients by about its rounding", 0 < errors["bfloat16"] < 3 * 2**-8,
                 f"{percent(errors['bfloat16'])} of their length; numbers by {percent(2**-8)} at most")  # fmt: skip
    lesson.check(
        "8 bits move them by a few percent", errors["bfloat16"] < errors["int8"] < 0.05, percent(errors["int8"])
    )
    _, of_others = kept_and_gradients(WAYS["float32"], model, random_batch(batch_size, device))
    chance = error_of(of_others, found["float32"][1])
    lesson.check(
        "another batch would move them far more", chance > 5 * errors["int8"], f"by {percent(chance)} of their length"
    )
    # Two accuracies of the same letters: five standard errors of their difference, at its largest.
    bound = 5 * (2 * 0.25 / test_count) ** 0.5
    apart = max(abs(runs[way][1] - runs["float32"][1]) for way in WAYS)
    lesson.check("the network learns the letters as well with either", apart < bound,
                 f"{percent(apart)} apart; chance allows {percent(bound)}")  # fmt: skip
    plain = found["bfloat16"][0]
    copied, _ = kept_and_gradients(pack_the_weights_too, model, batch)
    matrices = 2 * depth * channels * EXPANSION * channels
    lesson.check("hooks see weights too: pack them, and have two of each", copied - plain >= 2 * matrices,
                 f"{bytes_text(copied - plain)} more")  # fmt: skip
    lesson.shows(
        f"{percent(found['int8'][0] / found['float32'][0])} of the bytes cost {percent(errors['int8'])} of the gradient's "
        f"length, which is little beside the noise of its batch: of new letters the network reads {percent(runs['int8'][1])} "
        f"with int8 and {percent(runs['float32'][1])} with float32. Autocast halves activations too and speeds up the "
        "products as well, so it comes first. Packing is for what stays in float32, and for going below 16 bits."
    )
