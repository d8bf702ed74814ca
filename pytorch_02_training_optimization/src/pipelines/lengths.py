"""Samples of unequal length: padding with a mask, and batches of one length that need hardly any."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shared.datasets import load_text
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import percent, significant

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler, default_collate

PADDING = 0  # no line of text holds this code
BATCH_SIZE = 32


def pad(samples: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A collate_fn for sequences (T_i,): the codes (B, T) with PADDING behind, and a mask (B, T), true where it is text."""
    codes = samples[0].new_full((len(samples), max(map(len, samples))), PADDING)
    for row, sample in zip(codes, samples, strict=True):
        row[: len(sample)] = sample
    lengths = torch.tensor([len(sample) for sample in samples])
    return codes, torch.arange(codes.shape[1]) < lengths[:, None]  # (T) < (B, 1): a mask (B, T)


def mean_over_padding(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mistake: (B, T, C) -> (B, C), where padding counts as text, so a sample's mean depends on its neighbours."""
    return vectors.mean(dim=1)


def mean_over_text(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Right: the sum of what is text, divided by how much that is."""
    return (vectors * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def load_lines(count: int) -> list[torch.Tensor]:
    """Lines of Python's own source as codes of their characters, in random order."""
    text = load_text("stdlib").text
    lines = [line for line in text[: 40 * 8 * count].split("\n") if line.strip() and line.isascii()]
    chosen = torch.randperm(len(lines))[:count].tolist()
    return [torch.tensor(list(lines[i].encode()), dtype=torch.uint8) for i in chosen]


def draw_batch(codes: torch.Tensor, mask: torch.Tensor) -> str:
    """One line of text for each row, with a dot for each place of padding."""
    rows = []
    for row, real in zip(codes.tolist(), mask.tolist(), strict=True):
        text = "".join(chr(code) if is_text else "·" for code, is_text in zip(row, real, strict=True))
        rows.append(f"│{text}│ {sum(real)} of {len(row)}")
    return "\n".join(rows)


def show_padding(lesson: Lesson) -> None:
    lesson.section(
        "Samples of unequal length",
        "Sentences, sounds and clicks differ in length, and torch.stack wants one shape. A collate_fn of your own pads "
        "the short ones, and gives a mask along that says what is real. From here on every operation that mixes places "
        "(a mean, a loss, attention) has to be told.",
    )
    lines = [line for line in load_lines(lesson.pick(full=4000, quick=800)) if 8 < len(line) < 60][:200]
    codes, mask = pad(lines[:4])
    lesson.drawing(draw_batch(codes, mask))
    message = complaint(lambda: default_collate([torch.ones(2), torch.ones(3)]))
    lesson.check("default_collate refuses unequal lengths", "equal size" in message, message.partition(", but")[0])
    codes, mask = pad(lines)
    oracle = pad_sequence(lines, batch_first=True, padding_value=PADDING)
    lesson.check("our padding is PyTorch's pad_sequence", codes.equal(oracle), f"shape {tuple(codes.shape)}")
    back = [row[real] for row, real in zip(codes, mask, strict=True)]
    lesson.check("the mask gives every sample back", all(map(torch.equal, back, lines)), f"{len(lines)} lines")
    table = torch.randn(256, 16)  # a vector for each character
    apart = {}
    for mean in (mean_over_padding, mean_over_text):
        alone = torch.cat([mean(table[codes.long()], mask) for codes, mask in (pad([line]) for line in lines)])
        apart[mean] = ((mean(table[codes.long()], mask) - alone).norm(dim=1) / alone.norm(dim=1)).median().item()
    lesson.check("without the mask a sample depends on its neighbours", apart[mean_over_padding] > 0.1,
                 f"its mean moves by {percent(apart[mean_over_padding])}, alone or in a batch")  # fmt: skip
    lesson.check(
        "with the mask it does not", apart[mean_over_text] < 1e-5, f"by {significant(apart[mean_over_text], 2)}"
    )
    lesson.shows(
        f"a batch of {len(lines)} lines is {percent(1 - mask.float().mean().item())} padding, and a mean over it moved by "
        f"{percent(apart[mean_over_padding])}. The test to keep: a sample alone and the same sample in a batch must give "
        "the same output. It finds every forgotten mask."
    )


# Batches of one length


class BucketBatches(Sampler[list[int]]):
    """Batches of samples of about one length; every index once an epoch, in another grouping each time.

    A random order is cut into pools of `batches_in_pool` batches, each pool is sorted and cut into batches, and the
    batches come in random order.
    """

    def __init__(
        self, lengths: torch.Tensor, batch_size: int, batches_in_pool: int, generator: torch.Generator
    ) -> None:
        self.lengths, self.batch_size, self.generator = lengths, batch_size, generator
        self.pool = batch_size * batches_in_pool

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches: list[torch.Tensor] = []
        for pool in torch.randperm(len(self.lengths), generator=self.generator).split(self.pool):
            batches += pool[self.lengths[pool].argsort()].split(self.batch_size)
        for i in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[i].tolist()


def batches_of_a_budget(lengths: torch.Tensor, budget: int) -> Iterator[list[int]]:
    """Sorted, and cut where one sample more would make the padded batch larger than `budget` numbers."""
    batch: list[int] = []
    for index in lengths.argsort().tolist():  # ascending, so the new sample is the longest of its batch
        if batch and (len(batch) + 1) * lengths[index] > budget:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def padded_numbers(batches: Sequence[Sequence[int]], lengths: torch.Tensor) -> list[int]:
    """How many numbers each batch has after padding: samples times the longest."""
    return [len(batch) * int(lengths[list(batch)].max()) for batch in batches]


def show_buckets(lesson: Lesson) -> None:
    lines = load_lines(lesson.pick(full=8000, quick=1500))
    lengths = torch.tensor([len(line) for line in lines])
    total = int(lengths.sum())
    lesson.section(
        "Bucketing: batches of one length",
        f"Padding is computed like everything else and then thrown away. {len(lines):,} lines of source in batches of "
        f"{BATCH_SIZE}: put lines of about one length together, and most of it is gone. Sorting everything saves most, "
        "but then each epoch has the same batches, the longest ones last; so sort within random pools of some batches.",
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    order = torch.randperm(len(lines), generator=generator)
    ways: dict[str, list[list[int]]] = {"random order": [batch.tolist() for batch in order.split(BATCH_SIZE)]}
    for pool in (4, 16):
        ways[f"pools of {pool}"] = list(BucketBatches(lengths, BATCH_SIZE, pool, generator))
    ways["all sorted"] = [batch.tolist() for batch in lengths.argsort().split(BATCH_SIZE)]
    largest = max(padded_numbers(ways["all sorted"], lengths))
    ways[f"at most {largest:,} numbers"] = list(batches_of_a_budget(lengths, largest))
    padded = {name: padded_numbers(batches, lengths) for name, batches in ways.items()}
    wasted = {name: 1 - total / sum(numbers) for name, numbers in padded.items()}
    lesson.table(
        [
            {"batches by": name, "batches": len(numbers), "numbers computed": sum(numbers),
             "padding": percent(wasted[name]), "largest batch": max(numbers), "smallest": min(numbers)}
            for name, numbers in padded.items()
        ]
    )  # fmt: skip
    for name, share in wasted.items():
        lesson.record("padding", share, "1", batches=name, samples=len(lines))
    lesson.check("each way has every line once",
                 all(sorted(i for batch in batches for i in batch) == [*range(len(lines))] for batches in ways.values()),
                 f"{len(lines):,} lines, {len(ways)} ways")  # fmt: skip
    collated = [pad([lines[i] for i in batch])[0].numel() for batch in ways["pools of 16"]]
    lesson.check(
        "what is counted is what collate makes", collated == padded["pools of 16"], f"{sum(collated):,} numbers"
    )
    lesson.check("pools of 16 save most of the padding", wasted["pools of 16"] < 0.4 * wasted["random order"],
                 f"{percent(wasted['pools of 16'])} instead of {percent(wasted['random order'])}")  # fmt: skip
    epochs = [{tuple(sorted(batch)) for batch in BucketBatches(lengths, BATCH_SIZE, 16, generator)} for _ in range(2)]
    lesson.check("and the next epoch has other batches", len(epochs[0] & epochs[1]) < 0.05 * len(epochs[0]),
                 f"{len(epochs[0] & epochs[1])} of {len(epochs[0])} are the same")  # fmt: skip
    lesson.figure("padding", lambda *axes: draw_padding(axes, ways, lengths, wasted), columns=2)
    name, numbers = list(padded.items())[-1]
    lesson.shows(
        f"random batches compute {significant(sum(padded['random order']) / total, 3)} numbers for each that counts, "
        f"pools of 16 only {significant(sum(padded['pools of 16']) / total, 3)}, and they stay random. In the last line "
        f"not the samples but the numbers of a batch are bounded: {len(numbers)} batches instead of {len(padded['all sorted'])}, "
        "of nearly one size in memory. With such batches average the loss over tokens, not over samples. Picture: padding.png."
    )


def draw_padding(axes: Sequence[Any], ways: Mapping[str, Sequence[Sequence[int]]], lengths: torch.Tensor,
                 wasted: Mapping[str, float]) -> None:  # fmt: skip
    for axis, name in zip(axes, ("random order", "pools of 16"), strict=True):
        shown = [lengths[list(batch)] for batch in ways[name][:6]]
        text, place = torch.cat(shown), torch.arange(sum(map(len, shown)))
        longest = torch.cat([batch.max().expand(len(batch)) for batch in shown])
        axis.fill_between(place, text, longest, step="mid", color="0.82", label="padding", linewidth=0)
        axis.fill_between(place, text, step="mid", color="#0b5fa5", label="text", linewidth=0)
        for end in range(BATCH_SIZE, len(place), BATCH_SIZE):
            axis.axvline(end - 0.5, color="black", linewidth=0.8, linestyle="-", marker="")
        axis.set(xlabel="sample (a line after each batch)", ylabel="characters", ylim=(0, 120),
                 title=f"{name}: {percent(wasted[name])} padding")  # fmt: skip
        axis.legend(loc="upper right", ncols=2, fontsize=9)
