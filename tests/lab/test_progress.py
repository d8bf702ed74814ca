"""`lab progress` and the curriculum's rows: what ticks a row, what does not, and what to do next."""

from shared.curriculum import Row, find_evidence, find_scripts, load_rows
from shared.errors import CannotRun

import pytest


def rows_of(out):
    """Row number → (its sign, the line of evidence below it)."""
    lines = out.splitlines()
    return {line[2:7]: (line[0], lines[i + 1].strip()) for i, line in enumerate(lines) if line[:1] in "☑☐" and line}


def tick_first(tree):
    checks = [tree.check(section="Opening"), tree.check(section="Middle"), tree.check(section="Middle")]
    tree.write_record(tree.record("first", [*checks, tree.check(False, section="End")]))


def test_nothing_has_run(lab):
    code, out, err = lab("progress")
    assert (code, err) == (0, "")
    assert rows_of(out) == {
        "00.01": ("☐", "no full-size run of second yet"),
        "00.02": ("☐", "no full-size run of first yet"),
        "00.03": ("☐", "not yet in the lab"),
    }
    assert out.splitlines()[-4:-2] == ["Curriculum: 0 of 3 rows, 1 not yet in the lab", "Practice: 0 of 2 questions"]
    assert out.splitlines()[-1] == "Next: python lab.py run 00 second"


def test_a_full_run_ticks_with_the_learners_own_evidence(lab, tree):
    tree.write_record(tree.record("second", [tree.check(), tree.check(), tree.check(section="Elsewhere")]))
    out = lab("progress", "00")[1]
    assert rows_of(out)["00.01"] == ("☑", "second: 3 checks hold · 2026-11-21 · NVIDIA H200")
    assert "Curriculum: 1 of 3 rows" in out
    assert out.splitlines()[-1] == "Next: python lab.py run 00 first"


def test_sections_are_ticked_by_their_own_checks(lab, tree):
    """The failing check stands in a section that teaches another row."""
    tick_first(tree)
    assert rows_of(lab("progress")[1])["00.02"] == ("☑", "first: 3 checks hold · 2026-11-21 · NVIDIA H200")


def test_a_failed_check_unticks_and_is_named(lab, tree):
    checks = [tree.check(section="Opening"), tree.check(False, "Middle", "the second half is faster")]
    tree.write_record(tree.record("first", checks))
    assert rows_of(lab("progress")[1])["00.02"] == ("☐", "1 of 2 checks fail: the second half is faster")


def test_a_section_without_a_check_does_not_tick(lab, tree):
    """A section that could not run here, for want of a GPU, proves nothing."""
    tree.write_record(tree.record("first", [tree.check(section="Opening")]))
    assert rows_of(lab("progress")[1])["00.02"] == ("☐", "nothing was checked on this machine in Middle")


def test_a_script_without_any_check_does_not_tick(lab, tree):
    tree.write_record(tree.record("second", []))
    assert rows_of(lab("progress")[1])["00.01"] == ("☐", "nothing was checked on this machine in second")


def test_a_quick_run_does_not_tick(lab, tree):
    tree.write_record(tree.record("second", [tree.check()], quick=True))
    assert rows_of(lab("progress")[1])["00.01"] == ("☐", "no full-size run of second yet")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"script": "second"}', "\x00\xff"])
def test_a_broken_record_counts_as_none(lab, tree, text):
    path = tree.write_record(tree.record("second", []))
    path.write_text(text, encoding="latin-1")
    assert rows_of(lab("progress")[1])["00.01"] == ("☐", "no full-size run of second yet")


def test_all_scripts_of_a_row_must_prove_it(tree):
    row = Row(tree.alpha, "00.09", "both", ("first", "second"))
    tree.write_record(tree.record("first", [tree.check()]))
    assert find_evidence(row).text == "no full-size run of second yet"
    tree.write_record(tree.record("second", [], started="2026-11-22T00:00:00+00:00"))
    assert find_evidence(row).text == "nothing was checked on this machine in second"
    tree.write_record(tree.record("second", [tree.check()], started="2026-11-22T00:00:00+00:00"))
    assert find_evidence(row).ticked
    assert find_evidence(row).text == "first, second: 2 checks hold · 2026-11-22 · NVIDIA H200"


def test_sections_may_stand_in_any_of_the_scripts(tree):
    row = Row(tree.alpha, "00.09", "one of both", ("first", "second"), ("Middle",))
    tree.write_record(tree.record("first", [tree.check(section="Middle")]))
    assert find_evidence(row).text == "first: 1 check holds · 2026-11-21 · NVIDIA H200"


def test_practice_counts_follow_remembered_answers(lab, tree):
    tree.solve()
    assert "Practice: 0 of 2 done" in lab("progress")[1]  # changed, but not yet checked: nothing is run here
    lab("practice", "00", "q01")
    assert "Practice: 1 of 2 done" in lab("progress")[1]
    tree.solve(body="3 * x")
    assert "Practice: 0 of 2 done" in lab("progress")[1]


def test_next_is_scripts_then_questions_then_failed_rows(lab, tree):
    def next_line():
        return lab("progress")[1].splitlines()[-1]

    tree.write_record(tree.record("second", [tree.check(False)]))
    assert next_line() == "Next: python lab.py run 00 first"
    tick_first(tree)
    assert next_line() == "Next: python lab.py practice 00 q01"
    tree.solve()
    lab("practice")
    assert next_line() == "Next: python lab.py practice 00 q02"
    tree.solve("q02_third_power", "cube", "x ** 3")
    lab("practice")
    assert next_line() == "Next: python lab.py run 00 second"
    tree.write_record(tree.record("second", [tree.check()]))
    assert next_line() == "Everything that is in the lab is done."


def test_projects_without_a_curriculum_are_left_out(lab, tree):
    assert "beta" not in lab("progress")[1]
    assert lab("progress", "01")[0] == 2
    (tree.alpha / "curriculum.toml").unlink()
    code, out, err = lab("progress")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


def test_it_is_quick_and_without_torch(tree):
    tick_first(tree)
    out, err = tree.start("progress").communicate()
    assert "Curriculum: 1 of 3 rows" in out
    assert err == ""  # where torch was imported, it says so


def test_lines_fit_narrow_terminals(lab, tree, monkeypatch):
    tick_first(tree)
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, lab("progress")[1].splitlines())) <= 60


@pytest.mark.parametrize(
    "text", ["row = 3", "[[row]]\nid = '1'", "[[row]]\ntopic = 'x'", "[[row]", "[other]\nx = 1", "[[row]]\nid = '1'\ntopic = 2"]
)  # fmt: skip
def test_a_broken_curriculum_is_named(tree, text):
    path = tree.alpha / "curriculum.toml"
    path.write_text(text)
    with pytest.raises(CannotRun, match=r"curriculum\.toml cannot be read"):
        load_rows(tree.alpha)


def test_rows_are_read_in_order(tree):
    first, second, third = load_rows(tree.alpha)
    assert (first.id, first.scripts, first.sections) == ("00.01", ("second",), ())
    assert second.sections == ("Opening", "Middle")
    assert (third.scripts, third.is_in_lab) == ((), False)
    assert not Row(tree.alpha, "1", "x", ("first", "absent")).is_in_lab
    assert [path.stem for path in find_scripts(tree.alpha)] == ["second", "first"]


def test_the_real_checklist_can_be_read(real_lab):
    code, out, err = real_lab("progress", COLUMNS="80")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert len(rows_of(out)) >= 31
    assert max(map(len, out.splitlines())) <= 80
    assert out.splitlines()[-1].startswith(("Next: python lab.py ", "Everything"))
