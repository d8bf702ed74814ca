"""What every script of the lab is made of: sections, checks, tables, figures, and the record of what was measured.

    def main(argv: list[str] | None = None) -> int:
        with Lesson(__file__, argv) as lesson:  # options, first line, record; questions and exit code at the end
            first_section(lesson)
        return lesson.exit_code

Exit codes: 0, ran and all checks hold; 1, a check failed; 2, cannot run here, with the remedy; 130, interrupted;
143, ended by SIGTERM in good order. The record appears at the end, whole, as results/NAME/result.json with the figures
beside it. Of several processes that torchrun has started, the one of rank 0 speaks and writes.
"""

import ast
import errno
import importlib.util
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from shared import device as devices
from shared.errors import CannotRun, Stopped
from shared.figures import draw_png
from shared.options import AddOptions, parse_options
from shared.practice import load_questions
from shared.records import ROOT, Record, full_record, make_writable, only_one_run, write_atomically
from shared.terminal import Row, Terminal

import torch

if TYPE_CHECKING:
    from shared.hardware import Limit
    from shared.timing import Timing

T = TypeVar("T")


class Lesson:
    """One run of one script: it takes the options, speaks to the learner, collects evidence and writes the record.

    `script` is the script's `__file__`. `title` heads its help; by default the first line of its docstring does.
    `add_options` may add options of the script's own to the parser; they are then in `options`.
    """

    def __init__(
        self,
        script: str,
        argv: Sequence[str] | None = None,
        *,
        title: str | None = None,
        add_options: AddOptions | None = None,
    ) -> None:
        path = Path(script).resolve()
        self.name, self.project = path.stem, path.parents[1]
        self.options = parse_options(self.name, title or _question(path), add_options, argv)
        self.quick: bool = self.options.quick
        self.exit_code = 0
        self.folder = self._choose_folder()
        self.rank = int(os.environ.get("RANK", "0"))  # torchrun sets it
        self.terminal = Terminal(silent=self.options.json or self.rank > 0)
        self._saved = False
        self._section = ""
        self._checks: list[Record] = []
        self.measurements: list[Record] = []
        self._figures: dict[str, bytes] = {}
        self._notes: list[str] = []
        self.facts: Record = {}  # about the device; a script that learns more of it may add
        self._held = ExitStack()

    # Beginning and end

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException as error:
            if self.__exit__(type(error), error, error.__traceback__):
                raise SystemExit(self.exit_code) from None
            raise
        return self

    def _begin(self) -> None:
        self.device = devices.pick_device(self.options.device)
        if self.rank == 0:
            make_writable(self.folder)
            self._held.enter_context(only_one_run(self.folder))
        self._started, self._start_s = datetime.now(UTC), time.perf_counter()
        devices.seed_everything(self.options.seed)
        crowded = devices.leave_crowded_cores() if self.device.type == "cpu" else None  # before threads are counted
        self.facts |= devices.describe(self.device)
        self._versions = _versions()
        self._first_lines(crowded)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        with self._held:
            if error is not None:
                return self._stop(error)
            try:
                self._finish()
            except (CannotRun, KeyboardInterrupt, OSError) as late:
                if not self._stop(late):
                    raise
            return False

    def _finish(self) -> None:
        self.exit_code = 0 if all(check["holds"] for check in self._checks) else 1
        if self.rank > 0:
            return
        record = self._record()
        text = json.dumps(record, indent=1, allow_nan=False, default=str)  # default: what a script's own options hold
        for file_name, png in self._figures.items():
            write_atomically(self.folder / file_name, png)
        write_atomically(self.folder / "result.json", f"{text}\n".encode())
        self._saved = True
        self._last_lines(record)
        if self.options.json:
            print(json.dumps(record, allow_nan=False, default=str), flush=True)

    def _stop(self, error: BaseException) -> bool:
        """One line for what a user can cause; anything else is a mistake of ours and keeps its stack trace."""
        kept = self.folder / "result.json"
        state = f"{_shown(kept)} is {'written' if self._saved else 'unchanged'}"
        if not kept.exists():
            state = "no record was written"
        if isinstance(error, Stopped):
            self.exit_code, line = error.exit_code, str(error)
        elif isinstance(error, KeyboardInterrupt):
            place = f" in section {self._section!r}" if self._section else ""
            self.exit_code, line = 130, f"interrupted{place}; {state}"
        elif isinstance(error, BrokenPipeError):  # the reader, such as `head`, has what it wanted
            _close_stdout()
            self.exit_code, line = 130, f"the reader of this output is gone; {state}"
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC:  # our own files are written with CannotRun
            _close_stdout()
            self.exit_code, line = 2, f"the disk that this output goes to is full; free some space ({state})"
        elif _is_out_of_memory(error):
            asked = ". ".join(" ".join(str(error).split()).split(". ")[:3]) or "out of memory"
            self.exit_code, line = 2, f"{asked}; try --quick, or close what else uses the device ({state})"
        elif isinstance(error, CannotRun):
            self.exit_code, line = 2, f"{error} ({state})"
        else:
            return False
        if self.rank == 0:
            print(f"{self.name}: {line}", file=sys.stderr)
        elif torch.distributed.is_available() and torch.distributed.is_initialized():
            print(f"{self.name}, rank {self.rank}: {line}", file=sys.stderr)  # before, all ranks meet the same mistake
        return True

    def _choose_folder(self) -> Path:
        """results/NAME, or its subfolder `quick` where a quick run would replace a full-size record."""
        base = self.options.out / self.name if self.options.out else self.project / "results" / self.name
        if self.quick and not self.options.out and full_record(self.project, self.name):
            return base / "quick"
        return base

    def _first_lines(self, crowded: str | None) -> None:
        facts = self.facts
        threads = facts["threads"]
        size = (
            f"{threads} thread{'s' if threads != 1 else ''}"
            if self.device.type == "cpu"
            else f"{facts['memory_gib']} GiB"
        )
        cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        parts = [
            f"{facts['name']} ({self.device.type}, {size})",
            "float32, PyTorch's default, unless a line names another type",
            f"torch {torch.__version__}, {cuda}",
            f"seed {self.options.seed}",
        ]
        self.terminal.paragraph(" · ".join(parts), style="bold")
        losses = {"rich": "plain text", "matplotlib": "no pictures"}
        if self.device.type == "cuda":
            losses["pynvml"] = "no clocks"
        if missing := [name for name in losses if importlib.util.find_spec(name) is None]:
            lost = ", ".join(losses[name] for name in missing)
            self.note(f"Without {', '.join(missing)}: {lost}; pip install -r requirements.txt")
        if crowded:
            self.note(crowded)

    def _last_lines(self, record: Record) -> None:
        say = self.terminal
        failed = [check for check in self._checks if not check["holds"]]
        say.rule("Result")
        say.line(f"{len(self._checks) - len(failed)} of {len(self._checks)} checks hold, {record['seconds']:.0f} s.")
        for check in failed:
            say.check(False, f"{check['section']}: {check['claim']}", check["evidence"])
        say.paragraph(f"Record: {_shown(self.folder / 'result.json')}", "  ", "")
        if self._figures:
            say.paragraph(f"Pictures: {', '.join(self._figures)}, beside it", "  ", "")
        if self.folder.name == "quick":
            say.paragraph("The full-size record was kept; this quick run is beside it.")
        questions = [question for question in load_questions(self.project) if question.script == self.name]
        if questions:
            say.rule("Practice")
            for question in questions:
                stars = "★" * question.stars
                say.paragraph(
                    f"{stars} {question.kind}, {question.minutes} min. {question.text}", "     ", f"{question.id}  "
                )
            number = self.project.name.split("_")[1]
            say.paragraph(
                f"Answer in {_shown(self.project / 'practice')}; check yourself with: python lab.py practice {number}"
            )

    def _record(self) -> Record:
        return {
            "script": self.name,
            "project": self.project.name,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._start_s, 2),
            "quick": self.quick,
            "seed": self.options.seed,
            "options": vars(self.options),
            "device": self.facts,
            "versions": self._versions,
            "checks": self._checks,
            "measurements": self.measurements,
            "figures": list(self._figures),
            "notes": self._notes,
        }

    # What a script says

    def section(self, title: str, text: str) -> None:
        """Opens a section: what is about to be seen, and why it matters in real work."""
        self._section = title
        self.terminal.rule(title)
        self.terminal.paragraph(text)

    def text(self, text: str) -> None:
        """A paragraph between two tables or pictures."""
        self.terminal.blank()
        self.terminal.paragraph(text)

    def drawing(self, text: str) -> None:
        """Lines printed as they stand, indented: a drawing in characters, a code sample, an error message."""
        self.terminal.blank()
        for line in text.splitlines():
            self.terminal.line(f"    {line}".rstrip())
        self.terminal.blank()

    def items(self, items: Mapping[str, object]) -> None:
        """Labels with a text beside each, wrapped under itself: error messages, long numbers, definitions."""
        width = max(map(len, items))
        self.terminal.blank()
        for label, text in items.items():
            self.terminal.paragraph(str(text), " " * (width + 5), f"  {label.ljust(width)}   ")
        self.terminal.blank()

    def table(self, rows: Sequence[Row], best: int | None = None) -> None:
        """Rows of heading → value; the row numbered `best` is marked."""
        self.terminal.table(rows, best)

    def check(self, claim: str, holds: object, evidence: object) -> bool:
        """States a claim with its evidence. A claim that does not hold makes the exit code 1; the script goes on."""
        held = bool(holds)
        self._checks.append({"section": self._section, "claim": claim, "holds": held, "evidence": str(evidence)})
        self.terminal.check(held, claim, str(evidence))
        return held

    def shows(self, text: str) -> None:
        """What the numbers above mean, computed from them so that it cannot contradict them."""
        self.terminal.paragraph(f"What this shows: {text}", "  ")

    def note(self, text: str) -> None:
        """A remark that also goes into the record."""
        self._notes.append(f"{self._section}: {text}" if self._section else text)
        self.terminal.paragraph(text, "  ", "· ", "yellow")

    def skip(self, would_show: str, needs: str) -> None:
        """A part that cannot run here: what it would have shown, and what it needs."""
        self.note(f"Not run here: {would_show} It needs {needs}.")

    def progress(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """`items` under a progress bar with the time left, in a terminal."""
        return self.terminal.progress(items, label, total)

    # What a script measures

    def pick(self, *, full: T, quick: T, cpu: T | None = None) -> T:
        """The sizes for this run: `quick` under --quick, `cpu` on a CPU, else `full`."""
        if self.quick:
            return quick
        return cpu if self.device.type == "cpu" and cpu is not None else full

    def record(self, name: str, value: float, unit: str, timing: "Timing | None" = None,
               limit: "Limit | None" = None, **params: object) -> float:  # fmt: skip
        """Keeps one measurement and returns its value; `limit` is in `unit` times a power of a thousand (TFLOP/s).

        `timing` gives the spread: its percentiles, scaled as `value` is to its median.
        """
        value = value if isinstance(value, int) else float(value)  # a tensor or a NumPy number becomes one of JSON's
        if not all(math.isfinite(number) for number in [value, *params.values()] if isinstance(number, float)):
            raise ValueError(f"{name}: {value} with {params} cannot be recorded")
        spread = None
        if timing is not None:
            # A rate falls when the time grows, so its 20th percentile comes from the slow end.
            ends = timing.p20_s / timing.median_s, timing.p80_s / timing.median_s
            p20, p80 = (value / ends[1], value / ends[0]) if unit.endswith("/s") else (value * ends[0], value * ends[1])
            spread = {"p20": p20, "p80": p80, "n": timing.n, "calls_per_sample": timing.calls_per_sample,
                      "method": timing.method, "threads": timing.threads}  # fmt: skip
        bound = None
        if limit is not None:
            scaled = limit.value / _unit_scale(unit, limit.unit)
            bound = {"value": scaled, "share": value / scaled, "source": limit.source, "kind": limit.kind}
        plain = {key: value if isinstance(value, int | float | str | None) else str(value).removeprefix("torch.")
                 for key, value in params.items()}  # fmt: skip
        self.measurements.append({"section": self._section, "name": name, "params": plain, "value": value,
                                   "unit": unit, "spread": spread, "limit": bound})  # fmt: skip
        return value

    def figure(self, name: str, draw: Callable[..., None], *, rows: int = 1, columns: int = 1) -> None:
        """Makes NAME.png: `draw` is called with one Axes for each panel. Nothing happens where plots are off."""
        if self.options.no_plots or self.rank > 0 or importlib.util.find_spec("matplotlib") is None:
            return
        origin = f"{self.facts['name']} · torch {torch.__version__} · {self._started:%Y-%m-%d}"
        if self.quick:
            origin += " · quick run, tiny sizes"
        self._figures[f"{name}.png"] = draw_png(draw, origin, rows, columns)


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception of its own; the CPU's allocator and MPS raise a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and ("out of memory" in str(error) or "DefaultCPUAllocator" in str(error))


def _unit_scale(unit: str, base: str) -> float:
    """How many `base` units one `unit` is: 1e12 for "TFLOP/s" over "FLOP/s"."""
    prefixes = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    prefix = unit.removesuffix(base)
    if not unit.endswith(base) or prefix not in prefixes:
        raise ValueError(f"a limit in {base} does not bound a value in {unit}")
    return prefixes[prefix]


def _question(script: Path) -> str:
    """The first line of the script's docstring."""
    with suppress(OSError):  # a notebook has no file
        return (ast.get_docstring(ast.parse(script.read_bytes())) or "").partition("\n")[0]
    return ""


def _close_stdout() -> None:
    """What is still in its buffer cannot be written any more; Python would complain of that at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__,
                                       "cuda": torch.version.cuda}  # fmt: skip
    for package in ("numpy", "torchvision", "matplotlib", "triton"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _shown(path: Path) -> str:
    """A path as a learner would type it, from the lab's folder where it lies in there."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
