"""lab.py itself: help, mistakes, interruption, and that only the chosen command is imported."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

from shared.commands import COMMANDS, choose_projects, command_line, progress, reference_records
from shared.errors import CannotRun

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_line_of_help_and_two_functions(name):
    module = importlib.import_module(f"shared.commands.{name}")
    first = module.__doc__.splitlines()[0]
    assert len(first) > 20
    assert first.endswith(".")
    assert callable(module.add_arguments)
    assert callable(module.run)


def test_help_lists_every_command_with_its_line(lab):
    code, out, _ = lab("--help")
    assert code == 0
    for name in COMMANDS:
        first = importlib.import_module(f"shared.commands.{name}").__doc__.splitlines()[0]
        assert f"  {name:<10}{first}" in out.splitlines()
    assert max(map(len, out.splitlines())) <= 62
    assert lab() == (0, out, "")


@pytest.mark.parametrize(
    ("arguments", "imported"), [(["--help"], []), (["docter"], []), (["progress", "--help"], ["progress"])]
)
def test_only_the_chosen_command_is_imported(arguments, imported):
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import lab\n"
        f"try: lab.main({arguments!r})\nexcept SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith('shared.commands.')])\n"
        "print([name for name in ('torch', 'rich.console', 'numpy', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    commands, libraries = done.stdout.splitlines()[-2:]
    assert ast.literal_eval(commands) == [f"shared.commands.{name}" for name in imported]
    assert ast.literal_eval(libraries) == []


@pytest.mark.parametrize(
    ("typed", "meant"), [("docter", "doctor"), ("raport", "report"), ("pratice", "practice"), ("doc", "docs")]
)
def test_a_mistyped_command_gets_the_nearest_one(lab, typed, meant):
    code, out, err = lab(typed)
    assert (code, out) == (2, "")
    assert err.splitlines() == [f"lab: there is no command {typed!r}; did you mean `{meant}`?"]


def test_a_word_like_no_command_gets_the_list(lab):
    code, _, err = lab("xyzzy")
    assert code == 2
    assert all(name in err for name in COMMANDS)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [("run", "--quik"), ("run", "--device", "tpu"), ("practice", "00", "q01", "extra")]
)
def test_a_wrong_option_is_refused_in_one_line(lab, arguments):
    code, out, err = lab(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "--help" in err


@pytest.mark.parametrize(
    "text", ["0", "00", "pytorch_00", "pytorch_00_alpha", "pytorch_00_alpha/", "../lab/pytorch_00_alpha"]
)
def test_a_project_has_many_names(tree, text):
    assert choose_projects(text) == [tree.alpha]


@pytest.mark.parametrize("text", ["99", "pytorch", "alpha", "", "-1", "00x", "٣"])
def test_an_unknown_project_is_refused_with_the_known_ones(tree, text):
    with pytest.raises(CannotRun, match="00, 01") as refusal:
        choose_projects(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("command", ["run", "practice", "progress"])
def test_project_99_is_one_clear_line(lab, command):
    code, out, err = lab(command, "99")
    assert (code, out) == (2, "")
    assert err == "lab: '99' is no project; name one by its number: 00, 01\n"


def test_commands_to_copy_fit_the_present_folder(tree, monkeypatch):
    assert command_line("practice 00") == "python lab.py practice 00"
    monkeypatch.chdir(tree.alpha / "src")
    assert command_line("practice 00") == f"python {os.path.join('..', '..', 'lab.py')} practice 00"


def test_references_are_chosen_by_their_script(tree):
    folder = tree.root / "shared" / "reference" / "machine"
    folder.mkdir(parents=True)
    (folder / "a.first.json").write_text('{"script": "first", "checks": [], "measurements": []}')
    (folder.parent / "b.second.json").write_text('{"script": "second", "checks": [], "measurements": []}')
    assert [record["script"] for record in reference_records("first")] == ["first"]
    assert reference_records("third") == []


def test_ctrl_c_ends_with_130_and_one_line(lab, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "run", interrupted)
    assert lab("progress") == (130, "", "lab: interrupted\n")


@pytest.mark.parametrize("arguments", [["--help"], ["progress"], ["practice"]])
def test_a_reader_that_leaves_causes_no_complaint(tree, arguments):
    process = tree.start(*arguments, before="sys.stdin.read()", stdin=subprocess.PIPE)
    process.stdout.close()
    process.stdin.close()  # now it begins to write
    assert process.wait(30) == 130
    assert process.stderr.read() == ""
    process.stderr.close()


def test_it_works_from_a_project_folder(real_lab):
    folder = REPOSITORY / "pytorch_00_tensor_gpu_basics"
    assert real_lab("--help", folder=folder) == real_lab("--help")


def test_an_old_python_is_told_which_one_is_needed():
    source = (REPOSITORY / "lab.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))  # or an old Python stops before it can say so
    path = str(REPOSITORY / "lab.py")
    code = f"import runpy, sys; sys.version_info = (3, 10, 4); runpy.run_path({path!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs Python 3.11 to 3.14 and this is 3.10" in done.stderr
    assert len(done.stderr.splitlines()) == 1
