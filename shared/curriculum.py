"""The rows of a project's curriculum.toml, and whether the learner's own records prove them.

    [[row]]
    id = "00.24"
    topic = "CPU-GPU transfer cost"
    scripts = ["gpu_benchmarks"]
    sections = ["Transfers"]     # optional: the sections of these scripts that teach the row

    command = "doctor"           # in place of scripts: a command of lab.py teaches the row

A row without a script, or whose script does not exist, is not yet in the lab.
"""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from shared import records
from shared.errors import CannotRun
from shared.records import Record, full_record


@dataclass(frozen=True)
class Row:
    """One topic that the lab teaches."""

    project: Path
    id: str  # "00.24"
    topic: str
    scripts: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    command: str = ""  # taught by a command of lab.py, such as doctor

    @property
    def is_in_lab(self) -> bool:
        return bool(self.command) or (
            bool(self.scripts) and all((self.project / "src" / f"{name}.py").is_file() for name in self.scripts)
        )


@dataclass(frozen=True)
class Evidence:
    """Whether a row is proved by full-size runs on this machine; `text` names the proof, or what is missing."""

    ticked: bool
    text: str


def curriculum_file(project: Path) -> Path:
    return project / "curriculum.toml"


def load_rows(project: Path) -> list[Row]:
    """The rows of `project`, in order; an empty list where it has no curriculum.toml. Raises CannotRun."""
    path = curriculum_file(project)
    if not path.is_file():
        return []
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["row"]
        return [
            Row(
                project,
                entry["id"],
                " ".join(entry["topic"].split()),
                tuple(name for name in entry.get("scripts", []) if name),
                tuple(entry.get("sections", [])),
                entry.get("command", ""),
            )
            for entry in entries
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CannotRun(f"{path} cannot be read ({error}); each [[row]] needs an id and a topic") from error


def find_scripts(project: Path) -> list[Path]:
    """The scripts of `project` in the order in which its curriculum meets them, the others after those."""
    met = list(dict.fromkeys(name for row in load_rows(project) for name in row.scripts))
    paths = sorted(path for path in (project / "src").glob("*.py") if not path.name.startswith("_"))
    return sorted(paths, key=lambda path: met.index(path.stem) if path.stem in met else len(met))


def find_evidence(row: Row) -> Evidence:
    """Ticked where every check in the row's sections holds, and each section (or script, without sections) has one."""
    if not row.is_in_lab:
        return Evidence(False, "not yet in the lab")
    if row.command:
        return _command_evidence(row.command)
    found = {name: full_record(row.project, name) for name in row.scripts}
    not_run = [name for name, record in found.items() if record is None]
    proofs = {name: _checks(record, row.sections) for name, record in found.items() if record}
    checks = [check for own in proofs.values() for check in own]
    failed = [check for check in checks if not check["holds"]]
    if row.sections:
        unseen = [title for title in row.sections if title not in {check["section"] for check in checks}]
    else:
        unseen = [name for name, own in proofs.items() if not own]
    if failed:
        return Evidence(False, f"{len(failed)} of {len(checks)} checks fail: {failed[0]['claim']}")
    if not_run and (unseen or not row.sections):
        return Evidence(False, f"no full-size run of {', '.join(not_run)} yet")
    if unseen:
        return Evidence(False, f"nothing was checked on this machine in {', '.join(unseen)}")
    latest = max((record for record in found.values() if record), key=lambda record: str(record.get("started")))
    held = "1 check holds" if len(checks) == 1 else f"{len(checks)} checks hold"
    names = ", ".join(name for name, own in proofs.items() if own)
    device = latest.get("device", {}).get("name", "unknown device")
    return Evidence(True, f"{names}: {held} · {str(latest.get('started'))[:10]} · {device}")


def command_result(command: str) -> Path:
    """Where a command that teaches a row leaves {"problems", "started", "device"} of its last run."""
    return records.ROOT / "results" / f"{command}.json"


def _command_evidence(command: str) -> Evidence:
    try:
        result = json.loads(command_result(command).read_text(encoding="utf-8"))
        problems, started, device = result["problems"], str(result["started"])[:10], result["device"]
    except (OSError, ValueError, KeyError, TypeError):
        return Evidence(False, f"lab.py {command} has not run on this machine yet")
    if problems:
        return Evidence(False, f"lab.py {command} found {problems} problem{'s' if problems > 1 else ''} · {started}")
    return Evidence(True, f"lab.py {command} found no problem · {started} · {device}")


def _checks(record: Record, sections: tuple[str, ...]) -> list[Record]:
    return [check for check in record["checks"] if not sections or check["section"] in sections]
