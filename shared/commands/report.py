"""Write all measurements into one HTML page.

Everything that was measured on this machine, beside the reference machines. The page needs no other file and no
network: pictures are part of it.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from shared import records
from shared.commands import choose_projects, command_line, project_title, reference_records, shown
from shared.curriculum import find_scripts
from shared.errors import CannotRun
from shared.page import Column, bar_html, list_html, picture_html, table_html
from shared.records import Record, make_writable, read_record, write_atomically
from shared.terminal import Terminal
from shared.units import bytes_text, seconds_text, significant

TITLE = "What this machine measured"


class Rendered(NamedTuple):
    """One script's record and its part of the page."""

    project: Path
    record: Record
    html: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write the page (default: results/report.html)"
    )


def run(options: argparse.Namespace) -> int:
    page = options.out or records.ROOT / "results" / "report.html"
    if page.is_dir():
        raise CannotRun(f"{page} is a folder; name a file, such as --out {page / 'report.html'}")
    found, left_out = render_records([path for project in choose_projects(None) for path in find_records(project)])
    terminal = Terminal()
    for line in left_out:
        terminal.paragraph(f"left out: {line}", "  ", "· ", "yellow")
    if not found:
        raise CannotRun(f"nothing has been measured on this machine yet; begin with: {command_line('run 00 --quick')}")
    make_writable(page.parent)
    write_atomically(page, build_page(found).encode())
    terminal.line(f"{len(found)} script{'s' if len(found) > 1 else ''} in {shown(page)}")
    return 0


def find_records(project: Path) -> list[Path]:
    """The last record of each script of `project` that has run here, in the curriculum's order of scripts."""
    order = [script.stem for script in find_scripts(project)]
    found = sorted((project / "results").glob("*/result.json"))
    return sorted(found, key=lambda path: order.index(path.parent.name) if path.parent.name in order else len(order))


def render_records(paths: Sequence[Path]) -> tuple[list[Rendered], list[str]]:
    """The records at `paths` as HTML, and one line for each that cannot be read."""
    found, left_out = [], []
    for path in paths:
        try:
            record = read_record(path)
            html = _script_html(record, path.parent, reference_records(record["script"]))
            found.append(Rendered(path.parents[2], record, html))
        except CannotRun as problem:
            left_out.append(str(problem))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            left_out.append(f"{path} has another form ({error!r}); run its script again")
    return found, left_out


def build_page(found: Sequence[Rendered]) -> str:
    """The whole page, project by project."""
    parts = []
    for position, each in enumerate(found):
        if position == 0 or found[position - 1].project != each.project:
            parts.append(f"<h2>{escape(project_title(each.project))}</h2>")
        parts.append(each.html)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    summary = f'<p class="soft">Made by the lab on {now}.</p>' + _index([each.record for each in found])
    template = Template((Path(__file__).parent / "report.html").read_text(encoding="utf-8"))
    return template.substitute(title=TITLE, summary=summary, body="\n".join(parts))


def _index(shown_records: Sequence[Record]) -> str:
    names = [escape(str(record["script"])) for record in shown_records]
    return table_html("Scripts", [
        Column("script", [f'<a href="#{name}">{name}</a>' for name in names]),
        Column("device", [_text(_device(record)) for record in shown_records]),
        Column("torch", [_text(_versions(record).get("torch")) for record in shown_records]),
        Column("date", [_date(record) for record in shown_records]),
        Column("time", [_seconds(record) for record in shown_records], True),
        Column("checks held", [_held(record) for record in shown_records], True),
    ])  # fmt: skip


def _script_html(record: Record, folder: Path, references: Sequence[Record]) -> str:
    """One script: what ran where, then per section its checks and numbers, then pictures and notes."""
    name = escape(str(record["script"]))
    versions = " · ".join(f"{key} {value}" for key, value in _versions(record).items() if value)
    parts = [f'<h3 id="{name}">{name}</h3>', f'<p class="soft">{_text(_device(record))} · {_date(record)} · '
             f"{_seconds(record)} · {escape(versions)}</p>"]  # fmt: skip
    if record.get("quick"):
        parts.append(
            '<p class="note">A quick run with tiny sizes: it shows that the script works, not what is fast.</p>'
        )
        references = []
    parts.append(f"<p>{_held(record)} checks hold.</p>")
    for section in _sections(record):
        parts.append(f"<h4>{escape(section)}</h4>")
        checks = [check for check in record["checks"] if check["section"] == section]
        measurements = [each for each in record["measurements"] if each["section"] == section]
        parts.append(_checks_html(checks))
        parts.append(_measurements_html(section, measurements, references) if measurements else "")
    parts += [picture_html(folder / Path(name).name) for name in record.get("figures", [])]
    parts.append(list_html(f'<span class="note">·</span> {escape(note)}' for note in record.get("notes", [])))
    return "\n".join(part for part in parts if part)


def _sections(record: Record) -> list[str]:
    """The sections in the order of the run: those of the measurements, with the others where the checks met them."""
    order = list(dict.fromkeys(each["section"] for each in record["measurements"]))
    position = 0
    for section in dict.fromkeys(check["section"] for check in record["checks"]):
        if section not in order:
            order.insert(position, section)
        position = order.index(section) + 1
    return order


def _checks_html(checks: Iterable[Record]) -> str:
    signs = {True: '<span class="good">✓ holds:</span>', False: '<span class="bad">✗ fails:</span>'}
    return list_html(
        f'{signs[bool(check["holds"])]} {escape(check["claim"])} <span class="evidence">– {escape(check["evidence"])}</span>'
        for check in checks
    )


def _measurements_html(section: str, measurements: Sequence[Record], references: Sequence[Record]) -> str:
    """A table: what was measured, its parameters, value, the same on other machines, spread, limit and share."""
    limits = [each.get("limit") or {} for each in measurements]
    columns = [Column("measured", [escape(each["name"]) for each in measurements])]
    for key in dict.fromkeys(key for each in measurements for key in each["params"]):
        values = [each["params"].get(key) for each in measurements]
        is_number = not any(isinstance(value, str) for value in values)
        columns.append(Column(key, [_param(key, value) for value in values], is_number))
    columns.append(Column("value", [_value(each) for each in measurements], True))
    for reference in references:
        head = f"{_device(reference)}\ntorch {str(_versions(reference).get('torch')).partition('+')[0]}"
        theirs = _by_key(reference)
        columns.append(Column(head, [_value(_same(theirs, each)) for each in measurements], True))
    columns.append(Column("20th to 80th percentile", [_spread(each.get("spread")) for each in measurements], True))
    pairs = list(zip(measurements, limits, strict=True))
    columns.append(Column("limit", [_value(limit and {**limit, "unit": each["unit"]}) for each, limit in pairs], True))
    columns.append(Column("share of limit", [bar_html(limit["share"]) if limit else "" for limit in limits], True))
    sources = "; ".join(dict.fromkeys(str(limit.get("source", "unknown")) for limit in limits if limit))
    note = f'<p class="soft">Limit: {escape(sources)}.</p>' if sources else ""
    return table_html(section, [column for column in columns if any(column.cells)]) + note


def _by_key(record: Record) -> dict[Any, Record]:
    """Measurements by section, name, parameters and unit, and (a section may have another title there) without it."""
    found: dict[Any, Record] = {}
    for each in record["measurements"]:
        for section in (each["section"], None):
            found.setdefault(_key(each, section), each)
    return found


def _same(values: Mapping[Any, Record], each: Record) -> Record | None:
    """What the other machine measured under the same name, parameters and unit."""
    return values.get(_key(each, each["section"])) or values.get(_key(each, None))


def _key(each: Record, section: str | None) -> tuple[object, ...]:
    return (section, each["name"], tuple(sorted(each["params"].items())), each["unit"])


def _value(each: Record | None) -> str:
    return escape(f"{significant(each['value'])} {each['unit']}") if each else ""


def _spread(spread: Record | None) -> str:
    return f"{significant(spread['p20'])} to {significant(spread['p80'])} (n = {spread['n']})" if spread else ""


def _param(key: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return bytes_text(value) if key == "bytes" else significant(value)
    return escape(str(value))


def _device(record: Record) -> object:
    return record.get("device", {}).get("name")


def _versions(record: Record) -> dict[str, object]:
    return dict(record.get("versions", {}))


def _date(record: Record) -> str:
    return escape(str(record.get("started", "unknown date"))[:10])


def _seconds(record: Record) -> str:
    return seconds_text(record["seconds"]) if "seconds" in record else "unknown time"


def _held(record: Record) -> str:
    checks = record["checks"]
    return f"{sum(check['holds'] for check in checks)} of {len(checks)}"


def _text(value: object) -> str:
    return "unknown" if value is None else escape(str(value))
