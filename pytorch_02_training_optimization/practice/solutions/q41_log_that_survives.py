"""The line end is the commit: what stands before it is whole, what stands behind the last one never happened.

Opening counts the bytes of all lines that stay and cuts the file behind them, in place. Nothing is rewritten, so a
second kill finds the same lines again; opening with "w" and writing the lines anew would leave an empty file for a moment,
and that moment will come. The cut removes the half line, to which the next one would be glued, and all steps that the
checkpoint has not seen, which the training is about to do again. flush() hands a line to the operating system, which
outlives the process; only os.fsync() would outlive a power cut, at the price of waiting for the disk.
"""

import json
from pathlib import Path
from typing import Any


def whole_lines(path: Path) -> list[bytes]:
    content = path.read_bytes() if path.exists() else b""
    return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in whole_lines(path)]


class Log:
    def __init__(self, path: Path, after_step: int) -> None:
        kept = [line for line in whole_lines(path) if json.loads(line)["step"] <= after_step]
        self.file = path.open("ab")
        self.file.truncate(len(b"".join(kept)))

    def log(self, step: int, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **values}).encode() + b"\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()
