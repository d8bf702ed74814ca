"""The numbers of a run, for programs (metrics.jsonl) and for TensorBoard, and its events, for people (train.log)."""

import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from pytorch_02_training_optimization.src.tracking.journal import as_json
from shared.errors import CannotRun, Stopped
from shared.records import write_atomically

METRICS = "metrics.jsonl"
EVENTS = logging.getLogger("lab.train")  # what happened when: EVENTS.info(...) from any module of the training


class EventFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A training does not end, or say anything, because a line of its log found the disk full."""


@contextmanager
def events_to(folder: Path, rank: int) -> Iterator[None]:
    """Writes events to train.log; one file for each process, since the one that failed is rarely rank 0."""
    file = EventFile(folder / (f"train-rank{rank}.log" if rank else "train.log"), encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    EVENTS.setLevel(logging.INFO)
    EVENTS.propagate = False  # the terminal has its own words for them
    EVENTS.addHandler(file)
    try:
        yield
    except (CannotRun, Stopped) as end:  # with a message that says it all
        EVENTS.warning("%s", end)
        raise
    except BaseException:
        # As text: a record that kept the exception would keep its frames alive, and with them tensors and workers.
        EVENTS.error("ended by an error\n%s", traceback.format_exc())
        raise
    finally:
        EVENTS.removeHandler(file)
        file.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; one that a kill has cut in the middle is left out."""
    lines = []
    with suppress(FileNotFoundError):
        for text in (folder / METRICS).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                lines.append(json.loads(text, object_hook=with_numbers))
    return lines


def as_text(line: Mapping[str, Any]) -> str:
    """Valid JSON, also where float16's gradients are infinite."""
    numbers = {name: as_json(value) if isinstance(value, float) else value for name, value in line.items()}
    return json.dumps(numbers, allow_nan=False)


def with_numbers(line: dict[str, Any]) -> dict[str, Any]:
    return {name: float(value) if value in ("NaN", "Infinity", "-Infinity") else value for name, value in line.items()}


class Log:
    """Appends a line for each call. Made by rank 0 alone; `after_step`: what is later in the file is dropped first."""

    def __init__(self, folder: Path, after_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import: not before it is wanted

        kept = [line for line in read_metrics(folder) if line["step"] <= after_step]
        write_atomically(folder / METRICS, "".join(f"{as_text(line)}\n" for line in kept).encode())
        self._file: TextIO = (folder / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=after_step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """`kind` groups the curves in TensorBoard: train or validation."""
        print(as_text({"kind": kind, "step": step, **values}), file=self._file, flush=True)
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
