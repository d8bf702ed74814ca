"""Sequences of unequal length: what packing does, what goes wrong without it, and what padding costs."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pytorch_01_neural_networks.src.recurrent.comparing import KINDS, TOLERANCES, own_and_library
from shared.agreement import Agreement, agreement, deviation
from shared.device import full_float32
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.timing import compare
from shared.units import percent

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence

CPU = torch.device("cpu")
LENGTHS = (4, 2, 6, 3)
C, H = 3, 5


def show_packing(lesson: Lesson) -> None:
    show_packed_walk(lesson)
    show_padding_mistakes(lesson)
    show_waste(lesson)


# What packing does


def pack(sequences: Sequence[torch.Tensor]) -> PackedSequence:
    """What pack_sequence(sequences, enforce_sorted=False) does: sort by length, then lay step after step."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    order = torch.argsort(lengths, descending=True)
    batch_sizes = torch.stack([(lengths > t).sum() for t in range(int(lengths.max()))])
    steps = [sequences[i][t] for t, size in enumerate(batch_sizes.tolist()) for i in order.tolist()[:size]]
    device = sequences[0].device  # batch_sizes stay on the CPU, where the loop over steps runs
    return PackedSequence(torch.stack(steps), batch_sizes, order.to(device), torch.argsort(order).to(device))


def parts_equal(a: PackedSequence, b: PackedSequence) -> bool:
    """Data, batch sizes, and both orders."""
    pairs = zip(tuple(a), tuple(b), strict=True)
    return all(x is not None and y is not None and torch.equal(x, y) for x, y in pairs)


def draw_packing(lengths: Sequence[int]) -> str:
    """Padded rows beside the packed row below; a, b, c are sequences and the digit is the step."""
    longest, names = max(lengths), "abcdefgh"
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    lines = ["as they come, padded" + " " * 12 + "sorted by length"]
    for row, i in enumerate(order):
        padded = "  ".join(f"{names[row]}{t}" if t < lengths[row] else "·" * 2 for t in range(longest))
        by_length = "  ".join(f"{names[i]}{t}" for t in range(lengths[i]))
        lines.append(f"  {padded}".ljust(32) + f"  {by_length}")
    columns = [" ".join(f"{names[i]}{t}" for i in order if lengths[i] > t) for t in range(longest)]
    counts = [str(sum(length > t for length in lengths)).ljust(len(column)) for t, column in enumerate(columns)]
    return "\n".join([*lines, "", f"data         {' │ '.join(columns)}", f"batch_sizes  {' │ '.join(counts)}".rstrip()])


def random_sequences(
    lengths: Sequence[int], width: int, device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    return [torch.randn(length, width, dtype=dtype).to(device) for length in lengths]


class OfPacked(nn.Module):
    """`model` as a function of packed data and the parts of its initial state, for shared.agreement."""

    def __init__(self, model: nn.Module, packed: PackedSequence) -> None:
        super().__init__()
        self.model, self.packed = model, packed

    def forward(self, data: torch.Tensor, *state: torch.Tensor) -> tuple[torch.Tensor, Any]:
        output, final = self.model(self.packed._replace(data=data), state if len(state) == 2 else state[0])
        return output.data, final


def packed_agreement(kind: str, device: torch.device, dtype: torch.dtype) -> Agreement:
    """Our packed walk against the library's: two layers, both directions, initial states, unsorted lengths."""
    own, library = own_and_library(kind, C, H, 2, bidirectional=True, device=device, dtype=dtype)
    packed = pack(random_sequences(LENGTHS, C, device, dtype))
    count = 2 if kind == "LSTM" else 1
    state = [torch.randn(4, len(LENGTHS), H, dtype=dtype).to(device) for _ in range(count)]
    with full_float32():
        return agreement(OfPacked(own, packed), OfPacked(library, packed), packed.data, *state)


def show_packed_walk(lesson: Lesson) -> None:
    lesson.section(
        "Packed sequences",
        "Sentences, visits, machines: real sequences differ in length, and a tensor has one. Padding fills them up to the "
        "longest. Packing sorts them by length and lays all first steps side by side, then all second ones; "
        "batch_sizes says how many sequences are still there at each step, and nothing is computed for the others.",
    )
    lesson.drawing(draw_packing(LENGTHS))
    sequences = random_sequences(LENGTHS, C, lesson.device, torch.float32)
    own, library = pack(sequences), pack_sequence(sequences, enforce_sorted=False)
    lesson.check("our pack() is pack_sequence()", parts_equal(own, library),
                 f"data {tuple(own.data.shape)}, batch_sizes {own.batch_sizes.tolist()}, both orders")  # fmt: skip
    padded = pad_sequence(sequences, batch_first=True)
    back, lengths = pad_packed_sequence(library, batch_first=True)
    lesson.check("pad_packed_sequence gives padding, order and lengths back",
                 torch.equal(back, padded) and tuple(lengths.tolist()) == LENGTHS,
                 f"{lengths.tolist()}")  # fmt: skip
    for dtype, tolerance in TOLERANCES.items():
        device = lesson.device if dtype == torch.float32 else CPU
        found = [packed_agreement(kind, device, dtype) for kind in KINDS]
        name = str(dtype).removeprefix("torch.")
        lesson.check(f"our packed walk equals the library's in {name}", all(each.within(tolerance) for each in found),
                     f"values to {max(each.value for each in found):.0e}, "
                     f"gradients to {max(each.gradient for each in found):.0e}")  # fmt: skip
    worst = 0.0
    for kind in KINDS:
        _, model = own_and_library(kind, C, H, 2, bidirectional=True, device=lesson.device)
        with torch.no_grad(), full_float32():
            outputs = pad_packed_sequence(model(library)[0])[0]
            alone = [model(sequence.unsqueeze(1))[0].squeeze(1) for sequence in sequences]
        worst = max(worst, *(deviation(outputs[: len(one), i], one) for i, one in enumerate(alone)))
    lesson.check("packed, each sequence gets what it would get alone", worst < 1e-5, f"at most {worst:.0e} apart")
    unsorted = complaint(lambda: pack_padded_sequence(padded, torch.tensor(LENGTHS), batch_first=True))
    cured = complaint(
        lambda: pack_padded_sequence(padded, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    )
    empty = complaint(lambda: pack_padded_sequence(padded, torch.tensor([4, 2, 6, 0]), True, enforce_sorted=False))
    lesson.items({"unsorted": unsorted, "a length of 0": empty})
    lesson.check("unsorted lengths are refused", "sorted in decreasing order" in unsorted and cured == "",
                 "enforce_sorted=False sorts, and sorts back")  # fmt: skip
    lesson.check("an empty sequence is refused too", "greater than 0" in empty, "leave it out before you pack")
    lesson.shows(
        f"a packed batch is {len(own.data)} steps of work where the padded one is {padded.shape[0] * padded.shape[1]}, and every "
        "result is as if the sequence had been alone. Pass lengths as a CPU tensor or a list, also with a GPU, and "
        "enforce_sorted=False unless you export to ONNX: the order of h_n is then that of your batch."
    )


# What goes wrong without it


def take_last_of_padded(output: torch.Tensor) -> torch.Tensor:
    """The mistake: at the last column the short sequences have long been reading padding. `output` is (B, T, H)."""
    return output[:, -1]


def take_last_real(output: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Right for the forward direction: output at step length - 1 of each sequence, (B, H)."""
    return output[torch.arange(len(output)), lengths - 1]


def run_backwards_through_padding(model: nn.Module, padded: torch.Tensor) -> torch.Tensor:
    """The mistake: the backward direction starts in the padding, so its state is no longer zero at the last word."""
    output: torch.Tensor = model(padded)[0]
    return output


def shown_share(off: float) -> str:
    return percent(off) if off > 1e-4 else "rounding"


def show_padding_mistakes(lesson: Lesson) -> None:
    lesson.section(
        "Mistakes with padding",
        "A network reads zeros as it reads anything else: biases and the old state keep changing the new one. So the state "
        "after the padding is not the state after the sequence, and a backward direction that starts in the padding "
        "spoils every step. Nothing complains; the results depend on which neighbours a sequence has in its batch.",
    )
    lengths = torch.tensor([3, 20, 8, 12])
    sequences = random_sequences(lengths.tolist(), C, lesson.device, torch.float32)
    padded, packed = pad_sequence(sequences, batch_first=True), pack_sequence(sequences, enforce_sorted=False)
    model = nn.GRU(C, H, batch_first=True, bidirectional=True).to(lesson.device)
    with torch.no_grad(), full_float32():
        truth, final = pad_packed_sequence(model(packed)[0], batch_first=True)[0], model(packed)[1]
        output = run_backwards_through_padding(model, padded)
    last, real = take_last_of_padded(output[..., :H]), take_last_real(output[..., :H], lengths.to(lesson.device))
    sizes = final[0].norm(dim=1)
    wrong = (last - final[0]).norm(dim=1) / sizes
    table = []
    for i, length in enumerate(lengths.tolist()):
        backwards = (output[i, :length, H:] - truth[i, :length, H:]).norm() / truth[i, :length, H:].norm()
        table.append({"length": length, "padding": int(lengths.max()) - length,
                      "output[:, -1] off by": shown_share(wrong[i].item()),
                      "backward outputs off by": shown_share(backwards.item())})  # fmt: skip
    lesson.table(table)
    longest = int(lengths.argmax())
    lesson.check("output[:, -1] is right for the longest sequence only",
                 wrong[longest] < 1e-5 and all(wrong[i] > 0.01 for i in range(4) if i != longest),
                 f"others off by up to {percent(wrong.max().item())} of their norm")  # fmt: skip
    lesson.check(
        "output at length - 1 is right, forwards", deviation(real, final[0]) < 1e-5, "and so is h_n of a packed batch"
    )
    inside = torch.arange(int(lengths.max())) < lengths[:, None]
    forward_off, backward_off = (deviation(output[..., part][inside], truth[..., part][inside])
                                 for part in (slice(0, H), slice(H, 2 * H)))  # fmt: skip
    lesson.check("forwards the padding spoils no real step", forward_off < 1e-5, "it comes after all of them")
    lesson.check(
        "backwards it spoils them, and no index cures that", backward_off > 1e-3, f"by up to {backward_off:.2f}"
    )
    sentence = sequences[0]
    with torch.no_grad(), full_float32():
        states = [model(nn.functional.pad(sentence, (0, 0, 0, extra)).unsqueeze(0))[1][0] for extra in (0, 5, 20)]
    moved = max((state - states[0]).norm().item() for state in states) / states[0].norm().item()
    lesson.check("the same sequence, other neighbours: another answer", moved > 0.01,
                 f"its final state moves by {percent(moved)}")  # fmt: skip
    lesson.shows(
        f"taken at the wrong place, the final state of these sequences is up to {percent(wrong.max().item())} off. With one "
        "direction you may pad and pick step length - 1. With two directions you pack, or each sequence has to be "
        "reversed by its own length. In a loss, mask the padding as well: ignore_index is there for it."
    )


# What padding costs


def padded_steps(lengths: Sequence[int], batch_size: int) -> int:
    """Steps computed when each batch is filled up to its longest sequence."""
    return sum(len(batch) * max(batch) for batch in batches_of(lengths, batch_size))


def batches_of(lengths: Sequence[int], batch_size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(lengths), batch_size):
        yield lengths[start : start + batch_size]


def show_waste(lesson: Lesson) -> None:
    lesson.section(
        "What padding costs, counted",
        "Each padded step is a full step of work whose result nobody reads. How many there are depends on how the lengths "
        "spread and on who shares a batch. Here 4,096 sequences have lengths as text often has them, many short ones and "
        "a long tail (log-normal, cut at 200), in batches of 64.",
    )
    drawn = torch.exp(3 + 0.8 * torch.randn(4096)).clamp(1, 200).round().int().tolist()
    useful = sum(drawn)
    counts = {
        "padded, in the order drawn": padded_steps(drawn, 64),
        "padded, sorted by length first": padded_steps(sorted(drawn), 64),
        "packed": sum(pack_lengths(batch) for batch in batches_of(drawn, 64)),
    }
    lesson.table(
        [{"batches": way, "steps computed": steps, "of use": percent(useful / steps), "wasted": percent(1 - useful / steps)}
         for way, steps in counts.items()]
    )  # fmt: skip
    plain, by_length, packed = counts.values()
    lesson.check("batches of random lengths waste most of the work", useful / plain < 0.5, percent(1 - useful / plain))
    lesson.check("packing computes each real step and no other", packed == useful, f"{packed:,} steps")
    lesson.check("batches of similar length waste little even padded", useful / by_length > 0.9,
                 f"{percent(1 - useful / by_length)}; shuffle the batches, not the sequences")  # fmt: skip
    batch = drawn[:64]
    width = lesson.pick(full=128, cpu=64, quick=16)
    sequences = random_sequences(batch, width, lesson.device, torch.float32)
    model = nn.GRU(width, width).to(lesson.device)
    inputs = {"padded": pad_sequence(sequences), "packed": pack_sequence(sequences, enforce_sorted=False)}
    with torch.no_grad():
        timings = compare({name: partial(model, x) for name, x in inputs.items()}, lesson.device, rounds=5,
                          budget_s=lesson.pick(full=1.0, quick=0.2))  # fmt: skip
    for name, timing in timings.items():
        lesson.record("GRU forward", timing.median_s * 1e3, "ms", timing, batch=name)
    saved, faster = 1 - sum(batch) / (64 * max(batch)), timings["padded"].median_s / timings["packed"].median_s
    lesson.shows(
        f"padding wasted {percent(1 - useful / plain)} of the work. For the first batch packing leaves out {percent(saved)} of "
        f"the steps, and on this machine nn.GRU is {faster:.1f} times as fast for it, forwards: what remains is the walk "
        f"over {max(batch)} steps, which is as long as the longest sequence whatever the others are. Sort into batches "
        "of similar length first; pack for the right result."
    )


def pack_lengths(lengths: Sequence[int]) -> int:
    """Rows of the packed data of a batch: the sum of its batch_sizes."""
    return len(pack_sequence([torch.zeros(length, 1) for length in lengths], enforce_sorted=False).data)
