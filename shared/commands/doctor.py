"""Find what this machine lacks, each with its cure.

Looks at Python, torch and its build, driver, GPU, compiler, disk, memory and folders. Exit code 0: no problem; 1: at
least one. Without a GPU the lab runs on the CPU, so that is no problem.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime

from shared import checkup, machine, records
from shared.checkup import Finding
from shared.curriculum import command_result
from shared.errors import CannotRun
from shared.terminal import Terminal

SIGNS = {"fine": ("✓", "green"), "notice": ("·", "yellow"), "problem": ("✗", "bold red")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print findings and facts as one JSON object, nothing else")


def run(options: argparse.Namespace) -> int:
    terminal = Terminal(silent=options.json)
    facts = machine.gather_facts(records.ROOT)
    findings = checkup.examine(facts, checkup.MACHINE_CHECKS)
    _print(terminal, findings)  # at once: importing torch takes seconds
    if "torch" in facts.packages:
        for _ in terminal.progress(["torch"], "importing torch"):  # in a terminal, a sign that something happens
            facts = replace(facts, torch=machine.examine_torch())
        of_torch = checkup.examine(facts, checkup.TORCH_CHECKS)
        _print(terminal, of_torch)
        findings += of_torch
    problems = sum(finding.level == "problem" for finding in findings)
    if options.json:
        answer = {"problems": problems, "findings": [asdict(finding) for finding in findings], "facts": asdict(facts)}
        print(json.dumps(answer, default=str), flush=True)
    _keep(problems, facts)
    terminal.line()
    terminal.line(f"{problems} problem{'s' if problems > 1 else ''}: see ✗." if problems else "No problem found.")
    return 1 if problems else 0


def _keep(problems: int, facts: machine.Facts) -> None:
    """Leaves the result for `lab progress`; a folder that cannot be written is one of the findings already."""
    device = (facts.torch.device_name if facts.torch else "") or "CPU"
    result = {"problems": problems, "started": datetime.now(UTC).isoformat(timespec="seconds"), "device": device}
    path = command_result("doctor")
    with suppress(OSError, CannotRun):
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_atomically(path, json.dumps(result).encode())


def _print(terminal: Terminal, findings: Sequence[Finding]) -> None:
    for finding in findings:
        sign, style = SIGNS[finding.level]
        terminal.paragraph(finding.text, "  ", f"{sign} ", style)
        if finding.cure:
            terminal.paragraph(finding.cure, "    ", "  → ")
