"""Every lesson of the project on a GPU that is not there: no tensor may stay behind on the CPU, and all checks hold."""

import importlib
import json
from pathlib import Path

from shared.records import ROOT
from tests.pretend_cuda import pretended_machine

import pytest

# Dynamo and Lightning ask CUDA itself what it is, and notice that nobody answers.
LOOKS_BEHIND_THE_CURTAIN = {"torch_compile", "lightning_port"}
SOURCES = (ROOT / "pytorch_02_training_optimization" / "src").glob("*.py")
SCRIPTS = sorted({path.stem for path in SOURCES} - LOOKS_BEHIND_THE_CURTAIN)

SMALLER = {"train": ["--epochs", "1", "--train-images", "400"]}

# What only a real GPU can show: it has autocast's own rules, and memory of its own, some of it pinned.
NEEDS_A_REAL_ONE = {
    "pin_memory=True gives batches in pinned memory",
    "the stand-ins are right: real tensors answer the same",
    "autocast gives what the casts by hand gave",
    "each weight and bias is cast once, not once per pass",
    "a step inside the block changes nothing in it",
    "inside: the digits of 16 bits",
    "float16 without a scaler is not",
    "convolution and ReLU: half, plus 16-bit weights",
    "every stack keeps less than in float32",
    "max pooling saves less: it keeps its places as int64",
    "autocast adds a cast for input, weights and biases",
    "the formula is right to the byte",
    "less than a twentieth stays on the device",
    "save_on_cpu leaves little on the GPU",
    "and keeps none of its 8 bytes on the device",
    "every cure for activations lowers this peak",
    "least of all: what waits is all away",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_lesson_holds_on_a_gpu(name: str, tmp_path: Path) -> None:
    script = importlib.import_module(f"pytorch_02_training_optimization.src.{name}")
    with pretended_machine():
        script.main(["--quick", "--device", "cuda", "--no-plots", "--out", str(tmp_path), *SMALLER.get(name, [])])
    record = json.loads((tmp_path / name / "result.json").read_text(encoding="utf-8"))
    assert record["device"]["kind"] == "cuda"
    assert [c for c in record["checks"] if not c["holds"] and c["claim"] not in NEEDS_A_REAL_ONE] == []
