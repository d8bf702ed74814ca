"""Rewrite the generated parts of the READMEs.

Questions, checklists, measured tables and the index of the curriculum stand between two marker comments, lab:NAME and
/lab:NAME. Everything else is left as it is.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from shared import records
from shared.commands import choose_projects, project_number, reference_records, shown
from shared.curriculum import Row, load_rows
from shared.errors import CannotRun
from shared.practice import Question, load_questions
from shared.records import Record, write_atomically
from shared.terminal import Terminal
from shared.units import percent, significant

MARKER = re.compile(r"<!-- (/?)lab:([a-z]+(?: [a-z0-9_]+)?) -->")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name the files that are stale")


def run(options: argparse.Namespace) -> int:
    renewed = {path: renew(path, needed) for path, needed in find_readmes().items()}
    stale = [path for path, text in renewed.items() if path.read_bytes() != text]  # all are read before one is written
    terminal = Terminal()
    for path in stale:
        if not options.check:
            write_atomically(path, renewed[path])
        terminal.line(f"{'stale' if options.check else 'written'}: {shown(path)}")
    if stale and options.check:
        terminal.line("Renew with: python lab.py docs")
        return 1
    if not stale:
        terminal.line(f"{len(renewed)} READMEs are up to date.")
    return 0


def find_readmes() -> dict[Path, set[str]]:
    """The READMEs with generated parts → the parts that each must have, by what its project has."""
    needed: dict[Path, set[str]] = {}
    for project in choose_projects(None):
        parts = {"questions"} if load_questions(project) else set()
        parts |= {"checklist"} if load_rows(project) else set()
        if parts or (project / "README.md").is_file():
            needed[project / "README.md"] = parts
    has_rows = any("checklist" in parts for parts in needed.values())
    if has_rows or (records.ROOT / "README.md").is_file():
        needed[records.ROOT / "README.md"] = {"curriculum"} if has_rows else set()
    return needed


def renew(path: Path, needed: set[str]) -> bytes:
    """The file with its generated parts made anew. Raises CannotRun where a marker is missing or has no partner."""
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CannotRun(f"{path} cannot be read ({error}); restore it with: git checkout -- '{path}'") from error
    newline = "\r\n" if "\r\n" in text else "\n"
    pieces, position, opened = [], 0, ""
    found = set()
    for marker in MARKER.finditer(text):
        is_end, name = bool(marker[1]), marker[2]
        if is_end != bool(opened) or (is_end and name != opened):
            line = text.count("\n", 0, marker.start()) + 1
            expected = f"<!-- /lab:{opened} -->" if opened else f"<!-- lab:{name} --> before it"
            raise CannotRun(f"{path}, line {line}: {marker[0]} has no partner; it needs {expected}")
        if is_end:
            pieces += [newline, newline.join(_generate(path, name).splitlines()), newline]
        else:
            pieces.append(text[position : marker.end()])
            found.add(name)
        opened = "" if is_end else name
        position = marker.start() if is_end else marker.end()
    if opened:
        raise CannotRun(f"{path}: <!-- lab:{opened} --> is never closed; add <!-- /lab:{opened} --> after it")
    if missing := needed - found:
        name = min(missing)
        raise CannotRun(f"{path} lacks the part {name!r}; add two lines: <!-- lab:{name} --> and <!-- /lab:{name} -->")
    return "".join([*pieces, text[position:]]).encode()


def _generate(path: Path, name: str) -> str:
    kind, _, script = name.partition(" ")
    generators: dict[str, Callable[[], str]] = {
        "questions": lambda: questions_text(load_questions(path.parent)),
        "checklist": lambda: checklist_text(load_rows(path.parent)),
        "curriculum": curriculum_text,
    }
    if kind == "measured" and script:
        return measured_text(script)
    if name not in generators:
        raise CannotRun(f"{path}: lab:{name} is no part that can be generated; there are: {', '.join(generators)}, "
                        "measured SCRIPT")  # fmt: skip
    return generators[name]()


def questions_text(questions: list[Question]) -> str:
    """Every question, with its hint or, for a question to think about, its answer folded away."""
    return "\n\n".join(_question_text(question) for question in questions)


def _question_text(question: Question) -> str:
    label, hidden = ("Hint", question.hint) if question.is_checked else ("Answer", question.answer)
    lines = [
        f"**{question.id}** · {question.kind} · {'★' * question.stars} · {question.minutes} min · `{question.script}`",
        "",
        question.text,
        "",
    ]
    if question.is_checked:
        command = f"python lab.py practice {project_number(question.project)} {question.id}"
        lines += [
            f"Write it in [`practice/{question.name}.py`](practice/{question.name}.py); check it: `{command}`",
            "",
        ]
    return "\n".join([*lines, f"<details><summary>{label}</summary>", "", hidden, "", "</details>"])


def checklist_text(rows: list[Row]) -> str:
    """A list of the rows with links to their scripts; `lab progress` ticks them."""
    return "\n".join(f"- **{row.id}** {row.topic} ({_scripts_text(row, 'src')})" for row in rows)


def curriculum_text() -> str:
    """The rows of all projects, a table for each."""
    parts = []
    for project in choose_projects(None):
        if rows := load_rows(project):
            lines = [f"### [{project.name}]({project.name}/README.md)", "", "| row | topic | script |", "|---|---|---|"]
            for row in rows:
                lines.append(_table_row([row.id, row.topic, _scripts_text(row, f"{project.name}/src")]))
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _scripts_text(row: Row, folder: str) -> str:
    if not row.is_in_lab:
        return "not yet in the lab"
    if row.command:
        return f"`python lab.py {row.command}`"
    return ", ".join(f"[`{script}`]({folder}/{script}.py)" for script in row.scripts)


def measured_text(script: str) -> str:
    """What reference machines measured with `script`, a table for each; never a number that was not measured."""
    return "\n\n".join(_measured_table(record) for record in reference_records(script)) or "Not yet measured on a GPU."


def headlines(record: Record) -> list[Record]:
    """Of the measurements that have a limit, the best of each kind: sizes are tried, kinds (words) are told apart."""
    best: dict[tuple[str, ...], Record] = {}
    for each in record["measurements"]:
        if each.get("limit"):
            kinds = [f"{key} {value}" for key, value in each["params"].items() if isinstance(value, str)]
            key = (each["section"], each["name"], *kinds)
            best[key] = max(best.get(key, each), each, key=lambda one: one["limit"]["share"])
    return list(best.values())


def _measured_table(record: Record) -> str:
    versions = record["versions"]
    cuda = f" · CUDA {versions['cuda']}" if versions.get("cuda") else ""
    device = record["device"]
    size = f" ({device['threads']} threads)" if device.get("kind") == "cpu" else ""
    caption = f"{device['name']}{size} · torch {versions['torch']}{cuda} · {record['started'][:10]}"
    lines = [f"**{caption}**", "", "| section | measured | value | limit | share |", "|---|---|--:|--:|--:|"]
    for each in headlines(record):
        params = ", ".join(f"{key} {_param(value)}" for key, value in each["params"].items())
        limit = each.get("limit") or {}
        bound = f"{significant(limit['value'])} {each['unit']}" if limit else "–"
        value = f"{significant(each['value'])} {each['unit']}"
        share = percent(limit["share"]) if limit else "–"
        lines.append(
            _table_row([each["section"], f"{each['name']} ({params})" if params else each["name"], value, bound, share])
        )
    return "\n".join(lines)


def _param(value: object) -> str:
    return significant(value) if isinstance(value, int | float) else str(value)


def _table_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
