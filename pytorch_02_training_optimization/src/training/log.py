"""The numbers of a run, for programs (metrics.jsonl) and for TensorBoard; a resumed run has no step twice."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from shared.records import write_atomically

METRICS = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; one that a kill has cut in the middle is left out."""
    lines = []
    with suppress(FileNotFoundError):
        for text in (folder / METRICS).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                lines.append(json.loads(text))
    return lines


class Log:
    """Appends a line for each call. Made by rank 0 alone; `after_step`: what is later in the file is dropped first."""

    def __init__(self, folder: Path, after_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import: not before it is wanted

        kept = [line for line in read_metrics(folder) if line["step"] <= after_step]
        write_atomically(folder / METRICS, "".join(f"{json.dumps(line)}\n" for line in kept).encode())
        self._file: TextIO = (folder / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=after_step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """`kind` groups the curves in TensorBoard: train or validation."""
        print(json.dumps({"kind": kind, "step": step, **values}), file=self._file, flush=True)
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
