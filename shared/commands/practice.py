"""Check your answers, and find the next question.

Only answers that changed since the last check are run. Exit code 0: what was asked for is done; 1: not yet.
"""

import argparse
import ast
from pathlib import Path

from shared.commands import choose_projects, command_line, project_number, project_title, shown
from shared.errors import CannotRun
from shared.practice import Question, Result, load_questions, remembered_status, status
from shared.terminal import Terminal

SIGNS = {"done": ("✓", "green"), "not done": ("·", "yellow"), "wrong": ("✗", "bold red")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", nargs="?", help="its number or folder (default: all)")
    parser.add_argument("question", nargs="?", help="one question, such as q03")
    parser.add_argument("--hint", action="store_true", help="show the question's hint")
    parser.add_argument("--solution", action="store_true", help="show a solution, once yours has passed")
    parser.add_argument("--spoil", action="store_true", help="show the solution now")
    parser.add_argument("--again", action="store_true", help="check again, whatever is remembered")


def run(options: argparse.Namespace) -> int:
    projects = choose_projects(options.project)
    terminal = Terminal()
    if options.question:
        questions = load_questions(projects[0])
        return show_question(terminal, find_question(questions, options.question, projects[0]), questions, options)
    if options.hint or options.solution or options.spoil:
        raise CannotRun("a hint or a solution belongs to one question; name it, such as: lab practice 00 q01 --hint")
    asked = {project: questions for project in projects if (questions := load_questions(project))}
    if not asked:
        raise CannotRun(f"there are no practice questions in {', '.join(project.name for project in projects)} yet")
    return show_overview(terminal, asked, options.again)


def find_question(questions: list[Question], text: str, project: Path) -> Question:
    """The question called "q03", "q3", "3" or by its whole name; CannotRun where there is none."""
    name = Path(text).stem
    number = name.removeprefix("q").partition("_")[0]
    wanted = f"q{int(number):02d}" if number.isdecimal() else name
    for question in questions:
        if question.id == wanted:
            return question
    known = ", ".join(question.id for question in questions) or "none yet"
    raise CannotRun(f"project {project_number(project)} has no question {text!r}; it has: {known}")


def show_overview(terminal: Terminal, asked: dict[Path, list[Question]], again: bool) -> int:
    """A table for each project, and the next question to do; 0 where all that can be checked is done."""
    results: dict[Question, Result] = {}
    checked = [question for questions in asked.values() for question in questions if question.is_checked]
    for question in terminal.progress(checked, "checking"):
        results[question] = status(question, again)
    for project, questions in asked.items():
        terminal.rule(f"Practice {project_title(project)}")
        terminal.table([_row(question, results.get(question)) for question in questions])
    done = sum(result.status == "done" for result in results.values())
    terminal.line(f"{done} of {len(results)} questions done.")
    for question, result in results.items():
        if result.status == "wrong":
            terminal.paragraph(f"{question.id}: {result.message}", "  ", "✗ ", "bold red")
    _show_next(terminal, [question for question in checked if results[question].status != "done"])
    return 0 if done == len(results) else 1


def show_question(
    terminal: Terminal, question: Question, questions: list[Question], options: argparse.Namespace
) -> int:
    """One question: its text, how the answer does, and what was asked for beside it."""
    wants_solution = options.solution or options.spoil
    result = status(question, options.again) if question.is_checked else None
    is_done = result is not None and result.status == "done"
    if result and options.solution and not is_done and not options.spoil:
        raise CannotRun(f"the solution of {question.id} is shown once your answer passes; --spoil shows it now")
    terminal.rule(f"{question.id} · {question.kind} · {'★' * question.stars} · {question.minutes} min")
    terminal.paragraph(question.text)
    terminal.line()
    if options.hint:
        terminal.paragraph(f"Hint: {question.hint}", "  ")
        terminal.line()
    if result is None:
        _show_thought(terminal, question, wants_solution)
        return 0
    _show_result(terminal, result)
    if is_done:
        terminal.line()
        terminal.paragraph(f"Why: {_docstring(question.solution_file)}", "  ")
    if wants_solution:
        _show_solution(terminal, question)
    if is_done:
        position = questions.index(question)
        others = [other for other in questions[position + 1 :] + questions[:position] if other.is_checked]
        _show_next(terminal, [other for other in others if remembered_status(other) != "done"])
    else:
        _show_start(terminal, question)
    return 0 if is_done else 1


def _row(question: Question, result: Result | None) -> dict[str, object]:
    return {
        "question": f"{question.id} {' '.join(question.name.split('_')[1:])}",
        "kind": question.kind,
        "stars": "★" * question.stars,
        "min": question.minutes,
        "status": f"{SIGNS[result.status][0]} {result.status}" if result else "think",
    }


def _show_result(terminal: Terminal, result: Result) -> None:
    sign, style = SIGNS[result.status]
    terminal.paragraph(
        f"{result.status}: {result.message}" if result.message else result.status, "  ", f"{sign} ", style
    )


def _show_thought(terminal: Terminal, question: Question, wants_answer: bool) -> None:
    if wants_answer:
        terminal.paragraph(f"Answer: {question.answer}", "  ")
    else:
        terminal.paragraph("A question to think about: write your answer down, then compare it with:")
        terminal.line(f"  {_command(question)} --solution")


def _show_solution(terminal: Terminal, question: Question) -> None:
    terminal.rule(f"Solution: {shown(question.solution_file)}")
    for line in question.solution_file.read_text(encoding="utf-8").splitlines():
        terminal.line(line)


def _show_next(terminal: Terminal, undone: list[Question]) -> None:
    if undone:
        terminal.line()
        terminal.paragraph(f"Next: {undone[0].id}. {undone[0].text}", "  ", "")
        _show_start(terminal, undone[0])


def _show_start(terminal: Terminal, question: Question) -> None:
    """Two commands or paths on lines of their own, so that they can be copied."""
    terminal.line()
    terminal.line(f"  Write your answer in   {shown(question.file)}")
    terminal.line(f"  Check it with          {_command(question)}")


def _command(question: Question) -> str:
    return command_line(f"practice {project_number(question.project)} {question.id}")


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
