"""Run the scripts of one project, or of all.

They run in the order of the curriculum, with a summary at the end. Exit code 0: all checks hold; 1: a script failed;
2: none could run here; 130: interrupted.
"""

import argparse
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shared.commands import choose_projects, project_number, shown
from shared.curriculum import find_scripts
from shared.errors import CannotRun
from shared.records import read_record
from shared.terminal import Terminal
from shared.units import seconds_text

INTERRUPTED = 130
PATIENCE_S = 5.0  # for a script that was interrupted to say what it has kept


@dataclass(frozen=True)
class Outcome:
    """How one script ended; `checks` is "–" where it left no record."""

    script: Path
    seconds: float
    checks: str
    exit_code: int

    @property
    def words(self) -> str:
        if self.exit_code < 0:
            with suppress(ValueError):
                name = signal.Signals(-self.exit_code).name
                return f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        if self.exit_code == 1 and self.checks == "–":
            return "stopped with an error"
        words = {0: "all checks hold", 1: "a check failed", 2: "cannot run here", INTERRUPTED: "interrupted"}
        return words.get(self.exit_code, f"exit code {self.exit_code}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", nargs="?", help="its number or folder (default: all)")
    parser.add_argument("script", nargs="?", help="only this one of its scripts")
    parser.add_argument("--quick", action="store_true", help="the same path with tiny sizes, a few seconds each")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="where to compute")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write to DIR/NAME instead of results/NAME")


def run(options: argparse.Namespace) -> int:
    scripts = choose_scripts(options.project, options.script)
    terminal = Terminal()
    arguments = ["--device", options.device]
    arguments += ["--quick"] if options.quick else []
    arguments += ["--out", str(options.out.resolve())] if options.out else []
    outcomes = []
    for position, script in enumerate(scripts, 1):
        terminal.rule(f"{shown(script)} ({position} of {len(scripts)})")
        outcome = run_script(script, arguments, options.out)
        outcomes.append(outcome)
        if outcome.exit_code == INTERRUPTED:
            break
    _print_summary(terminal, outcomes, len(scripts))
    codes = [outcome.exit_code for outcome in outcomes]
    if INTERRUPTED in codes:
        return INTERRUPTED
    if any(code not in (0, 2) for code in codes):
        return 1
    return 2 if all(code == 2 for code in codes) else 0


def choose_scripts(project: str | None, script: str | None) -> list[Path]:
    """The scripts to run; CannotRun where there is none of that name."""
    projects = choose_projects(project)
    scripts = [path for each in projects for path in find_scripts(each)]
    if script is not None:
        name = Path(script).stem
        known = ", ".join(path.stem for path in scripts)
        scripts = [path for path in scripts if path.stem == name]
        if not scripts:
            raise CannotRun(f"project {project_number(projects[0])} has no script {name!r}; choose one of: {known}")
    if not scripts:
        raise CannotRun(
            f"there are no scripts in {', '.join(each.name for each in projects)} yet; name another project"
        )
    return scripts


def run_script(script: Path, arguments: list[str], out: Path | None) -> Outcome:
    """Runs `script` in a process of its own, which writes to this process's terminal."""
    folder = (out or script.parents[1] / "results") / script.stem
    before = _versions_of_record(folder)
    start_s = time.perf_counter()
    exit_code = _wait(subprocess.Popen([sys.executable, str(script), *arguments]))
    elapsed_s = time.perf_counter() - start_s
    written = [path for path, version in _versions_of_record(folder).items() if before.get(path) != version]
    return Outcome(script, elapsed_s, _count_checks(written[0]) if written else "–", exit_code)


def _wait(process: "subprocess.Popen[bytes]") -> int:
    """The exit code of `process`. Ctrl-C reaches both processes; the script gets time to say what it has kept."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.terminate()  # it has not heard of the Ctrl-C
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_S)
        finally:
            process.kill()  # nothing to one that has ended
            process.wait()
        return INTERRUPTED


def _versions_of_record(folder: Path) -> dict[Path, int]:
    """When the record, and that of a quick run beside a full-size one, was written; empty where there is none."""
    paths = (folder / "quick" / "result.json", folder / "result.json")
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}


def _count_checks(record: Path) -> str:
    with suppress(CannotRun):
        checks = read_record(record)["checks"]
        return f"{sum(check['holds'] for check in checks)} of {len(checks)}"
    return "–"


def _print_summary(terminal: Terminal, outcomes: list[Outcome], asked: int) -> None:
    terminal.rule("Summary")
    terminal.table(
        [
            {
                "script": outcome.script.stem,
                "time": seconds_text(outcome.seconds),
                "checks held": outcome.checks,
                "outcome": outcome.words,
            }
            for outcome in outcomes
        ]
    )
    good = sum(outcome.exit_code == 0 for outcome in outcomes)
    left = asked - len(outcomes)
    terminal.line(f"All checks hold in {good} of {asked} scripts." + (f" {left} not started." if left else ""))
