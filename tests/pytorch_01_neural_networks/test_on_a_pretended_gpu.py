"""Every lesson of the project on a GPU that is not there: no tensor may stay behind on the CPU, and all checks hold."""

import importlib
import json
from pathlib import Path

from shared.records import ROOT
from tests.pretend_cuda import pretended_machine

import pytest

SCRIPTS = sorted(path.stem for path in (ROOT / "pytorch_01_neural_networks" / "src").glob("*.py"))

# What only a real GPU can show: the CPU's autocast has other rules and no TF32, and attention sees that it is watched.
NEEDS_A_REAL_ONE = {
    "autocast on CUDA refuses BCE of probabilities",
    "attention in eval() and no_grad() counts 0, too",
    "cuDNN is as far off as the rounding by hand",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_lesson_holds_on_a_gpu(name: str, tmp_path: Path) -> None:
    script = importlib.import_module(f"pytorch_01_neural_networks.src.{name}")
    with pretended_machine():
        script.main(["--quick", "--device", "cuda", "--no-plots", "--out", str(tmp_path)])
    record = json.loads((tmp_path / name / "result.json").read_text(encoding="utf-8"))
    assert record["device"]["kind"] == "cuda"
    assert [c for c in record["checks"] if not c["holds"] and c["claim"] not in NEEDS_A_REAL_ONE] == []
