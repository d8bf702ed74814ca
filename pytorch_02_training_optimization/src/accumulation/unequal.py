"""Parts of unequal size: the end of an epoch, and sentences whose tokens do not weigh the same in every part."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice

from pytorch_02_training_optimization.src.accumulation.task import CPU, gradients_of, joined, make_model, off_by
from pytorch_02_training_optimization.src.letters.rows import load_letters
from shared.datasets import load_text
from shared.lesson import Lesson
from shared.units import percent

import torch
import torch.nn.functional as F
from torch import nn

Part = tuple[torch.Tensor, torch.Tensor]
IGNORED = -100  # F.cross_entropy's ignore_index


def fill_by_count(model: nn.Module, group: Sequence[Part]) -> torch.Tensor:
    """Right for any sizes: sums of losses over the number of all targets, which is known before the first backward()."""
    model.zero_grad()
    count = sum(int((y != IGNORED).sum()) for _, y in group)
    total = torch.zeros((), dtype=torch.float64)
    for x, y in group:
        loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten(), reduction="sum") / count
        loss.backward()
        total += loss.detach().cpu()
    return total


def fill_with_mean_of_means(model: nn.Module, group: Sequence[Part]) -> torch.Tensor:
    """The mistake: the mean of each part over the number of parts; what a target weighs depends on its neighbours."""
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for x, y in group:
        loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten()) / len(group)
        loss.backward()
        total += loss.detach().cpu()
    return total


def groups_of(parts: Iterable[Part], count: int) -> Iterator[list[Part]]:
    """`count` parts at a time, and at the end as many as are left."""
    source = iter(parts)
    while group := list(islice(source, count)):
        yield group


# The end of an epoch


def parts_of_an_epoch(letters: int, size: int) -> list[int]:
    """Letters in each part, as a DataLoader with drop_last=False gives them."""
    return [min(size, letters - first) for first in range(0, letters, size)]


def show_ragged(lesson: Lesson) -> None:
    lesson.section(
        "The end of an epoch: parts of unequal size",
        "The number of samples is rarely a multiple of everything. At the end of an epoch a part is smaller than the others, "
        "and a group has fewer parts. A mean over each part, divided by a fixed number, then gives some letters more weight "
        "and makes the last step too short. Here an epoch of 232 letters, in parts of 16 and steps of 4 parts, in float64.",
    )
    letters, seed = load_letters(1000).to(CPU, torch.float64), lesson.options.seed
    model = make_model(lesson.pick(full=64, quick=32), seed, CPU, torch.float64)
    sizes, per_step = parts_of_an_epoch(232, 16), 4
    parts = list(zip(letters.x[:232].split(sizes), letters.y[:232].split(sizes), strict=True))
    groups = list(groups_of(parts, per_step))
    last = groups[-1]
    count = sum(len(y) for _, y in last)
    fill_with_mean_of_means(model, [(torch.cat([x for x, _ in last]), torch.cat([y for _, y in last]))])
    right = joined(gradients_of(model))
    found = {}
    fill_by_count(model, last)
    found["sums / letters of the group"] = joined(gradients_of(model))
    fill_with_mean_of_means(model, last)
    found["means / parts of the group"] = joined(gradients_of(model))
    found["means / 4, as in every step"] = found["means / parts of the group"] * len(last) / per_step
    names = list(found)
    small, divisor = len(last[-1][1]), {names[0]: None, names[1]: len(last), names[2]: per_step}
    table = []
    for name in names:
        fixed = divisor[name]
        weights = [1.0 if fixed is None else count / (fixed * size) for size in (16, small)]
        table.append({"last step, 16 + 16 + 8": name, "letter in a 16": f"{weights[0]:.2f}x",
                      f"in the {small}": f"{weights[1]:.2f}x",
                      "length": f"{found[name].norm() / right.norm():.2f}x", "off by": percent(off_by(found[name], right))
                      if off_by(found[name], right) > 1e-9 else f"{off_by(found[name], right):.0e}"})  # fmt: skip
    lesson.table(table)
    steps = [sum(len(y) for _, y in group) for group in groups]
    lesson.check("sums over the letters of the group: equal to the batch", off_by(found[names[0]], right) < 1e-14,
                 f"{len(last)} parts, {count} letters, to {off_by(found[names[0]], right):.0e}")  # fmt: skip
    by_letter = weighted_by_letter(model, last)
    lesson.check("a mean of means is this: letters with other weights",
                 off_by(found[names[1]], by_letter) < 1e-13,
                 f"{count} / ({len(last)} x letters in the part) each: to {off_by(found[names[1]], by_letter):.0e}")  # fmt: skip
    share = off_by(found[names[1]], right)
    lesson.check("that is another gradient", share > 0.01, f"{percent(share)} off")
    fraction = len(sizes) % per_step
    carried = (per_step + fraction) / per_step
    lesson.check("without a step at the end the rest waits", fraction == 3 and steps[-1] == count,
                 f"{count} letters; the next epoch's first step is {carried:.2f}x with them")  # fmt: skip
    lesson.shows(
        f"the last of {len(groups)} steps has {steps[-1]} letters and not {steps[0]}. `if (i + 1) % 4 == 0: step()` alone "
        f"leaves the gradients of {count} letters in .grad until the next epoch. Take the parts of a step out of the loader "
        "first, count their letters, then divide each sum by that count: fill_by_count does no more."
    )


def weighted_by_letter(model: nn.Module, group: Sequence[Part]) -> torch.Tensor:
    """The gradient in which each letter has the weight that a mean of means gives it."""
    model.zero_grad()
    for x, y in group:
        losses = F.cross_entropy(model(x), y, reduction="none")
        (losses * torch.full_like(losses, 1 / (len(group) * len(y)))).sum().backward()
    return joined(gradients_of(model))


# Sentences

SIGNS = 128


class NextSign(nn.Module):
    """Guesses the next sign from the two before it: (B, T) numbers to (B, T, 128) scores. Sentence by sentence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SIGNS, width)
        self.hidden, self.out = nn.Linear(2 * width, 2 * width), nn.Linear(2 * width, SIGNS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        now = self.embedding(x)
        before = F.pad(now, (0, 0, 1, 0))[:, :-1]  # shifted by one along T, zeros in front
        scores: torch.Tensor = self.out(torch.tanh(self.hidden(torch.cat([before, now], dim=-1))))
        return scores


@cache
def lines_of_code(count: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Lines of Python's own library, 3 to 120 signs, drawn at random, each as numbers below 128."""
    lines = [line.strip() for line in load_text("stdlib").text[:1_000_000].splitlines()]
    lines = [line for line in lines if 3 <= len(line) <= 120 and line.isascii()]
    chosen = torch.randint(len(lines), (count,), generator=torch.Generator().manual_seed(seed))
    return tuple(torch.tensor(list(lines[i].encode())) for i in chosen.tolist())


def padded(lines: Sequence[torch.Tensor]) -> Part:
    """(B, T) inputs and (B, T) targets, the inputs one to the left; what is behind the end of a line does not count."""
    x = nn.utils.rnn.pad_sequence([line[:-1] for line in lines], batch_first=True)
    y = nn.utils.rnn.pad_sequence([line[1:] for line in lines], batch_first=True, padding_value=IGNORED)
    return x, y


def tokens_in(part: Part) -> int:
    return int((part[1] != IGNORED).sum())


def show_sentences(lesson: Lesson) -> None:
    lines_in_batch, lines_in_part = 32, 4
    lesson.section(
        "Sentences of unequal length",
        "In text the trap is in every step. The loss is a mean over tokens, and four sentences may have 60 tokens or 300. "
        "Divided by the number of parts, a token among short sentences counts for more than one among long ones. Libraries "
        "had this for years, the Trainer of Hugging Face until October 2024. Here 32 lines of Python's library, as parts of "
        "4, for a network that guesses the next sign.",
    )
    seed = lesson.options.seed
    lines = lines_of_code(lesson.pick(full=3200, quick=320), seed)
    torch.manual_seed(seed)
    model = NextSign(lesson.pick(full=32, quick=8)).double()
    orders = {"as drawn": lines[:lines_in_batch], "sorted by length": sorted(lines[:lines_in_batch], key=len)}
    groups = {name: [padded(some[i : i + lines_in_part]) for i in range(0, lines_in_batch, lines_in_part)]
              for name, some in orders.items()}  # fmt: skip
    drawn = groups["as drawn"]
    counts = [tokens_in(part) for part in drawn]
    total = sum(counts)
    lesson.table([{"part": i + 1, "tokens": n, "weight it gets": percent(1 / len(counts)), "weight due": percent(n / total),
                   "each token counts": f"{total / (len(counts) * n):.2f}x"} for i, n in enumerate(counts)])  # fmt: skip
    whole = padded(lines[:lines_in_batch])
    whole_loss = fill_with_mean_of_means(model, [whole]).item()
    right = joined(gradients_of(model))
    by_count_loss = fill_by_count(model, drawn).item()
    exact = off_by(joined(gradients_of(model)), right)
    lesson.check("summed and divided by all tokens: equal to the batch",
                 exact < 1e-13 and abs(by_count_loss / whole_loss - 1) < 1e-12,
                 f"gradient to {exact:.0e}, loss {whole_loss:.4f}")  # fmt: skip
    table, off = [], {}
    for name, group in groups.items():
        sizes = [tokens_in(part) for part in group]
        loss = fill_with_mean_of_means(model, group).item()
        found = joined(gradients_of(model))
        off[name] = off_by(found, right), max(sizes) / min(sizes)
        degrees = math.degrees(math.acos(min(1.0, float(found @ right / (found.norm() * right.norm())))))
        table.append({"mean of means": name, "loss in the log": loss, "right": whole_loss,
                      "gradient off by": percent(off[name][0]), "turned by": f"{degrees:.0f} degrees",
                      "heaviest token": f"{off[name][1]:.1f} times the lightest"})  # fmt: skip
        lesson.record("gradient off by", off[name][0], "share", order=name)
    lesson.table(table)
    lesson.check("a mean of means is off, and no error tells", off["as drawn"][0] > 0.01, percent(off["as drawn"][0]))
    lesson.check("parts sorted by length make it worse", off["sorted by length"][1] > 3
                 and off["sorted by length"][1] > off["as drawn"][1],
                 f"a token of the shortest part counts {off['sorted by length'][1]:.1f} times one of the longest")  # fmt: skip
    bias = {name: far_on_average(model, lines, lines_in_batch, lines_in_part, name == "sorted by length")
            for name in orders}  # fmt: skip
    batches = len(lines) // lines_in_batch
    lesson.check("more batches do not average it away", min(bias.values()) > 0.003,
                 f"mean of {batches} gradients: {percent(bias['as drawn'])} off as drawn, "
                 f"{percent(bias['sorted by length'])} sorted")  # fmt: skip
    lesson.shows(
        f"{percent(off['as drawn'][0])} off in one batch, and {percent(bias['as drawn'])} remain in the mean of {batches}: "
        "that part is no noise, the network is asked to care more for short sentences. Several GPUs with a mean each do the "
        "same. Count the tokens of the whole step first, over all parts and all GPUs, and divide sums by that."
    )


def far_on_average(
    model: nn.Module, lines: Sequence[torch.Tensor], per_batch: int, per_part: int, by_length: bool
) -> float:
    """How far the mean of the gradients of all batches is from the same mean with every token counted alike."""
    totals = []
    for fill in (fill_with_mean_of_means, fill_by_count):
        total: torch.Tensor | None = None
        for first in range(0, len(lines), per_batch):
            batch: Sequence[torch.Tensor] = lines[first : first + per_batch]
            if by_length:
                batch = sorted(batch, key=len)
            fill(model, [padded(batch[i : i + per_part]) for i in range(0, per_batch, per_part)])
            gradient = joined(gradients_of(model))
            total = gradient if total is None else total + gradient
        assert total is not None
        totals.append(total)
    return off_by(*totals)
