"""`lab practice`: the overview, one question, hints and solutions, what is remembered, and that stubs cost nothing."""

import re
import time

from shared import practice

import pytest


def counting_check(tree, name="q01_double"):
    """Makes the question's check leave a letter in a file each time it runs; returns how often it has."""
    log = tree.root / "log"
    log.write_text("")
    path = tree.alpha / "practice" / "checks" / f"{name}.py"
    count = f"    with open({str(log)!r}, 'a') as log:\n        log.write('x')\n"
    path.write_text(path.read_text().replace("    x = seed", f"{count}    x = seed"))
    return lambda: len(log.read_text())


def test_overview_lists_every_question_with_its_status(lab, tree):
    tree.solve()
    code, out, err = lab("practice", "00")
    assert (code, err) == (1, "")
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("  q")}
    assert re.fullmatch(r"  q01 double +build +★ +5 +✓ done", rows["q01"])
    assert re.fullmatch(r"  q02 third power +debug +★★★ +20 +· not done", rows["q02"])
    assert re.fullmatch(r"  q03 why +think +★★ +3 +think", rows["q03"])
    assert "1 of 2 questions done." in out


def test_overview_says_how_to_start_with_the_next_one(lab, tree):
    tree.solve()
    out = lab("practice")[1]
    assert "Next: q02. Mend cube(x)." in out
    assert "pytorch_00_alpha/practice/q02_third_power.py" in out.replace("\\", "/")
    assert "python lab.py practice 00 q02" in out


def test_overview_names_the_trap_of_a_wrong_answer(lab, tree):
    tree.solve(body="x + x % 2 * 5")
    code, out, _ = lab("practice")
    assert code == 1
    assert "✗ wrong" in out
    assert "✗ q01: double is wrong for odd numbers" in out


def test_overview_ends_with_0_when_all_that_can_be_checked_is_done(lab, tree):
    tree.solve()
    tree.solve("q02_third_power", "cube", "x ** 3")
    code, out, _ = lab("practice")
    assert code == 0
    assert "2 of 2 questions done." in out
    assert "Next" not in out


def test_an_unchanged_stub_is_not_done_and_is_told_where_to_begin(lab):
    code, out, _ = lab("practice", "00", "q01")
    assert code == 1
    assert "· not done\n" in out
    assert "Write double(x)." in out
    assert "Write your answer in" in out
    assert "Addition" not in out  # the hint waits until it is asked for


@pytest.mark.parametrize(
    "typed", ["q01", "q1", "1", "q01_double", "q01_double.py", "pytorch_00_alpha/practice/q01_double.py"]
)
def test_a_question_has_many_names(lab, typed):
    assert "Write double(x)." in lab("practice", "0", typed)[1]


@pytest.mark.parametrize("typed", ["q09", "double", "qq1", "q01x"])
def test_an_unknown_question_is_refused_with_the_known_ones(lab, typed):
    assert lab("practice", "00", typed) == (
        2,
        "",
        f"lab: project 00 has no question {typed!r}; it has: q01, q02, q03\n",
    )


def test_a_wrong_answer_gets_its_trap_in_words(lab, tree):
    tree.solve(body="x * x")
    code, out, _ = lab("practice", "00", "q01")
    assert code == 1
    assert "✗ wrong: double is wrong for odd numbers" in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def double(x):\n    return x.nothing\n", "AttributeError at line 2"),
        ("def double(x:\n", "Python cannot read it"),
        ("def twice(x):\n    return 2 * x\n", "no 'double' any more"),
        ("import sys\nsys.exit(3)\n", "SystemExit"),
        ("raise KeyError('k')\n", "KeyError at line 1"),
    ],
)
def test_a_broken_answer_gets_a_sentence_and_no_stack_trace(lab, tree, text, words):
    (tree.alpha / "practice" / "q01_double.py").write_text(text)
    code, out, err = lab("practice", "00", "q01")
    assert (code, err) == (1, "")
    assert words in out
    assert "Traceback" not in out


def test_after_a_pass_comes_the_why_and_the_next_question(lab, tree):
    tree.solve()
    code, out, _ = lab("practice", "00", "q01")
    assert code == 0
    assert "✓ done: all traps passed" in out
    assert "Why: Because 2 * x is it." in out
    assert "Next: q02. Mend cube(x)." in out
    tree.solve("q02_third_power", "cube", "x ** 3")
    assert "Next" not in lab("practice", "00", "q02")[1]


def test_next_turns_back_to_what_was_left_out(lab, tree):
    tree.solve("q02_third_power", "cube", "x ** 3")
    assert "Next: q01." in lab("practice", "00", "q02")[1]


def test_hint_is_shown_when_asked(lab):
    code, out, _ = lab("practice", "00", "q01", "--hint")
    assert code == 1
    assert "Hint: Addition is enough." in out


def test_solution_waits_for_a_pass(lab, tree):
    refusal = (2, "", "lab: the solution of q01 is shown once your answer passes; --spoil shows it now\n")
    assert lab("practice", "00", "q01", "--solution") == refusal
    tree.solve(body="x")
    assert lab("practice", "00", "q01", "--solution") == refusal
    tree.solve(body="x + x")
    code, out, _ = lab("practice", "00", "q01", "--solution")
    assert code == 0
    assert '"""Because 2 * x is it."""\n\ndef double(x):\n    return 2 * x\n' in out


@pytest.mark.parametrize("options", [["--spoil"], ["--solution", "--spoil"]])
def test_spoil_shows_it_now_and_the_question_stays_not_done(lab, options):
    code, out, _ = lab("practice", "00", "q01", *options)
    assert code == 1
    assert "return 2 * x" in out


def test_a_question_to_think_about_has_an_answer_instead_of_a_check(lab):
    code, out, _ = lab("practice", "00", "q03")
    assert code == 0
    assert "Why is the sky dark at night?" in out
    assert "has not arrived" not in out
    assert "practice 00 q03 --solution" in out
    code, out, _ = lab("practice", "00", "q03", "--solution")
    assert code == 0
    assert "Answer: Light from far away has not arrived yet." in out


@pytest.mark.parametrize("option", ["--hint", "--solution", "--spoil"])
def test_hint_and_solution_need_a_question(lab, option):
    code, out, err = lab("practice", "00", option)
    assert (code, out) == (2, "")
    assert "name it" in err
    assert len(err.splitlines()) == 1


def test_a_project_without_questions_is_refused(lab):
    assert lab("practice", "01") == (2, "", "lab: there are no practice questions in pytorch_01_beta yet\n")
    assert lab("practice", "01", "q01") == (2, "", "lab: project 01 has no question 'q01'; it has: none yet\n")


def test_a_deleted_answer_is_a_line_with_the_cure(lab, tree):
    (tree.alpha / "practice" / "q01_double.py").unlink()
    code, out, err = lab("practice")
    assert (code, out) == (2, "")
    assert "git checkout --" in err
    assert len(err.splitlines()) == 1


def test_only_changed_answers_run(lab, tree):
    runs = counting_check(tree)
    lab("practice")
    assert runs() == 0  # a stub is known by its digest
    tree.solve()
    lab("practice")
    assert runs() == len(practice.SEEDS)
    lab("practice")
    lab("practice", "00", "q01")
    assert runs() == len(practice.SEEDS)
    lab("practice", "00", "q01", "--again")
    assert runs() == 2 * len(practice.SEEDS)
    tree.solve(body="3 * x")
    assert lab("practice", "00", "q01")[0] == 1
    tree.solve()
    lab("practice", "--again")
    assert runs() == 2 * len(practice.SEEDS) + 1 + len(practice.SEEDS)


def test_stubs_answer_at_once_and_without_torch(tree):
    start_s = time.perf_counter()
    out, err = tree.start("practice").communicate()
    elapsed_s = time.perf_counter() - start_s
    assert "0 of 2 questions done." in out
    assert err == ""  # where torch was imported, it says so
    assert elapsed_s < 5  # 0.2 s on a quiet machine; torch alone takes longer than 5 on a busy one


def test_lines_fit_narrow_terminals(lab, tree, monkeypatch):
    tree.solve(body="x * x")
    for width in (100, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        for arguments in ([], ["00", "q01"], ["00", "q03", "--solution"]):
            lines = [line for line in lab("practice", *arguments)[1].splitlines() if "Write your answer in" not in line]
            assert max(map(len, lines)) <= width


def test_the_real_questions_answer_from_any_folder(real_lab):
    """Whatever this checkout's learner has answered, nothing crashes and nothing but text comes out of a pipe."""
    from shared.records import projects

    code, out, err = real_lab("practice", "00", "q01", "--hint", folder=projects()[0])
    assert code in (0, 1)
    assert err == ""
    assert "\x1b" not in out
    assert "Hint: " in out
    assert max(map(len, out.splitlines())) <= 100
