"""Show the checklist, ticked by your own runs.

A row of the curriculum is ticked when all its checks held in a full-size run on this machine; quick runs do not count.
Nothing is run.
"""

import argparse
from pathlib import Path

from shared.commands import choose_projects, command_line, project_number, project_title
from shared.curriculum import Evidence, Row, find_evidence, load_rows
from shared.errors import CannotRun
from shared.practice import Question, load_questions, remembered_status
from shared.records import full_record
from shared.terminal import Terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", nargs="?", help="its number or folder (default: all)")


def run(options: argparse.Namespace) -> int:
    projects = [project for project in choose_projects(options.project) if load_rows(project)]
    if not projects:
        raise CannotRun(
            "there is no curriculum.toml with rows here; restore it with: git checkout -- '*curriculum.toml'"
        )
    terminal = Terminal()
    proofs: dict[Row, Evidence] = {}
    answers: dict[Question, bool] = {}
    for project in projects:
        rows = {row: find_evidence(row) for row in load_rows(project)}
        own = {question: remembered_status(question) == "done" for question in _checked_questions(project)}
        terminal.rule(project_title(project))
        for row, evidence in rows.items():
            _print_row(terminal, row, evidence)
        terminal.line(f"Practice: {sum(own.values())} of {len(own)} done")
        proofs |= rows
        answers |= own
    absent = sum(not row.is_in_lab for row in proofs)
    ticked = sum(evidence.ticked for evidence in proofs.values())
    terminal.rule("Total")
    terminal.line(f"Curriculum: {ticked} of {len(proofs)} rows" + (f", {absent} not yet in the lab" if absent else ""))
    terminal.line(f"Practice: {sum(answers.values())} of {len(answers)} questions")
    terminal.line()
    terminal.line(next_step(proofs, answers))
    return 0


def next_step(proofs: dict[Row, Evidence], answers: dict[Question, bool]) -> str:
    """The one thing to do now: per project its scripts, then its questions; failed rows when all else is done."""
    open_rows = [row for row, evidence in proofs.items() if row.is_in_lab and not evidence.ticked]
    for project in dict.fromkeys(row.project for row in proofs):
        number = project_number(project)
        for row in open_rows:
            if row.project == project and row.command:
                return f"Next: {command_line(row.command)}"
            for script in row.scripts if row.project == project else ():
                if full_record(project, script) is None:
                    return f"Next: {command_line(f'run {number} {script}')}"
        for question, is_done in answers.items():
            if question.project == project and not is_done:
                return f"Next: {command_line(f'practice {number} {question.id}')}"
    if open_rows:
        row = open_rows[0]
        return f"Next: {command_line(f'run {project_number(row.project)} {row.scripts[0]}')}"
    return "Everything that is in the lab is done."


def _checked_questions(project: Path) -> list[Question]:
    return [question for question in load_questions(project) if question.is_checked]


def _print_row(terminal: Terminal, row: Row, evidence: Evidence) -> None:
    sign, style = ("☑", "green") if evidence.ticked else ("☐", None)
    terminal.paragraph(row.topic, "         ", f"{sign} {row.id}  ", style)
    terminal.paragraph(evidence.text, "         ", style="dim")
