"""The contract of a script: exit codes, what is printed where, and the record, whatever becomes of the run.

Most runs are played in this process. What only a process of its own can show (signals, closed pipes, a C locale,
packages that are missing) starts one, and asks it as much as it can answer at once.
"""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent, indent

from shared import device as devices
from shared.errors import CannotRun
from shared.hardware import Limit
from shared.lesson import Lesson
from shared.options import positive_int
from shared.practice import digest
from shared.records import ROOT, only_one_run, read_record
from shared.timing import Timing

import numpy as np
import pytest
import torch

Story = Callable[[Lesson], object]

SCRIPT = '''
"""How long is a piece of string?

This is not its first line.
"""

import sys, time, warnings

sys.path.insert(0, {root!r})

from shared.lesson import Lesson


def main(argv=None):
    with Lesson(__file__, argv) as lesson:
{story}
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
'''
TIMING = Timing((1e-3, 2e-3, 3e-3, 4e-3, 8e-3), 7, "made up", 2)
LIMIT = Limit(50e12, "FLOP/s", "a data sheet", "data sheet")
LONG_TITLE = "A second title, which is longer than a narrow terminal is wide, and so is wrapped"


class Stage:
    """A project outside the lab with one script, and the ways to run it."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "pytorch_97_stage"
        self.script = self.project / "src" / "demo.py"
        self.results = self.project / "results" / "demo"
        self.record_file = self.results / "result.json"
        self.script.parent.mkdir(parents=True)
        self.write_script("pass")

    def write_script(self, story: str) -> None:
        text = SCRIPT.format(root=str(ROOT), story=indent(dedent(story).strip(), " " * 8))
        self.script.write_text(text.lstrip(), encoding="utf-8")

    def play(self, story: Story, *argv: str, **options: object) -> int:
        """Runs `story` in this process as a script would; returns the exit code."""
        try:
            with Lesson(str(self.script), ["--device", "cpu", *argv], **options) as lesson:
                story(lesson)
        except SystemExit as end:
            return int(str(end.code))
        return lesson.exit_code

    def start(self, story: str, *argv: str, **environment: str) -> subprocess.Popen[bytes]:
        """Starts `story` in a process of its own."""
        self.write_script(story)
        command = [sys.executable, str(self.script), "--device", "cpu", *argv]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment, cwd=self.project
        )

    def write_questions(self, text: str) -> None:
        practice = self.project / "practice"
        practice.mkdir()
        (practice / "q01_cut.py").write_text("def cut(): raise NotImplementedError")
        common = f'script = "demo"\nkind = "build"\nstars = 2\nminutes = 4\nhint = "h"\ntext = "{text}"'
        stub = digest(practice / "q01_cut.py")
        (practice / "questions.toml").write_text(
            f'[[question]]\nid = "q01"\nname = "q01_cut"\nstub = "{stub}"\n{common}\n', encoding="utf-8"
        )

    @property
    def record(self) -> dict[str, object]:
        return read_record(self.record_file)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture(autouse=True)
def free_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "leave_crowded_cores", lambda: None)


def everything(lesson: Lesson) -> None:
    lesson.section("First", "What is about to be seen, and why it matters. " * 4)
    lesson.text("A text between two tables. " * 6)
    lesson.drawing("  o--o\n")
    lesson.table([{"n": 64, "TFLOP/s": 1.234, "why": "→ µ" * 3}, {"n": 128, "TFLOP/s": None, "why": ""}], best=0)
    lesson.record("copy", 1.5, "GB/s", TIMING, n=3, dtype=torch.float32, shape=(2, 3), pinned=True, rest=None)
    lesson.check("one is one", torch.tensor(True), 1)
    lesson.shows("that what is counted adds up")
    lesson.section(LONG_TITLE, "Text.")
    lesson.record("product", 12.5, "TFLOP/s", TIMING, LIMIT, n=64)
    lesson.record("parameters", 12, "numbers")
    lesson.note("a remark")
    lesson.skip("The other side.", "two GPUs")
    assert list(lesson.progress(range(3), "steps")) == [0, 1, 2]


def fails(lesson: Lesson) -> None:
    lesson.section("Strings", "Text.")
    lesson.check("a string has an end", False, "neither end of 7 found")
    lesson.check("a string has a colour", True, "it is red")


def only_line(text: str) -> str:
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    return text.strip()


# The record


def test_the_record_is_as_agreed(stage: Stage) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    assert stage.play(lambda lesson: (everything(lesson), lesson.figure("plot", lambda ax: ax.plot([1, 2])))) == 0
    text = stage.record_file.read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    agreed = {"script": str, "project": str, "started": str, "seconds": float, "quick": bool, "seed": int, "options": dict,
              "device": dict, "versions": dict, "checks": list, "measurements": list, "figures": list,
              "notes": list}  # fmt: skip
    assert {key: type(value) for key, value in record.items()} == agreed
    assert (record["script"], record["project"], record["quick"], record["seed"]) == (
        "demo",
        "pytorch_97_stage",
        False,
        0,
    )
    started = datetime.fromisoformat(record["started"])
    assert started.utcoffset().total_seconds() == 0
    assert before <= started <= datetime.now(UTC)
    assert record["options"] == {
        "device": "cpu",
        "seed": 0,
        "quick": False,
        "out": None,
        "json": False,
        "no_plots": False,
    }
    assert {"kind", "name", "memory_gib", "threads"} <= record["device"].keys()
    assert {"python", "torch", "cuda", "numpy"} <= record["versions"].keys()
    assert record["versions"]["torch"] == torch.__version__
    assert record["checks"] == [{"section": "First", "claim": "one is one", "holds": True, "evidence": "1"}]
    assert record["figures"] == ["plot.png"]
    assert record["notes"] == [
        f"{LONG_TITLE}: a remark",
        f"{LONG_TITLE}: Not run here: The other side. It needs two GPUs.",
    ]

    copy, product, parameters = record["measurements"]
    for measurement in record["measurements"]:
        assert list(measurement) == ["section", "name", "params", "value", "unit", "spread", "limit"]
    assert copy["section"] == "First"
    assert copy["params"] == {"n": 3, "dtype": "float32", "shape": "(2, 3)", "pinned": True, "rest": None}
    assert (copy["value"], copy["unit"], copy["limit"]) == (1.5, "GB/s", None)
    assert set(copy["spread"]) == {"p20", "p80", "n", "calls_per_sample", "method", "threads"}
    assert product["limit"] == {"value": 50.0, "share": 0.25, "source": "a data sheet", "kind": "data sheet"}
    assert (parameters["value"], parameters["params"], parameters["spread"]) == (12, {}, None)
    assert isinstance(parameters["value"], int)
    assert sorted(os.listdir(stage.results)) == [".lock", "plot.png", "result.json"]
    assert (stage.results / "plot.png").read_bytes().startswith(b"\x89PNG")


def measured(stage: Stage, *arguments: object, **named: object) -> dict[str, object]:
    assert stage.play(lambda lesson: lesson.record("it", *arguments, **named)) == 0
    return stage.record["measurements"][0]


def test_the_spread_of_a_time_and_of_a_rate(stage: Stage) -> None:
    p20_s, median_s, p80_s = np.quantile(TIMING.samples_s, [0.2, 0.5, 0.8])
    as_time = measured(stage, 1e3 * median_s, "ms", TIMING)["spread"]
    assert (as_time["p20"], as_time["p80"]) == pytest.approx((1e3 * p20_s, 1e3 * p80_s))
    as_rate = measured(stage, 6e9 / median_s / 1e9, "GB/s", TIMING)["spread"]
    assert (as_rate["p20"], as_rate["p80"]) == pytest.approx((6 / p80_s, 6 / p20_s))
    for spread in (as_time, as_rate):
        assert spread["p20"] < spread["p80"]
        assert (spread["n"], spread["calls_per_sample"], spread["method"], spread["threads"]) == (5, 7, "made up", 2)


@pytest.mark.parametrize(
    ("value", "unit", "limit", "bound"),
    [
        (25.0, "TFLOP/s", LIMIT, 50.0),
        (25e3, "GFLOP/s", LIMIT, 50e3),
        (25e12, "FLOP/s", LIMIT, 50e12),
        (1.0, "TB/s", Limit(2e12, "B/s", "a guess", "derived"), 2.0),
        (500.0, "TOP/s", Limit(1e15, "OP/s", "a guess", "measured"), 1000.0),
    ],
)
def test_the_share_of_a_limit(stage: Stage, value: float, unit: str, limit: Limit, bound: float) -> None:
    found = measured(stage, value, unit, limit=limit)["limit"]
    assert (found["value"], found["share"]) == pytest.approx((bound, 0.5))
    assert (found["source"], found["kind"]) == (limit.source, limit.kind)


@pytest.mark.parametrize("unit", ["GB/s", "TOP/s", "s", "tok/s", "XFLOP/s", ""])
def test_a_limit_in_another_unit_is_refused(stage: Stage, unit: str) -> None:
    with pytest.raises(ValueError, match=r"a limit in FLOP/s does not bound a value in"):
        stage.play(lambda lesson: lesson.record("it", 1.0, unit, limit=LIMIT))
    assert not stage.record_file.exists()


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), -float("inf"), torch.tensor(float("nan")), np.float32("inf")]
)
def test_what_is_no_number_is_refused_where_it_arises(stage: Stage, bad: object) -> None:
    with pytest.raises(ValueError, match="cannot be recorded"):
        stage.play(lambda lesson: lesson.record("it", bad, "s"))
    if isinstance(bad, float):
        with pytest.raises(ValueError, match="cannot be recorded"):
            stage.play(lambda lesson: lesson.record("it", 1.0, "s", loss=bad))
    assert not stage.record_file.exists()


@pytest.mark.parametrize("number", [np.float32(2.5), np.float64(2.5), torch.tensor(2.5), torch.tensor([2.5]), 2.5])
def test_numbers_of_other_kinds_become_numbers_of_json(stage: Stage, number: object) -> None:
    assert measured(stage, number, "s", also=np.int64(3))["value"] == 2.5


def test_record_returns_its_value_and_options_of_any_type_fit(stage: Stage) -> None:
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float16)
        parser.add_argument("--sizes", type=positive_int, nargs="+", default=[1, 2])

    def story(lesson: Lesson) -> None:
        assert lesson.record("it", 3.5, "s") == 3.5
        assert lesson.options.dtype == torch.float16

    assert stage.play(story, "--out", str(stage.project / "x"), add_options=add_options) == 0
    options = read_record(stage.project / "x" / "demo" / "result.json")["options"]
    assert (options["dtype"], options["sizes"], options["out"]) == ("torch.float16", [1, 2], str(stage.project / "x"))


# Where it goes


def test_a_quick_run_does_not_replace_a_full_size_record(stage: Stage, capsys) -> None:
    assert stage.play(fails, "--quick") == 1
    assert stage.record["quick"] is True  # there was nothing to keep
    assert stage.play(lambda lesson: None) == 0
    assert stage.record["quick"] is False
    kept = stage.record_file.read_bytes()
    capsys.readouterr()
    assert stage.play(fails, "--quick") == 1
    assert stage.record_file.read_bytes() == kept
    assert read_record(stage.results / "quick" / "result.json")["quick"] is True
    out = " ".join(capsys.readouterr().out.split())
    assert "The full-size record was kept" in out
    assert f"Record: {stage.results / 'quick' / 'result.json'}" in out
    assert stage.play(fails) == 1
    assert stage.record_file.read_bytes() != kept


def test_out_gets_a_folder_for_each_script(stage: Stage, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path / "a" / "b", Path("relative")):
        assert stage.play(everything, "--out", str(out), "--quick") == 0
        assert read_record(tmp_path / out / "demo" / "result.json")["script"] == "demo"
    assert not stage.results.exists()


def test_a_damaged_old_record_is_replaced(stage: Stage) -> None:
    stage.results.mkdir(parents=True)
    stage.record_file.write_text("{")
    assert stage.play(everything, "--quick") == 0
    assert stage.record["script"] == "demo"


def test_pictures_only_where_they_are_wanted(stage: Stage) -> None:
    def story(lesson: Lesson) -> None:
        lesson.figure("plot", lambda ax: pytest.fail("drawn"))

    assert stage.play(story, "--no-plots") == 0
    assert stage.record["figures"] == []
    assert not list(stage.project.rglob("*.png"))


# What is printed


def test_the_first_line_and_the_last_ones(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.write_questions("Cut it in two.")
    assert stage.play(everything, "--seed", "7") == 0
    out, err = capsys.readouterr()
    first = " ".join(out.split("\n\n")[0].split())
    for fact in (devices.device_name(torch.device("cpu")), "cpu", "thread", "float32", torch.__version__, "seed 7"):
        assert fact in first
    last = " ".join(out[out.index("── Result") :].split())
    assert "1 of 1 checks hold" in last
    assert f"Record: {stage.record_file}" in last
    assert "q01 ★★ build, 4 min. Cut it in two." in last
    assert last.endswith("check yourself with: python lab.py practice 97")
    assert "\x1b" not in out
    assert err == ""


@pytest.mark.parametrize("story", [everything, fails])
def test_json_is_one_object_and_nothing_else(stage: Stage, story: Story, capsys) -> None:
    exit_code = stage.play(story, "--json")
    out, err = capsys.readouterr()
    assert json.loads(out) == stage.record
    assert only_line(out)
    assert err == ""
    assert exit_code == (1 if story is fails else 0)


@pytest.mark.parametrize("width", [40, 60, 100])
def test_no_line_is_wider_than_the_terminal(stage: Stage, width: int, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    stage.write_questions("Why is it as long as it is, and what would a shorter one have been good for? " * 3)

    def story(lesson: Lesson) -> None:
        everything(lesson)
        lesson.check("a claim that is longer than what a narrow terminal has room for", False, "evidence " * 12)

    assert stage.play(story) == 1
    stage.play(lambda lesson: lesson.section("Quick", "Text."), "--quick")  # beside a full-size record
    too_wide = [line for line in capsys.readouterr().out.splitlines() if len(line) > width]
    assert all(" " not in line.strip() for line in too_wide), too_wide


def test_help_begins_with_the_first_line_of_the_docstring(stage: Stage, capsys) -> None:
    for title, expected in ((None, "How long is a piece of string?"), ("Another title.", "Another title.")):
        assert stage.play(everything, "--help", title=title) == 0
        out = capsys.readouterr().out
        assert expected in out
        assert "not its first line" not in out


def test_crowded_cores_are_noted_and_the_threads_are_those_that_ran(stage, same_threads, monkeypatch) -> None:
    def leave() -> str:
        torch.set_num_threads(1)
        return "The cores are busy."

    torch.set_num_threads(2)
    monkeypatch.setattr(devices, "leave_crowded_cores", leave)
    assert stage.play(everything) == 0
    assert stage.record["device"]["threads"] == 1
    assert "The cores are busy." in stage.record["notes"]


# What a run is given


def test_sizes_follow_quick_and_device(stage: Stage) -> None:
    def story(expected: int, full_only: int) -> Story:
        def play(lesson: Lesson) -> None:
            assert lesson.pick(full=1, cpu=2, quick=3) == expected
            assert lesson.pick(full=1, quick=3) == full_only
            lesson.device = torch.device("cuda")
            assert lesson.pick(full=1, cpu=2, quick=3) == full_only

        return play

    assert stage.play(story(2, 1)) == 0
    assert stage.play(story(3, 3), "--quick") == 0
    assert stage.play(lambda lesson: lesson.check("zero is a size", lesson.pick(full=1, cpu=0, quick=3) == 0, "")) == 0


def test_the_same_seed_gives_the_same_numbers(stage: Stage) -> None:
    def drawn(*argv: str) -> float:
        assert stage.play(lambda lesson: lesson.record("it", torch.rand(()).item() + np.random.rand(), ""), *argv) == 0
        return stage.record["measurements"][0]["value"]

    assert drawn() == drawn("--seed", "0") == drawn()
    assert drawn("--seed", "1") != drawn()


# When it does not go well


@pytest.fixture
def old_record(stage: Stage) -> Iterator[bytes]:
    """A full-size record of an earlier run, which the test must leave as it is."""
    assert stage.play(everything) == 0
    old = stage.record_file.read_bytes()
    yield old
    assert stage.record_file.read_bytes() == old
    assert sorted(os.listdir(stage.results)) == [".lock", "result.json"]
    with only_one_run(stage.results):  # nobody holds it any more
        pass


def test_a_failing_check_is_named_and_the_rest_still_runs(stage: Stage, capsys) -> None:
    assert stage.play(fails) == 1
    out, err = capsys.readouterr()
    assert err == ""
    here, result = out.split("── Result")
    for part in (here, result):
        line = next(line for line in part.splitlines() if line.startswith("✗"))
        assert "a string has an end" in line
        assert "neither end of 7 found" in line
    assert "✓ a string has a colour" in here
    assert "1 of 2 checks hold" in result
    assert [check["holds"] for check in stage.record["checks"]] == [False, True]


def raises(error: BaseException) -> Story:
    def story(lesson: Lesson) -> None:
        lesson.section("Strings", "Text.")
        lesson.check("a string has an end", True, "it has two")
        raise error

    return story


CUDA_OUT_OF_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.25 GiB of which 5.50 GiB is "
    "free. Including non-PyTorch memory, this process has 73.00 GiB memory in use. Of the allocated memory"
)


@pytest.mark.parametrize("json_option", [[], ["--json"]])
@pytest.mark.parametrize(
    ("error", "exit_code", "sentence"),
    [
        (CannotRun("there is no string here; buy one"), 2, "there is no string here; buy one"),
        (KeyboardInterrupt(), 130, "interrupted in section 'Strings'"),
        (CUDA_OUT_OF_MEMORY, 2, "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.25 GiB "
         "of which 5.50 GiB is free; try --quick"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB).\nTried"), 2, "MPS backend out of memory (MPS alloc"),
        (MemoryError(), 2, "out of memory; try --quick"),
    ],
)  # fmt: skip
def test_what_is_nobody_s_bug_is_one_line(stage, old_record, error, exit_code, sentence, json_option, capsys) -> None:
    capsys.readouterr()
    assert stage.play(raises(error), *json_option) == exit_code
    out, err = capsys.readouterr()
    line = only_line(err)
    assert line.startswith(f"demo: {sentence}")
    assert f"{stage.record_file} is unchanged" in line
    assert "── Result" not in out
    if json_option:
        assert out == ""


def test_memory_that_the_cpu_really_does_not_have(stage: Stage, old_record: bytes, capsys) -> None:
    assert stage.play(lambda lesson: torch.empty(2**52)) == 2
    line = only_line(capsys.readouterr().err)
    assert f"you tried to allocate {4 * 2**52} bytes" in line
    assert "try --quick" in line


def test_without_an_old_record_the_line_says_that_there_is_none(stage: Stage, capsys) -> None:
    assert stage.play(raises(KeyboardInterrupt())) == 130
    assert only_line(capsys.readouterr().err) == "demo: interrupted in section 'Strings'; no record was written"
    assert os.listdir(stage.results) == [".lock"]


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("7"), RuntimeError("shapes do not match"), AssertionError(), SystemExit(3)]
)
def test_a_bug_keeps_its_trace(stage: Stage, old_record: bytes, error: BaseException, capsys) -> None:
    capsys.readouterr()
    with pytest.raises(type(error)) as caught, Lesson(str(stage.script), ["--device", "cpu"]) as lesson:
        raises(error)(lesson)
    assert caught.value is error
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", ["tempfile.mkstemp", "os.fsync", "os.replace"])
def test_a_full_disk_at_the_end(stage: Stage, old_record: bytes, place: str, monkeypatch, capsys) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def story(lesson: Lesson) -> None:
        everything(lesson)
        patch.setattr(f"shared.records.{place}", fail)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        assert stage.play(story) == 2
    line = only_line(capsys.readouterr().err)
    assert "could not be written (No space left on device)" in line
    assert "--out DIR" in line


def test_an_interruption_while_the_result_is_printed(stage: Stage, monkeypatch, capsys) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Lesson, "_last_lines", interrupt)
    assert stage.play(fails) == 130
    assert f"{stage.record_file} is written" in only_line(capsys.readouterr().err)
    assert [check["holds"] for check in stage.record["checks"]] == [False, True]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CUDA_OUT_OF_MEMORY])
def test_trouble_before_the_first_line(stage: Stage, old_record: bytes, error, monkeypatch, capsys) -> None:
    capsys.readouterr()

    def fail(device: torch.device) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(devices, "describe", fail)
        assert stage.play(everything) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "is unchanged" in only_line(err)


def add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=positive_int, default=8, help="rows")


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--unknown"], "--unknown"),
        (["--size", "0"], "'0' is not a whole number above 0"),
        (["--device", "tpu"], "tpu"),
        (["--device", "cuda"], "--device cpu runs without one"),
        (["--device", "mps"], "--device auto"),
        (["--out", "/dev/null/x"], "choose another folder with --out DIR"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(stage, argv, complaint: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert stage.play(everything, *argv, "--json", add_options=add_size) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in only_line(err)
    assert not stage.results.exists()


def test_a_run_within_a_run_is_refused(stage: Stage, capsys) -> None:
    exit_codes = []
    assert stage.play(lambda lesson: exit_codes.append(stage.play(everything))) == 0
    assert exit_codes == [2]
    assert "another run is using" in only_line(capsys.readouterr().err)


# In a process of its own


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_an_interruption_and_a_second_run_in_the_meantime(stage: Stage, old_record: bytes, capsys) -> None:
    capsys.readouterr()
    with stage.start("lesson.section('Waiting', 'Text.'); time.sleep(60)") as first:
        assert first.stdout is not None
        while b"Waiting" not in first.stdout.readline():
            assert first.poll() is None

        assert stage.play(everything) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert f"another run is using {stage.results}" in only_line(err)

        first.send_signal(signal.SIGINT)
        err = first.communicate()[1].decode()
    assert first.returncode == 130
    assert only_line(err) == f"demo: interrupted in section 'Waiting'; {stage.record_file} is unchanged"


@pytest.mark.skipif(os.name == "nt", reason="pipes as POSIX has them")
def test_a_reader_that_has_seen_enough(stage: Stage) -> None:
    story = "for _ in range(2000): lesson.section('More', 'than a pipe holds. ' * 20)"
    with stage.start(story) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        err = process.communicate()[1].decode()
    assert process.returncode == 130
    assert only_line(err) == "demo: the reader of this output is gone; no record was written"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_output_onto_a_full_disk(stage: Stage) -> None:
    stage.write_script("lesson.check('a claim', True, 'seen')")
    command = [sys.executable, str(stage.script), "--device", "cpu"]
    with open("/dev/full", "wb") as full:
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=stage.project, check=False)
    assert process.returncode == 2
    said = only_line(process.stderr.decode())
    assert said == "demo: the disk that this output goes to is full; free some space (no record was written)"


def test_another_error_at_the_end_keeps_its_trace(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OSError that nobody foresaw is not swallowed, whatever else is caught there."""

    def refuse(self: Lesson, record: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Lesson, "_last_lines", refuse)
    stage.write_script("lesson.check('a claim', True, 'seen')")
    with pytest.raises(OSError, match="Input/output error"), Lesson(str(stage.script), ["--device", "cpu"]):
        pass


def test_a_c_locale_and_sixty_columns(stage: Stage) -> None:
    stage.write_questions("Warum größer → ∞? " * 8)
    story = """
        lesson.section("Größe n³ → ∞", "Ein längerer Text – mit µs und ✓. " * 5)
        lesson.table([{"größe": "½ 日本", "µs": 1.5 + i, "share of the peak": "97 %", "→": "→" * 9} for i in range(3)], best=1)
        lesson.check("2n³ → ∞", False, "3 µs – 4 µs")
        lesson.note("…")
    """
    process = stage.start(story, LC_ALL="C", LANG="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0", COLUMNS="60")
    out, err = process.communicate()
    assert (process.returncode, err) == (1, b"")
    lines = out.decode("ascii").splitlines()
    assert [line for line in lines if len(line) > 60 and " " in line.strip()] == []
    assert any("x 2n3 > ?" in line for line in lines)
    assert "\x1b" not in out.decode()
    assert stage.record["checks"][0]["claim"] == "2n³ → ∞"


def test_json_with_a_warning_and_a_failing_check(stage: Stage) -> None:
    process = stage.start("warnings.warn('careful'); lesson.check('it holds', False, 'it does not')", "--json")
    out, err = process.communicate()
    assert process.returncode == 1
    assert only_line(out.decode())
    assert json.loads(out) == stage.record
    assert b"UserWarning: careful" in err


def without(folder: Path, *packages: str) -> str:
    """A PYTHONPATH on which Python does not find `packages`, as where they were never installed."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find_spec = PathFinder.find_spec\n"
        "def find_some(name, *more):\n"
        f"    return None if name.partition('.')[0] in {packages!r} else find_spec(name, *more)\n"
        "PathFinder.find_spec = find_some\n"
    )
    return str(folder)


def test_without_rich_and_matplotlib(stage: Stage, tmp_path: Path) -> None:
    story = """
        lesson.section("First", "Text.")
        lesson.table([{"n": 1, "share": "97 %"}])
        lesson.check("it holds", True, "it does")
        lesson.figure("plot", lambda ax: ax.plot([1, 2]))
        list(lesson.progress(range(3), "steps"))
    """
    process = stage.start(story, PYTHONPATH=without(tmp_path / "path", "rich", "matplotlib"))
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    lines = out.decode().splitlines()
    assert (
        len([line for line in lines if "rich, matplotlib" in line and "pip install -r requirements.txt" in line]) == 1
    )
    assert any(line.startswith("✓ it holds") for line in lines)
    assert stage.record["figures"] == []
    assert sorted(os.listdir(stage.results)) == [".lock", "result.json"]


def test_without_torch(stage: Stage, tmp_path: Path) -> None:
    process = stage.start("pass", "--json", PYTHONPATH=without(tmp_path / "path", "torch"))
    out, err = process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert "PyTorch is not installed" in only_line(err.decode())
    assert "pip install -r requirements.txt" in err.decode()
