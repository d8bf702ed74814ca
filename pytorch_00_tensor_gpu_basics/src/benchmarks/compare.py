"""Another machine's record beside this one, measurement by measurement."""

from shared.lesson import Lesson
from shared.records import Record
from shared.units import significant


def compare_with_record(lesson: Lesson, other: Record) -> None:
    """A table of what both machines measured; a record of another script has nothing in common and says so."""
    device = other.get("device", {})
    lesson.section(
        "Beside another machine",
        f"The other record: {device.get('name', 'unknown device')}, {other.get('started', 'undated')[:10]}, torch "
        f"{other.get('versions', {}).get('torch', 'unknown')}{', quick run' if other.get('quick') else ''}.",
    )
    theirs = {_key(entry): entry for entry in other["measurements"]}
    rows = []
    for entry in lesson.measurements:
        match = theirs.get(_key(entry))
        if match is None or not match["value"]:
            continue
        params = ", ".join(f"{key} {value}" for key, value in entry["params"].items() if key != "error")
        rows.append(
            {
                "measurement": f"{entry['name']}: {params}"[:48],
                "unit": entry["unit"],
                "here": entry["value"],
                "there": match["value"],
                "here / there": f"{entry['value'] / match['value']:.2f}x",
            }
        )
    if not rows:
        lesson.note("The two records have no measurement in common: sizes differ between --quick, a CPU and a GPU.")
        return
    lesson.table(rows)
    lesson.shows(
        f"{len(rows)} measurements in common. Rates above 1x are faster here; times and latencies below 1x are "
        f"(for example {rows[0]['measurement']}: {significant(float(str(rows[0]['here'])))} {rows[0]['unit']})."
    )


def _key(entry: Record) -> tuple[object, ...]:
    params = {
        key: value for key, value in entry["params"].items() if key not in ("error", "intensity", "attainable_gflops")
    }
    return (
        entry["section"],
        entry["name"],
        entry["unit"],
        tuple(sorted((key, str(value)) for key, value in params.items())),
    )
