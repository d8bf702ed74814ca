"""The commands of lab.py, one module each, and what several of them need: projects by name, paths, references."""

import os
from pathlib import Path

from shared import records
from shared.errors import CannotRun
from shared.records import Record, read_record

COMMANDS = ("doctor", "run", "practice", "progress", "report", "docs")


def choose_projects(text: str | None) -> list[Path]:
    """The project that `text` names by number ("0", "00"), by folder or by the beginning of it; all for None."""
    found = records.projects()
    if not found:
        raise CannotRun(f"{records.ROOT} has no project folder; clone the whole repository")
    if text is None:
        return found
    name = Path(text).name
    if name.isdecimal():
        chosen = [project for project in found if int(project_number(project)) == int(name)]
    else:
        chosen = [project for project in found if name and project.name.startswith(name)]
    if len(chosen) != 1:
        trouble = "is the beginning of several projects" if chosen else "is no project"
        numbers = ", ".join(project_number(project) for project in found)
        raise CannotRun(f"{text!r} {trouble}; name one by its number: {numbers}")
    return chosen


def project_number(project: Path) -> str:
    """pytorch_00_tensor_gpu_basics is "00"."""
    return project.name.split("_")[1]


def project_title(project: Path) -> str:
    """pytorch_00_tensor_gpu_basics is "00 tensor gpu basics"."""
    return " ".join(project.name.split("_")[1:])


def shown(path: Path) -> str:
    """A path as one would type it here: relative to the present folder."""
    try:
        return os.path.relpath(path)
    except ValueError:  # another drive on Windows
        return str(path)


def command_line(arguments: str) -> str:
    """How to call lab.py with `arguments` from the present folder."""
    return f"python {shown(records.ROOT / 'lab.py')} {arguments}"


def reference_records(script: str) -> list[Record]:
    """What other machines measured with `script`, from shared/reference/, in the order of their file names."""
    paths = sorted((records.ROOT / "shared" / "reference").rglob("*.json"))
    return [record for record in map(read_record, paths) if record["script"] == script]
