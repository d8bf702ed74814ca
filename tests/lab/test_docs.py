"""`lab docs`: only what stands between markers changes, byte for byte, and what is stale is named."""

import json
import random

from shared.commands import docs
from shared.errors import CannotRun

import pytest

PROJECT = """# Alpha

<!-- lab:questions -->
<!-- /lab:questions -->

tail <!-- lab:checklist --> old
<!-- /lab:checklist -->
"""
ROOT = "# Lab\n<!-- lab:curriculum -->\nold\n<!-- /lab:curriculum -->\nend without newline"


@pytest.fixture
def readmes(tree):
    """Both READMEs, with empty parts."""
    paths = tree.alpha / "README.md", tree.root / "README.md"
    for path, text in zip(paths, (PROJECT, ROOT), strict=True):
        path.write_bytes(text.encode())
    return paths


def test_parts_are_written_and_then_up_to_date(lab, readmes):
    code, out, err = lab("docs")
    assert (code, err) == (0, "")
    assert out.splitlines() == ["written: pytorch_00_alpha/README.md", "written: README.md"]
    before = [path.read_bytes() for path in readmes]
    assert lab("docs") == (0, "2 READMEs are up to date.\n", "")
    assert lab("docs", "--check") == (0, "2 READMEs are up to date.\n", "")
    assert [path.read_bytes() for path in readmes] == before


def test_check_names_what_is_stale_and_writes_nothing(lab, tree, readmes):
    lab("docs")
    questions = tree.alpha / "practice" / "questions.toml"
    questions.write_text(questions.read_text().replace("Mend cube(x).", "Repair cube(x)."))
    before = readmes[0].read_bytes()
    code, out, _ = lab("docs", "--check")
    assert code == 1
    assert out.splitlines()[0] == "stale: pytorch_00_alpha/README.md"
    assert "stale: README.md" not in out
    assert readmes[0].read_bytes() == before
    lab("docs")
    assert b"Repair cube(x)." in readmes[0].read_bytes()


def test_questions_hide_hints_and_answers(lab, readmes):
    lab("docs")
    text = readmes[0].read_text()
    assert "**q02** · debug · ★★★ · 20 min · `first`\n\nMend cube(x).\n" in text
    assert "<details><summary>Hint</summary>\n\nCount the factors.\n\n</details>" in text
    assert "<details><summary>Answer</summary>\n\nLight from far away has not arrived yet.\n\n</details>" in text
    assert "check it: `python lab.py practice 00 q01`" in text
    assert text.index("q01") < text.index("q02") < text.index("q03")
    assert text.count("<details>") == text.count("</details>") == 3


def test_rows_link_to_their_scripts(lab, readmes):
    lab("docs")
    project, root = (path.read_text() for path in readmes)
    assert "- **00.01** The second thing ([`second`](src/second.py))\n" in project
    assert "- **00.03** A thing that nobody has written (not yet in the lab)\n" in project
    assert "### [pytorch_00_alpha](pytorch_00_alpha/README.md)\n\n| row | topic | script |\n" in root
    assert "| 00.02 | The first thing \\| with a bar | [`first`](pytorch_00_alpha/src/first.py) |\n" in root
    assert "beta" not in root


def test_what_was_not_measured_is_said_so_and_what_was_is_shown(lab, tree, readmes):
    with readmes[0].open("a") as file:
        file.write("<!-- lab:measured first -->\n<!-- /lab:measured first -->\n")
    lab("docs")
    assert (
        "<!-- lab:measured first -->\nNot yet measured on a GPU.\n<!-- /lab:measured first -->"
        in readmes[0].read_text()
    )
    limit = {"value": 10.0, "share": 0.25, "source": "data sheet", "kind": "data sheet"}
    measurements = [
        tree.measurement(limit=limit),
        tree.measurement(limit=limit | {"share": 0.2}, params={"n": 128, "dtype": "float32"}),  # another size, slower
        tree.measurement(limit=limit | {"share": 0.1}, params={"n": 256, "dtype": "float64"}),  # another kind
        tree.measurement("wait | see", 12345.0, unit="µs", params={}, limit=limit),
        tree.measurement("no limit", 1.0, params={}),
    ]
    folder = tree.root / "shared" / "reference"
    folder.mkdir(parents=True)
    (folder / "h200.first.json").write_text(json.dumps(tree.record("first", [], measurements=measurements)))
    (folder / "h200.second.json").write_text(json.dumps(tree.record("second", [], measurements=measurements)))
    assert lab("docs", "--check")[0] == 1
    lab("docs")
    text = readmes[0].read_text(encoding="utf-8")
    assert "Not yet measured" not in text
    assert "**NVIDIA H200 · torch 2.15.0+cu132 · CUDA 13.2 · 2026-11-21**" in text
    assert "| Opening | product (n 256, dtype float32) | 2.50 TFLOP/s | 10.0 TFLOP/s | 25 % |\n" in text
    assert "| Opening | product (n 256, dtype float64) |" in text
    assert "product (n 128" not in text
    assert "| Opening | wait \\| see | 12,345 µs | 10.0 µs | 25 % |\n" in text
    assert "no limit" not in text


def test_everything_outside_the_markers_is_kept_byte_for_byte(tree, readmes):
    generator = random.Random(1)
    alphabet = ["a", " ", "\t", "é", "\u2028", "<!--", "-->", "lab:", "\\", "`", "|", "\x0b", "\n", "  \n"]
    for _ in range(100):
        newline = generator.choice(["\n", "\r\n"])
        outside = [
            "".join(generator.choices(alphabet, k=generator.randrange(40))).replace("\n", newline) for _ in range(3)
        ]
        first = f"<!-- lab:questions -->{generator.choice(['', 'old', newline])}<!-- /lab:questions -->"
        second = f"<!-- lab:checklist -->{newline}old{newline}<!-- /lab:checklist -->"
        before = outside[0] + first + outside[1] + second + outside[2]
        readmes[0].write_bytes(before.encode())
        after = docs.renew(readmes[0], {"questions", "checklist"})
        readmes[0].write_bytes(after)
        assert docs.renew(readmes[0], set()) == after
        text = after.decode()
        assert text.startswith(outside[0] + "<!-- lab:questions -->")
        assert f"<!-- /lab:questions -->{outside[1]}<!-- lab:checklist -->" in text
        assert text.endswith("<!-- /lab:checklist -->" + outside[2])
        if "\r\n" in before:
            assert "\n" not in text.replace("\r\n", "")


BROKEN = {
    "<!-- lab:questions -->\n<!-- lab:checklist --><!-- /lab:checklist -->": "line 2: <!-- lab:checklist -->",
    "<!-- lab:questions -->\nx": "never closed",
    "x\n\n<!-- /lab:questions -->": "line 3: <!-- /lab:questions -->",
    "<!-- lab:questions --><!-- /lab:checklist -->": "needs <!-- /lab:questions -->",
    "<!-- lab:measured first --><!-- /lab:measured second -->": "needs <!-- /lab:measured first -->",
    "<!-- lab:checklist -->\n<!-- /lab:checklist -->": "lacks the part 'questions'",
    "nothing": "lacks the part 'checklist'",
    "<!-- lab:quesions --><!-- /lab:quesions -->": "lab:quesions is no part",
    "<!-- lab:measured --><!-- /lab:measured -->": "measured SCRIPT",
}


@pytest.mark.parametrize(("text", "words"), BROKEN.items())
def test_broken_markers_are_named_and_nothing_is_written(lab, readmes, text, words):
    readmes[0].write_text(text)
    before = readmes[1].read_bytes()
    code, out, err = lab("docs")
    assert (code, out) == (2, "")
    assert str(readmes[0]) in err
    assert words in err
    assert len(err.splitlines()) == 1
    assert readmes[0].read_text() == text
    assert readmes[1].read_bytes() == before


def test_a_missing_readme_is_named(lab, readmes):
    readmes[1].unlink()
    code, _, err = lab("docs")
    assert code == 2
    assert str(readmes[1]) in err


def test_a_readme_that_is_no_text_is_named(readmes):
    readmes[0].write_bytes(b"\xff\xfe")
    with pytest.raises(CannotRun, match="cannot be read"):
        docs.renew(readmes[0], set())


def test_a_project_with_nothing_to_generate_needs_no_marker(lab, tree, readmes):
    (tree.beta / "README.md").write_text("# Beta\n")
    lab("docs")
    assert (tree.beta / "README.md").read_text() == "# Beta\n"


def test_the_real_readmes_can_be_renewed(real_lab):
    code, out, err = real_lab("docs", "--check")
    assert err == ""
    assert code == (1 if "stale:" in out else 0)
