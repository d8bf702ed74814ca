"""A logger in twenty lines: one line of JSON for each call, on the disk when the call returns, readable after a kill."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
Line = dict[str, Any]


def as_json(value: float) -> float | str:
    """JSON has no NaN and no infinity; a loss that is one must not be lost, and float("NaN") reads it back."""
    return value if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")


def read_journal(path: Path) -> list[Line]:
    """The whole lines of a file, step and numbers; a line that a kill has cut is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with suppress(ValueError):
            line = json.loads(text)
            lines.append({key: value if key == "step" else float(value) for key, value in line.items()})
    return lines


def encode(line: Line) -> str:
    """One line of the file, without its end."""
    return json.dumps({key: as_json(value) for key, value in line.items()}, allow_nan=False)


class Journal:
    """Appends to `path`. A run that goes on after a checkpoint names its step: what is later in the file is dropped."""

    def __init__(self, path: Path, after_step: float = math.inf) -> None:
        kept = [line for line in read_journal(path) if line["step"] <= after_step]
        new = path.with_suffix(".new")
        new.write_text("".join(f"{encode(line)}\n" for line in kept), encoding="utf-8", newline="\n")
        os.replace(new, path)  # at every moment there is one whole file
        self.path, self._file = path, path.open("a", encoding="utf-8", newline="\n")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(f"{encode({'step': step, **values})}\n")
        self._file.flush()  # to the operating system, which outlives us; only fsync would outlive the machine

    def close(self) -> None:
        self._file.close()
