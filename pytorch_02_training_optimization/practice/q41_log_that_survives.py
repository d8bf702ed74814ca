"""Build the log of a training that is killed without notice and goes on from its last checkpoint.

One line of JSON for each call. The process may be killed at any moment, also in the middle of a line; what log() has
returned from must be on the disk. After the kill the training goes on from a checkpoint that may be older than the log,
and does some steps a second time: they must not be there twice.
"""

from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of the log, in order; [] where there is no file. A line counts once its line end is on the disk."""
    raise NotImplementedError


class Log:
    """Appends {"step": step, **values} as one line of JSON, UTF-8, for each call of log(). Steps grow from line to line.

    Opening: a line that was cut is removed, and so is every line with a step above after_step, which is the step of the
    checkpoint (0 begins anew). The lines before stay as they are, byte for byte, at every moment: a second kill, during
    the opening, costs nothing. Logging after close() is an error.

    Example: after Log(path, 0).log(1, {"loss": 0.5}) the file holds {"step": 1, "loss": 0.5} and a line end.
    """

    def __init__(self, path: Path, after_step: int) -> None:
        # TODO: how many bytes of the file may stay, and how do you go on behind them?
        raise NotImplementedError

    def log(self, step: int, values: dict[str, float]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
