"""Find what this machine lacks, each with its cure.

Looks at Python, torch and its build, driver, GPU, compiler, disk, memory and folders. Exit code 0: no problem; 1: at
least one. Without a GPU the lab runs on the CPU, so that is no problem.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from shared import checkup, machine, records
from shared.checkup import Finding
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
    terminal.line()
    terminal.line(f"{problems} problem{'s' if problems > 1 else ''}: see ✗." if problems else "No problem found.")
    return 1 if problems else 0


def _print(terminal: Terminal, findings: Sequence[Finding]) -> None:
    for finding in findings:
        sign, style = SIGNS[finding.level]
        terminal.paragraph(finding.text, "  ", f"{sign} ", style)
        if finding.cure:
            terminal.paragraph(finding.cure, "    ", "  → ")
