"""Every lesson of the project on a GPU that is not there: no tensor may stay behind on the CPU, and all checks hold."""

import importlib
from pathlib import Path

from shared.records import ROOT
from tests.lessons import run_quick
from tests.pretend_cuda import pretended_machine

import pytest

SCRIPTS = sorted(path.stem for path in (ROOT / "pytorch_01_neural_networks" / "src").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_lesson_holds_on_a_gpu(name: str, tmp_path: Path) -> None:
    script = importlib.import_module(f"pytorch_01_neural_networks.src.{name}")
    with pretended_machine():
        record, _ = run_quick(script, tmp_path, "--device", "cuda", "--no-plots")
    assert record["device"]["kind"] == "cuda"
    assert [check for check in record["checks"] if not check["holds"]] == []
