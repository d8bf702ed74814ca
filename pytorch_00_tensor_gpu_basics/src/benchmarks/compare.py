"""Another machine's record beside this one, measurement by measurement."""

import math
from dataclasses import dataclass
from pathlib import Path

from shared.errors import CannotRun
from shared.lesson import Lesson
from shared.records import Record, read_record

Key = tuple[object, ...]


@dataclass(frozen=True)
class Other:
    """What a comparison needs of another machine's record."""

    origin: str
    values: dict[Key, float]


def read_other(path: Path) -> Other:
    """The record at `path`, of any script; raises CannotRun where it is none or lacks what every record has."""
    record = read_record(path)
    try:
        origin = (
            f"{record['device']['name']}, {record['started'][:10]}, torch {record['versions']['torch']}"
            f"{', quick run' if record['quick'] else ''}"
        )
        return Other(origin, {_key(entry): float(entry["value"]) for entry in record["measurements"]})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CannotRun(f"{path} is no whole record of the lab; name a result.json that a script has written") from None


def compare_with(lesson: Lesson, other: Other) -> None:
    """A table of what both machines measured; a record of another script has nothing in common and says so."""
    lesson.section("Beside another machine", f"The other record: {other.origin}.")
    rows = []
    for entry in lesson.measurements:
        there = other.values.get(_key(entry), 0.0)
        if there == 0 or not math.isfinite(there):
            continue
        params = ", ".join(f"{key} {value}" for key, value in entry["params"].items())
        rows.append(
            {
                "measurement": (f"{entry['name']}: {params}" if params else entry["name"])[:48],
                "unit": entry["unit"],
                "here": entry["value"],
                "there": there,
                "here / there": f"{entry['value'] / there:.2f}x",
            }
        )
    if not rows:
        lesson.note("The two records have no measurement in common: sizes differ between --quick, a CPU and a GPU.")
        return
    lesson.table(rows)
    rates = [row for row in rows if str(row["unit"]).endswith("/s")]
    faster = sum(float(str(row["here"])) > float(str(row["there"])) for row in rates)
    lesson.shows(
        f"{len(rows)} measurements in common; of the {len(rates)} rates among them, {faster} are higher here than there."
    )


def _key(entry: Record) -> Key:
    params = sorted((key, str(value)) for key, value in entry["params"].items())
    return entry["section"], entry["name"], entry["unit"], tuple(params)
