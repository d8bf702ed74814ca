"""The benchmark that kills trainings: twenty kills, stops, damaged checkpoints and a full disk, each with its check."""

import os
import subprocess
import sys
from pathlib import Path

from shared.records import ROOT, read_record
from tests.lessons import expect_whole

import pytest

SECTIONS = [
    "Killed at any moment",
    "Stopped and resumed",
    "Bits that flip, files that end early",
    "A disk that is full in the middle of a save",
    "One of two processes dies",
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its trainings by fork")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of torchrun in /proc")
def test_a_training_survives(tmp_path: Path) -> None:
    """In a process of its own: it forks, and this one may have threads."""
    script = ROOT / "pytorch_02_training_optimization" / "benchmarks" / "survival.py"
    run = subprocess.run(
        [sys.executable, str(script), "--quick", "--out", str(tmp_path)],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True, text=True, check=False, timeout=880,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    expect_whole(read_record(tmp_path / "survival" / "result.json"), run.stdout, SECTIONS, 17)
