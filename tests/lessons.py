"""What the tests of all scripts have in common: a quick run in this process, and what must hold for any lesson."""

import io
import json
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def run_quick(script: ModuleType, folder: Path, *options: str, encoding: str = "utf-8") -> tuple[dict[str, Any], str]:
    """The record and the text of a quick run, which must succeed; its files are in `folder` / its name."""
    name = script.__name__.rpartition(".")[2]
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with redirect_stdout(stream):
        code = script.main(["--quick", "--out", str(folder), *options])
    stream.seek(0)
    text = stream.read()
    assert code == 0, text
    return json.loads((folder / name / "result.json").read_text(encoding="utf-8")), text


def expect_whole(record: dict[str, Any], text: str, sections: Sequence[str], least_checks: int) -> None:
    """All sections are there in order, each with checks that hold and a conclusion, and the page is 100 wide."""
    checks = record["checks"]
    assert list(dict.fromkeys(check["section"] for check in checks)) == list(sections)
    assert [check for check in checks if not check["holds"] or not check["evidence"]] == []
    assert len(checks) >= least_checks
    assert len({check["claim"] for check in checks}) == len(checks)
    assert text.count("What this shows") == len(sections)
    assert max(map(len, text.splitlines())) <= 100


def expect_pictures(record: dict[str, Any], folder: Path, names: Sequence[str]) -> None:
    assert record["figures"] == list(names)
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in names)


def expect_any_seed(script: ModuleType, seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lesson holds with this seed, and its page in a narrow terminal without Unicode; drawings keep their width."""
    monkeypatch.setenv("COLUMNS", "60")
    record, text = run_quick(script, folder, "--seed", str(seed), "--no-plots", "--device", "cpu", encoding="ascii")
    assert record["seed"] == seed
    assert record["figures"] == []
    prose = [line for line in text.splitlines() if not line.startswith("    ")]
    assert [line for line in prose if len(line) > 60 and str(folder) not in line] == []
    replaced = re.search(r"\?[^?\n]*\?", text.partition("-- Result")[0])
    assert not replaced, "a sign that ASCII lacks became a question mark"
