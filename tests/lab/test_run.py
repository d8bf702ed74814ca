"""`lab run`: order, choice, streaming, summary, exit codes, interruption."""

import json
import os
import signal
import sys
import time

from shared.commands import run
from shared.curriculum import find_scripts

import pytest


def names(text):
    """The scripts that have run, in order, by what each prints first."""
    return [line.split()[2].rstrip(",") for line in text.splitlines() if line.startswith("this is")]


def is_gone(process_id):
    """Whether the process ends within three seconds."""
    for _ in range(60):
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_scripts_run_in_the_order_of_the_curriculum(lab, tree):
    (tree.alpha / "src" / "_shared_piece.py").write_text("raise SystemExit('not a script')")
    tree.write_script(tree.alpha, "another")
    code, out, err = lab("run", "00")
    assert (code, err) == (0, "")
    assert names(out) == ["second", "first", "another"]
    assert "All checks hold in 3 of 3 scripts." in out


def test_without_a_project_all_run(lab):
    code, out, _ = lab("run")
    assert code == 0
    assert names(out) == ["second", "first", "third"]


@pytest.mark.parametrize("typed", ["first", "first.py", "src/first.py", "pytorch_00_alpha/src/first.py"])
def test_one_script_can_be_named_in_many_ways(lab, typed):
    assert names(lab("run", "0", typed)[1]) == ["first"]


def test_options_are_handed_on(lab, tree, tmp_path):
    _, out, _ = lab("run", "01", "--quick", "--device", "cpu", "--out", str(tmp_path / "elsewhere"))
    assert "this is third, quick=True, device=cpu" in out
    assert json.loads((tmp_path / "elsewhere/third/result.json").read_text())["quick"]
    assert not (tree.beta / "results").exists()


def test_the_summary_says_how_each_script_ended(lab, tree):
    tree.write_script(tree.alpha, "first", [tree.check(), tree.check(False)], code=1)
    tree.write_script(tree.alpha, "second", without_record=True, extra="raise ValueError('a mistake of ours')")
    tree.write_script(tree.beta, "third", without_record=True, code=2)
    code, out, err = lab("run")
    assert code == 1
    assert "a mistake of ours" in err
    summary = {line.split()[0]: line for line in out.split("Summary")[1].splitlines() if line.startswith("  ")}
    assert "   1 of 2   " in summary["first"]
    assert summary["first"].endswith("a check failed")
    assert summary["second"].endswith("stopped with an error")
    assert summary["third"].endswith("cannot run here")
    assert "All checks hold in 0 of 3 scripts." in out


@pytest.mark.parametrize(("codes", "expected"), [((0, 2), 0), ((2, 2), 2), ((0, 1), 1), ((2, 1), 1), ((0, 77), 1)])
def test_exit_code(lab, tree, codes, expected):
    for name, code in zip(("first", "second"), codes, strict=True):
        tree.write_script(tree.alpha, name, code=code)
    assert lab("run", "00")[0] == expected


def test_an_old_record_does_not_count_as_this_runs(lab, tree):
    tree.write_script(tree.beta, "third", [tree.check()] * 4)
    lab("run", "01")
    tree.write_script(tree.beta, "third", without_record=True, extra="raise ValueError('x')")
    code, out, _ = lab("run", "01")
    assert code == 1
    assert "4 of 4" not in out
    assert "stopped with an error" in out


def test_a_quick_run_beside_a_full_record_is_read_from_its_own_folder(lab, tree):
    tree.write_script(tree.beta, "third", [tree.check()] * 4)
    lab("run", "01")
    quick_record = """
folder = folder / "quick"
folder.mkdir()
(folder / "result.json").write_text(json.dumps({"script": "third", "checks": [], "measurements": []}))
"""
    tree.write_script(tree.beta, "third", without_record=True, extra=quick_record)
    assert "0 of 0" in lab("run", "01", "--quick")[1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_script_is_named_by_its_signal(lab, tree):
    tree.write_script(tree.beta, "third", without_record=True, extra="import os; os.kill(os.getpid(), 9)")
    code, out, _ = lab("run", "01")
    assert code == 1
    assert "ended by SIGKILL (out of memory?)" in out


def test_unknown_script_is_refused_with_the_known_ones(lab):
    assert lab("run", "00", "fourth") == (
        2,
        "",
        "lab: project 00 has no script 'fourth'; choose one of: second, first\n",
    )


def test_a_project_without_scripts_is_refused(lab, tree):
    (tree.beta / "src" / "third.py").unlink()
    code, out, err = lab("run", "01")
    assert (code, out) == (2, "")
    assert "no scripts in pytorch_01_beta" in err


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process group")
@pytest.mark.parametrize("way", ["to all", "to lab only", "to a script that will not listen"])
def test_ctrl_c_stops_and_still_sums_up(tree, way):
    """A terminal sends SIGINT to all processes; `kill -INT` to one, and the script must not outlive it."""
    pid_file = tree.root / "pid"
    deaf = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    )
    sleep = f"import os, time; Path({str(pid_file)!r}).write_text(str(os.getpid()))\nprint('asleep', flush=True); time.sleep(60)"
    extra = deaf + sleep if "listen" in way else sleep
    tree.write_script(tree.alpha, "first", without_record=True, extra=extra)
    before = "from shared.commands import run; run.PATIENCE_S = 0.5"
    process = tree.start("run", before=before, start_new_session=True)
    lines = []
    while "asleep\n" not in lines:
        lines.append(process.stdout.readline())
    (os.kill if way == "to lab only" else os.killpg)(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert names("".join(lines)) == ["second", "first"]
    summary = out.split("Summary")[1]
    assert "1 of 1" in summary
    assert "interrupted" in summary
    assert "All checks hold in 1 of 3 scripts. 1 not started." in summary
    assert is_gone(int(pid_file.read_text()))


def test_words_for_an_unknown_signal_do_not_fail(tree):
    assert run.Outcome(tree.root, 1.0, "–", -250).words == "exit code -250"


def test_scripts_of_the_real_lab_are_all_found(real_lab):
    """One short run on the real tree would take seconds of torch; the refusal names the scripts without any."""
    code, _, err = real_lab("run", "00", "no_such_script")
    assert code == 2
    assert "gpu_benchmarks" in err


def test_a_project_without_a_curriculum_is_run_by_name(tree):
    for name in ("b", "a"):
        tree.write_script(tree.beta, name)
    assert [path.stem for path in find_scripts(tree.beta)] == ["a", "b", "third"]
