"""A chapter of experiment_tracking: TensorBoard's event file, read by hand and by TensorBoard's own reader."""

import logging
import math
import random
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.lesson import Lesson
from shared.units import significant

import numpy as np

FRAME_BYTES = 8 + 4 + 4  # length of the record, checksum of the length; after the record its own checksum
SHOWN_BY_TENSORBOARD = 1000  # points of a curve, by default; --samples_per_plugin scalars=0 keeps all


def new_board(folder: Path, **options: Any) -> Any:
    """A SummaryWriter. Its import takes from a tenth of a second to many, where TensorFlow is installed."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), **options)


def event_file(folder: Path) -> Path:
    """The only event file of a folder."""
    (path,) = folder.glob("events.out.tfevents.*")
    return path


def read_board(folder: Path, most_scalars: int = 0) -> Any:
    """All that TensorBoard's reader finds in a folder; 0 keeps every point, another number a random sample."""
    from tensorboard.backend.event_processing import event_accumulator as reader

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every purge, also of one that was asked for
    keep_all = dict.fromkeys(reader.DEFAULT_SIZE_GUIDANCE, 0)
    found = reader.EventAccumulator(str(folder), size_guidance=keep_all | {reader.SCALARS: most_scalars})
    return found.Reload()


def records(content: bytes) -> Iterator[bytes]:
    """The records of an event file, as far as they are whole."""
    position = 0
    while position + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        end = position + FRAME_BYTES + length
        if end > len(content):
            return
        yield content[position + 12 : end - 4]
        position = end


def scalars_by_hand(content: bytes) -> list[tuple[str, int, float]]:
    """Tag, step and value of each scalar in an event file."""
    from tensorboard.compat.proto.event_pb2 import Event

    return [(value.tag, event.step, value.simple_value) for event in map(Event.FromString, records(content))
            for value in event.summary.value]  # fmt: skip


def varint_bytes(number: int) -> int:
    """Protobuf writes seven bits to a byte."""
    return max(1, math.ceil(number.bit_length() / 7))


def scalar_bytes(tag: str, step: int) -> int:
    """What one add_scalar adds to the file: frame, time (9), step, and the summary: its tag and a float32 (5)."""
    name = len(tag.encode())
    value = 1 + varint_bytes(name) + name + 5
    summary = 1 + varint_bytes(value) + value
    step_bytes = 1 + varint_bytes(step) if step else 0  # protobuf leaves a zero out
    return FRAME_BYTES + 9 + step_bytes + 1 + varint_bytes(summary) + summary


def show_scalars(lesson: Lesson) -> None:
    lesson.section(
        "Scalars: what the file holds",
        "add_scalar(tag, value, step) appends one record to an event file: length, checksum, time, step, tag, value. "
        "Nothing is ever changed in it, so it can be read while the training runs and after a kill. What you see in the "
        "browser is a copy of a copy, and it pays to know what each of them leaves out.",
    )
    draw = random.Random(lesson.options.seed)
    logged = [(f"{'train' if step % 2 else 'validation'}/loss", step, draw.gauss(1, 0.5)) for step in range(300)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        board = new_board(folder)
        path = event_file(folder)
        before = path.stat().st_size
        for tag, step, value in logged:
            board.add_scalar(tag, value, step)
        board.flush()
        content, written = path.read_bytes(), path.stat().st_size - before
        counts = (16_777_216, 16_777_217)  # images seen, say
        for step, count in enumerate(counts):
            board.add_scalar("images", count, step)
        for step in range(1200):
            board.add_scalar("spikes", float(step == 600), step)
        board.close()
        own, library = scalars_by_hand(content), read_board(folder)
        sample = read_board(folder, most_scalars=SHOWN_BY_TENSORBOARD).Scalars("spikes")
    tag, step, value = logged[1]
    lesson.table(
        [
            {"part of one record": "frame: length and two checksums", "bytes": FRAME_BYTES},
            {"part of one record": "wall time, float64", "bytes": 9},
            {"part of one record": f"step {step}", "bytes": 1 + varint_bytes(step)},
            {"part of one record": f"tag {tag!r} in a summary", "bytes": scalar_bytes(tag, step) - FRAME_BYTES - 16},
            {"part of one record": "value, float32", "bytes": 5},
            {"part of one record": "together", "bytes": scalar_bytes(tag, step)},
        ]
    )
    predicted = sum(scalar_bytes(tag, step) for tag, step, _ in logged)
    lesson.check("the size of the file is what the parts add up to", written == predicted, f"{written:,} bytes for 300")
    read = {tag: [(event.step, event.value) for event in library.Scalars(tag)] for tag in {tag for tag, *_ in own}}
    same = all([(s, v) for t, s, v in own if t == tag] == points for tag, points in read.items())
    lesson.check("read by hand and by EventAccumulator: the same", same and len(own) == 300, f"{len(own)} points")
    rounded = [(tag, step, float(np.float32(value))) for tag, step, value in logged]
    off = max(abs(a[2] - b[2]) for a, b in zip(own, logged, strict=True))
    lesson.check("what comes back is what was logged, as float32", own == rounded, f"rounded by {off:.0e} at most")
    images = [event.value for event in library.Scalars("images")]
    lesson.check("a count above 16,777,216 loses its last digit", images == [16_777_216.0, 16_777_216.0],
                 f"{counts[1]:,} came back as {images[1]:,.0f}")  # fmt: skip
    wholes = [scalars_by_hand(content[:cut]) for cut in range(len(content) - 500, len(content), 7)]
    lesson.check("cut anywhere, the file gives all whole records", all(part == own[: len(part)] for part in wholes)
                 and len(own) - len(wholes[0]) <= 500 // 40 + 1,
                 f"{len(wholes)} cuts in its last 500 bytes")  # fmt: skip
    lesson.check("TensorBoard draws a sample of a long curve", len(sample) == 1000 and sample[-1].step == 1199,
                 f"{len(sample):,} of 1,200 points, the last one always")  # fmt: skip
    seen = any(event.value for event in sample)
    lesson.shows(
        f"a scalar costs {scalar_bytes(tag, step)} bytes, of which 4 are the number. The spike that was logged at step "
        f"600 is {'still in' if seen else 'missing from'} the sample; a longer curve loses more: of {significant(100_000)} "
        f"points the browser shows 1 in {100_000 // SHOWN_BY_TENSORBOARD}. Log the maximum of an interval where spikes "
        "matter, or start it with --samples_per_plugin scalars=0."
    )
