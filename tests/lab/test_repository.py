"""What holds for the repository as a whole: names, path lines, requirements, and the scripts' contract at their start."""

import argparse
import ast
import re
import subprocess
import sys
import tomllib

from shared.commands import docs
from shared.curriculum import load_rows
from shared.records import ROOT, projects

import pytest

SCRIPTS = sorted(path for project in projects() for path in (project / "src").glob("*.py"))
PATH_LINE = "sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed"
IDS = [path.stem for path in SCRIPTS]


def test_there_are_scripts():
    assert "gpu_benchmarks" in IDS
    assert "tensor_basics" in IDS


@pytest.mark.parametrize("script", SCRIPTS, ids=IDS)
def test_script_finds_its_own_checkout(script):
    assert script.read_text(encoding="utf-8").splitlines().count(PATH_LINE) == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=IDS)
def test_shared_is_imported_before_torch(script):
    """shared.device says in one line what to do where torch is missing; torch's own error would be a stack trace."""
    names = [
        node.names[0].name if isinstance(node, ast.Import) else node.module or ""
        for node in ast.parse(script.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    third_party = [name for name in names if name.split(".")[0] in ("torch", "numpy", "matplotlib", "torchvision")]
    if third_party:
        lab = next(i for i, name in enumerate(names) if name.split(".")[0] in ("shared", script.parents[1].name))
        assert lab < names.index(third_party[0])


@pytest.mark.parametrize("script", SCRIPTS, ids=IDS)
def test_docstring_is_short_and_begins_with_the_question(script):
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    assert "?" in text.split("\n\n")[0]
    assert len(text.splitlines()) <= 25
    assert f"python src/{script.name}" in text


def test_script_names_are_unique_and_shadow_nothing():
    assert len(set(IDS)) == len(IDS)
    taken = set(sys.stdlib_module_names) | {name.split(".")[0] for name in packages_of_pyproject()} | {"pynvml"}
    assert not taken & set(IDS)


def packages_of_pyproject() -> set[str]:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = [requirement for group in table["dependency-groups"].values() for requirement in group]
    return {normalized(requirement) for requirement in table["project"]["dependencies"] + groups}


def normalized(requirement: str) -> str:
    """A requirement without spaces or quotes, so that two files can be compared."""
    return re.sub(r"[\s'\"]", "", requirement)


@pytest.mark.parametrize("project", projects(), ids=lambda path: path.name)
def test_requirements_say_what_pyproject_says(project):
    """`pip install -r` and `uv run` bring the same versions; the base file is named relative to the file that names it."""
    first, *own = (project / "requirements.txt").read_text(encoding="utf-8").split("\n")
    assert first == "-r ../requirements-base.txt"
    base = (ROOT / "requirements-base.txt").read_text(encoding="utf-8").splitlines()
    asked = {normalized(line) for line in [*base, *own] if line and not line.startswith("#")}
    assert asked <= packages_of_pyproject()


def test_no_file_names_a_package_index():
    pattern = re.compile(r"--(?:extra-)?index-url|--find-links|tool\.uv\.index|index-url\s*=")
    files = [ROOT / "pyproject.toml", *ROOT.glob("**/requirements*.txt"), *ROOT.glob(".ci/*")]
    assert not [str(path) for path in files if ".venv" not in path.parts and pattern.search(path.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=IDS)
def test_script_starts_anywhere_and_imports_silently(script, tmp_path):
    """By path and from its project's folder, isolated (-I: no PYTHONPATH, no current folder), with nothing installed."""
    in_process = (
        "import runpy, sys, threading\n"
        f"space = runpy.run_path({str(script)!r}, run_name='imported')\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert callable(space['main'])\n"
    )
    quiet = subprocess.run(
        [sys.executable, "-I", "-c", in_process], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    helped = subprocess.run(
        [sys.executable, f"src/{script.name}", "--help"],
        cwd=script.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert helped.returncode == 0, helped.stderr
    assert "--quick" in helped.stdout
    assert helped.stderr == ""


def test_generated_parts_of_the_readmes_are_fresh(capsys):
    assert docs.run(argparse.Namespace(check=True)) == 0, capsys.readouterr().out


def test_links_of_the_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("pytorch_*/README.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("project", projects(), ids=lambda project: project.name)
def test_sections_named_by_the_curriculum_are_sections_of_its_scripts(project):
    """A row whose section was renamed would never be ticked again."""
    literals, patterns = set(), set()  # what an f-string fills in may be anything
    for path in (project / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                patterns.add("".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".+" for p in node.values))
            elif isinstance(node, ast.Constant):
                literals.add(node.value)
    patterns = {pattern for pattern in patterns if re.search(r"\w{3}", pattern)}  # not those that fit anything
    titles = {title for row in load_rows(project) for title in row.sections} - literals
    assert [title for title in titles if not any(re.fullmatch(pattern, title) for pattern in patterns)] == []
