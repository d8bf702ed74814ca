"""`lab doctor`: each finding from faked facts, its cure on each system, and one examination of the real machine."""

import importlib.metadata
import itertools
import json
import random
import re
import stat
import sys
from dataclasses import replace
from pathlib import Path

from shared import checkup, machine
from shared.checkup import MACHINE_CHECKS, TORCH_CHECKS, examine
from shared.cures import CURES
from shared.curriculum import Evidence, Row, find_evidence
from shared.machine import Facts, TorchFacts

import pytest

SYSTEMS = ("linux", "darwin", "win32")

WORKING = TorchFacts(cuda="13.0", device="cuda", device_name="NVIDIA A100", device_count=1, product_error=3e-7,
                     memory_free_bytes=20 * 2**30, memory_total_bytes=24 * 2**30)  # fmt: skip
BLIND = replace(WORKING, device="", device_name="", device_count=0, product_error=None)
HEALTHY = Facts(
    system="linux",
    processor="x86_64",
    is_wsl=False,
    python=(3, 12, 4),
    packages={"torch": "2.15.0", "torchvision": "0.29.2", "nvidia-ml-py": "13.615"},
    torchvision_fits=True,
    installer="python -m pip",
    requirements="requirements-base.txt",
    driver="580.65.06",
    gpus=("NVIDIA A100",),
    has_empty_mig=False,
    visible_devices=None,
    compiler="g++",
    compiler_found=True,
    has_clang=False,
    has_python_headers=True,
    disk_free_bytes=50 * 10**9,
    data_folder=Path("data"),
    data_error="",
    results_errors={},
    encoding="utf-8",
    can_print_signs=True,
    torch=WORKING,
)
NO_GPU = {"driver": None, "gpus": (), "torch": replace(BLIND, cuda=None)}


def without(*names):
    return {name: version for name, version in HEALTHY.packages.items() if name not in names}


# What is changed in HEALTHY; name and level of the finding; a part of its text; a part of its cure by system.
CASES = {
    "old Python": (
        {"python": (3, 10, 12)}, "Python", "problem", "Python 3.10.12",
        ("uv venv --python", "brew install python", "winget install Python"),
    ),
    "future Python": ({"python": (3, 15, 0)}, "Python", "problem", "3.11 to 3.14", ("3.13", "3.13", "3.13")),
    "no torch": (
        {"packages": without("torch"), "torch": None}, "torch", "problem", "not installed",
        ("python -m pip install --upgrade -r requirements-base.txt",) * 3,
    ),
    "no torch, in an environment of uv": (
        {"packages": without("torch"), "torch": None, "installer": "uv pip"}, "torch", "problem", "not installed",
        ("uv pip install --upgrade -r requirements-base.txt",) * 3,
    ),
    "old torch": (
        {"packages": HEALTHY.packages | {"torch": "2.9.1+cu128"}}, "torch", "problem", "torch 2.9.1+cu128", ("-r req",) * 3,
    ),
    "future torch": ({"packages": HEALTHY.packages | {"torch": "2.16.0.dev1"}}, "torch", "notice", "newer", ("",) * 3),
    "no torchvision": (
        {"packages": without("torchvision")}, "torchvision", "problem", "not installed", ("-r requirements-base.txt",) * 3,
    ),
    "torchvision of another torch": (
        {"torchvision_fits": False}, "torchvision", "problem", "0.29.2 beside torch 2.15.0 do not belong", ("--upgrade",) * 3,
    ),
    "package pynvml": (
        {"packages": HEALTHY.packages | {"pynvml": "13.0.1"}}, "pynvml", "problem", "pynvml is installed",
        ("pip uninstall -y pynvml, and after it python -m pip install --force-reinstall nvidia-ml-py",) * 3,
    ),
    "package pynvml, in an environment of uv": (
        {"packages": HEALTHY.packages | {"pynvml": "13.0.1"}, "installer": "uv pip"}, "pynvml", "problem", "pynvml",
        ("uv pip uninstall pynvml, and after it uv pip install --reinstall nvidia-ml-py",) * 3,
    ),
    "no compiler": (
        {"compiler_found": False}, "compiler", "problem", "torch.compile calls g++",
        ("sudo apt-get install g++", "xcode-select --install", "BuildTools"),
    ),
    "clang alone": (
        {"compiler_found": False, "has_clang": True}, "compiler", "problem", "not here", ("export CXX=clang++",) * 2 + ("",),
    ),
    "no headers of Python": (
        {"has_python_headers": False}, "compiler", "problem", "Python.h",
        ("sudo apt-get install python3.12-dev", "python@3.12", "Python.Python.3.12"),
    ),
    "little disk": (
        {"disk_free_bytes": 1_900_000_000}, "disk", "problem", "1.90 GB free on the lab's disk; runs may take 2 GB",
        ("python -m pip cache purge; `du", "System Settings", "cleanmgr"),
    ),
    "little disk before the installation": (
        {"disk_free_bytes": 7_900_000_000, "packages": {}, "torch": None}, "disk", "problem", "8 GB", ("purge",) * 3,
    ),
    "data folder": (
        {"data_error": "Read-only file system"}, "datasets", "problem", "data: Read-only file system",
        ("export LAB_DATA=", "export LAB_DATA=", "$env:LAB_DATA ="),
    ),
    "results folder": (
        {"results_errors": {"pytorch_00/results": "Permission denied"}}, "results", "problem", "pytorch_00/results: Perm",
        ("sudo chown", "sudo chown", "Documents"),
    ),
    "plain terminal": (
        {"can_print_signs": False, "encoding": "cp1252"}, "terminal", "notice", "cp1252",
        ("export LC_ALL=C.UTF-8", "export LC_ALL=en_US.UTF-8", "$env:PYTHONUTF8 = 1"),
    ),
    "GPU hidden by an empty list": (
        {"visible_devices": "", "torch": BLIND}, "visible devices", "problem", "hides every GPU",
        ("unset CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES", "Remove-Item Env:CUDA_VISIBLE_DEVICES"),
    ),
    "GPU hidden by -1": (
        {"visible_devices": "-1,0", "torch": BLIND}, "visible devices", "problem", "'-1,0'", ("CUDA_VISIBLE_DEVICES",) * 3,
    ),
    "GPU hidden by another number": (
        {"visible_devices": "7", "torch": BLIND}, "GPU", "problem", "CUDA_VISIBLE_DEVICES=7", ("CUDA_VISIBLE_DEVICES",) * 3,
    ),
    "torch that does not import": (
        {"torch": TorchFacts(error="OSError: [WinError 126] c10.dll")}, "import", "problem", "c10.dll",
        ("--force-reinstall -r requirements-base.txt",) * 2 + ("winget install Microsoft.VCRedist",),
    ),
    "old driver": (
        {"driver": "550.54.15", "torch": BLIND}, "driver", "problem", "is too old: a torch built for CUDA 13.0 needs 580",
        ("nvidia-driver-580", "", "nvidia.com/drivers"),
    ),
    "old driver under WSL": (
        {"driver": "550.54.15", "torch": BLIND, "is_wsl": True, "system": "linux"}, "driver", "problem", "too old",
        ("in Windows, and none inside WSL", "", ""),
    ),
    "old driver, CUDA 12": (
        {"driver": "520.61.05", "torch": replace(BLIND, cuda="12.8")}, "driver", "problem", "525", ("nvidia-driver-525", "", ""),
    ),
    "CPU build": (
        {"torch": replace(BLIND, cuda=None)}, "GPU", "problem", "has NVIDIA A100, but this torch is built without CUDA",
        ("--force-reinstall torch torchvision", "", "choose your system and CUDA"),
    ),
    "CPU build, in an environment of uv": (
        {"torch": replace(BLIND, cuda=None), "installer": "uv pip"}, "GPU", "problem", "without CUDA",
        ("uv pip install --reinstall torch torchvision", "", "--torch-backend auto torch torchvision"),
    ),
    "no GPU": (NO_GPU, "GPU", "notice", "runs on the CPU", ("docker run --gpus all", "MPS", "nvidia.com/drivers")),
    "empty MIG": ({"has_empty_mig": True, "torch": BLIND}, "GPU", "problem", "MIG mode", ("nvidia-smi -mig 0",) * 3),
    "GPU that does not answer": (
        {"torch": replace(BLIND, reason="CUDA unknown error")}, "GPU", "problem", "CUDA unknown error",
        ("modprobe", "", "restart the machine"),
    ),
    "GPU unknown to the build": (
        {"torch": replace(WORKING, product_error=None, device_error="no kernel image is available for execution")},
        "computing", "problem", "no kernel image", ("pytorch.org/get-started",) * 3,
    ),
    "full GPU": (
        {"torch": replace(WORKING, product_error=None, device_error="OutOfMemoryError: CUDA out of memory.")},
        "computing", "problem", "out of memory", ("kill PID", "close other programs", "nvidia-smi"),
    ),
    "GPU that stops": (
        {"torch": replace(WORKING, product_error=None, device_error="unspecified launch failure")},
        "computing", "problem", "launch failure", ("dmesg", "update macOS", "driver again"),
    ),
    "GPU that is wrong": (
        {"torch": replace(WORKING, product_error=0.4)}, "computing", "problem", "off by 0.400", ("ECC", "update macOS", "ECC"),
    ),
    "GPU that gives no number": (
        {"torch": replace(WORKING, product_error=float("nan"))}, "computing", "problem", "wrongly", ("another GPU", "", ""),
    ),
    "torchvision of another build": (
        {"torch": replace(WORKING, torchvision_error="RuntimeError: operator torchvision::nms does not exist")},
        "torchvision", "problem", "another build of torch", ("install --force-reinstall torch torchvision, both in one",) * 3,
    ),
    "broken torchvision": (
        {"torch": replace(WORKING, torchvision_error="ImportError: libjpeg.so.8")}, "torchvision", "problem", "libjpeg",
        ("torch torchvision",) * 3,
    ),
    "little memory": (
        {"torch": replace(WORKING, memory_free_bytes=2**30)}, "memory", "problem", "1 GiB of 24 GiB", ("--quick",) * 3,
    ),
}  # fmt: skip


def findings(facts):
    return examine(facts, MACHINE_CHECKS + TORCH_CHECKS)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("case", CASES)
def test_each_failure_is_found_and_cured(case, system):
    changes, name, level, text, cures = CASES[case]
    facts = replace(HEALTHY, **{"system": system, "processor": "arm64"} | changes)
    found = [finding for finding in findings(facts) if finding.level != "fine"]
    assert [(finding.name, finding.level) for finding in found if finding.name == name] == [(name, level)]
    finding = next(finding for finding in found if finding.name == name)
    assert text in finding.text
    assert cures[SYSTEMS.index(system)] in finding.cure
    assert level == "notice" or finding.cure


@pytest.mark.parametrize("case", CASES)
def test_one_failure_is_one_finding(case):
    """A cause is said once: an old driver, say, is not reported as an invisible GPU, too."""
    also = {"no torch": 0, "little disk before the installation": 1}  # that one has no torch, either
    found = [finding for finding in findings(replace(HEALTHY, **CASES[case][0])) if finding.level != "fine"]
    assert len(found) == 1 + also.get(case, 0)


def test_every_cure_is_reached_by_a_case():
    """A cure that nothing leads to would never be read; each is told apart by its first words."""
    given = set()
    for changes, *_ in CASES.values():
        for system, installer in itertools.product(SYSTEMS, ("uv pip", "python -m pip")):
            facts = replace(HEALTHY, **{"system": system, "installer": installer} | changes)
            given |= {finding.cure for finding in findings(facts)}
    given |= {finding.cure for finding in findings(replace(HEALTHY, **NO_GPU | {"is_wsl": True}))}
    intel = replace(HEALTHY, system="darwin", packages={}, torch=None)
    given |= {finding.cure for finding in findings(intel)}
    for key, by_system in CURES.items():
        for system, text in by_system.items():
            pattern = re.sub(r"\\{\w+\\}", ".+", re.escape(text))
            assert any(re.fullmatch(pattern, cure) for cure in given), (key, system)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_healthy_machine_has_no_problem(system):
    assert {finding.level for finding in findings(replace(HEALTHY, system=system))} == {"fine"}


def test_apple_silicon_computes_on_mps():
    torch = replace(WORKING, cuda=None, device="mps", device_name="Apple M3")
    facts = replace(HEALTHY, system="darwin", processor="arm64", driver=None, gpus=(), torch=torch)
    assert {finding.level for finding in findings(facts)} == {"fine"}
    assert "torch sees Apple M3 (mps)" in [finding.text for finding in findings(facts)]


def test_an_intel_mac_is_told_that_there_is_no_torch_for_it():
    facts = replace(HEALTHY, system="darwin", packages={"torch": "2.2.2"}, torch=None)
    finding = next(finding for finding in findings(facts) if finding.name == "torch")
    assert "Apple silicon only" in finding.text
    assert "arm64 Python" in finding.cure


def test_a_gpu_that_computes_is_not_held_against_an_old_driver():
    """NVIDIA's compatibility package lets a data-centre driver run newer CUDA."""
    assert {finding.level for finding in findings(replace(HEALTHY, driver="550.54.15"))} == {"fine"}


def test_amd_builds_are_not_measured_by_nvidias_driver():
    torch = replace(WORKING, cuda=None, hip="7.0", device_name="AMD Instinct MI300X")
    facts = replace(HEALTHY, driver=None, gpus=(), torch=torch)
    assert {finding.level for finding in findings(facts)} == {"fine"}
    assert "torch imports; it is built for ROCm 7.0" in [finding.text for finding in findings(facts)]


@pytest.mark.parametrize("driver", ["580.65.06", "590", "610.12"])
def test_newer_drivers_serve_older_cuda(driver):
    torch = replace(WORKING, cuda="12.6")
    assert checkup.check_driver(replace(HEALTHY, driver=driver, torch=torch)).level == "fine"


def test_any_combination_gives_one_line_each_and_a_cure_for_each_problem():
    generator = random.Random(0)
    torches = [None, *(case[0].get("torch", WORKING) for case in CASES.values())]
    choices = {
        "system": SYSTEMS, "is_wsl": (False, True), "processor": ("x86_64", "arm64"), "python": ((3, 9, 1), (3, 13, 0)),
        "packages": [case[0].get("packages", HEALTHY.packages) for case in CASES.values()], "torch": torches,
        "torchvision_fits": (True, False, None), "installer": ("uv pip", "python -m pip"), "gpus": ((), ("A", "B")),
        "driver": (None, "580.65.06", "470.1", "535"), "has_empty_mig": (False, True), "has_clang": (False, True),
        "visible_devices": (None, "", "-1", "0", "GPU-5"), "compiler_found": (False, True), "disk_free_bytes": (0, 10**12),
        "data_error": ("", "No space left on device"), "can_print_signs": (False, True),
    }  # fmt: skip
    for _ in range(2000):
        facts = replace(HEALTHY, **{name: generator.choice(options) for name, options in choices.items()})
        for finding in findings(facts):
            assert finding.cure or finding.level != "problem"
            assert "\n" not in finding.text + finding.cure
            assert not re.search(r"\{|\}|None$", finding.text + finding.cure)


# The command


@pytest.fixture
def facts_here(monkeypatch):
    """Makes the command see given facts; torch's are handed out when it is examined."""

    def give(**changes):
        facts = replace(HEALTHY, **changes)
        monkeypatch.setattr(machine, "gather_facts", lambda root: replace(facts, torch=None))
        monkeypatch.setattr(machine, "examine_torch", lambda: facts.torch)

    return give


def test_exit_code_and_marks(lab, facts_here):
    facts_here()
    code, out, err = lab("doctor")
    assert (code, err) == (0, "")
    assert out.rstrip().endswith("No problem found.")
    assert "✗" not in out
    facts_here(compiler_found=False, python=(3, 10, 1))
    code, out, _ = lab("doctor")
    assert code == 1
    assert "✗ torch.compile calls g++, which is not here\n  → sudo apt-get install g++\n" in out
    assert out.rstrip().endswith("2 problems: see ✗.")


def test_the_result_ticks_the_row_that_the_doctor_teaches(lab, tree, facts_here):
    row = Row(tree.root / "pytorch_00_tensor_gpu_basics", "00.01", "Installing", command="doctor")
    assert find_evidence(row) == Evidence(False, "lab.py doctor has not run on this machine yet")
    facts_here()
    lab("doctor")
    held = find_evidence(row)
    assert held.ticked
    assert held.text.startswith("lab.py doctor found no problem · 20")
    assert held.text.endswith(HEALTHY.torch.device_name)
    facts_here(compiler_found=False)
    lab("doctor", "--json")
    assert find_evidence(row).text.startswith("lab.py doctor found 1 problem · 20")
    assert not find_evidence(row).ticked


def test_no_gpu_is_a_notice_and_no_failure(lab, facts_here):
    facts_here(**NO_GPU)
    code, out, _ = lab("doctor")
    assert code == 0
    assert "· no GPU; the lab runs on the CPU with smaller sizes" in out


def test_cheap_findings_are_printed_before_torch_is_imported(lab, facts_here, monkeypatch, capfd):
    facts_here()
    seen = []

    def slow():
        seen.append(capfd.readouterr().out)
        return WORKING

    monkeypatch.setattr(machine, "examine_torch", slow)
    assert lab("doctor")[0] == 0
    assert "✓ Python 3.12.4" in seen[0]
    assert "datasets" in seen[0]
    assert "torch imports" not in seen[0]


def test_without_torch_nothing_is_imported(lab, facts_here, monkeypatch):
    facts_here(packages={})
    monkeypatch.setattr(machine, "examine_torch", lambda: pytest.fail("there is nothing to import"))
    assert lab("doctor")[0] == 1


def test_json_is_one_object_and_nothing_else(lab, facts_here):
    facts_here(disk_free_bytes=0)
    code, out, err = lab("doctor", "--json")
    answer = json.loads(out)
    assert (code, err, answer["problems"]) == (1, "", 1)
    assert [f["name"] for f in answer["findings"] if f["level"] == "problem"] == ["disk"]
    assert answer["facts"]["torch"]["device_name"] == "NVIDIA A100"


def test_narrow_terminals_get_narrow_lines(lab, facts_here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    facts_here(visible_devices="", torch=BLIND, data_error="Read-only file system", has_python_headers=False)
    assert max(len(line) for line in lab("doctor")[1].splitlines()) <= 60


# Gathering


def fake_python(tmp_path, monkeypatch, text):
    """Replaces the interpreter that examines torch by a shell script."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.skipif(sys.platform == "win32", reason="uses a shell script")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kill -ILL $$", "exit code -4: without a word"),
        ("echo 'libcudnn.so.9: cannot open' >&2; exit 1", "exit code 1: libcudnn.so.9: cannot open"),
        ("echo nonsense", "exit code 0: without a word"),
        ("echo '[1, 2]'", "exit code 0"),
        ("exec sleep 20", "did not end within 0.3 s"),
    ],
)
def test_whatever_becomes_of_the_examination_is_an_answer(tmp_path, monkeypatch, text, expected):
    fake_python(tmp_path, monkeypatch, text)
    monkeypatch.setattr(machine, "EXAMINATION_LIMIT_S", 0.3 if "sleep" in text else 20)
    assert expected in machine.examine_torch().error


@pytest.mark.skipif(sys.platform == "win32", reason="uses a shell script")
def test_words_before_the_answer_do_no_harm(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, """echo 'Intel MKL WARNING'; echo '{"cuda": "13.0"}'""")
    assert machine.examine_torch() == TorchFacts(cuda="13.0")


@pytest.mark.parametrize(
    ("torch", "needs", "fits"),
    [
        ("2.11.0+cu130", "torch==2.11.0", True),
        ("2.12.0", "torch (==2.11.0)", False),
        ("2.15.0", "torch>=2.14.0", True),
        ("2.13.1", "torch>=2.14.0", False),
        ("2.16.0.dev20261101", "torch>=2.14.0", True),
        ("2.15.0", "numpy", None),
    ],
)
def test_torchvision_is_held_to_its_own_requirement(monkeypatch, torch, needs, fits):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["pillow!=8.3.*", needs])
    assert machine._torchvision_fits({"torch": torch, "torchvision": "0.29.2"}) is fits


def test_write_error_says_why_and_leaves_nothing(tmp_path):
    assert machine.write_error(tmp_path / "not" / "yet" / "there") == ""
    (tmp_path / "file").write_text("")
    assert machine.write_error(tmp_path / "file" / "below") == "Not a directory"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_facts_follow_the_environment(tree, monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_DATA", str(tmp_path / "my data"))
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    (tree.beta / "results").write_text("a file where the folder should be")
    facts = machine.gather_facts(tree.root)
    assert facts.data_folder == tmp_path / "my data"
    assert (facts.compiler, facts.compiler_found) == ("no-such-compiler -O3", False)
    assert facts.visible_devices == "-1"
    assert facts.results_errors == {str(tree.beta / "results"): "Not a directory"}
    assert facts.requirements == "requirements-base.txt"
    monkeypatch.chdir(tree.beta)
    assert machine.gather_facts(tree.root).requirements == str(tree.root / "requirements-base.txt")


class FakeNvml:
    """An NVML with two GPUs, of which the second is in MIG mode with `slices` slices."""

    slices = 0

    def __init__(self, *names):
        self.index = names[0] if names else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask_driver(self, query):
        return 2

    def ask(self, query, *arguments):
        if query == "nvmlDeviceGetMigDeviceHandleByIndex":
            return "a slice" if arguments[0] < self.slices else None
        answers = {"nvmlDeviceGetName": "NVIDIA H100", "nvmlDeviceGetMigMode": (self.index, 0)}
        return answers.get(query, 7)


@pytest.mark.parametrize(("slices", "is_empty"), [(0, True), (1, False)])
def test_mig_without_a_slice_is_seen(monkeypatch, slices, is_empty):
    monkeypatch.setattr(FakeNvml, "slices", slices)
    monkeypatch.setattr(machine, "Nvml", FakeNvml)
    monkeypatch.setattr(machine, "driver_version", lambda: "580.65.06")
    assert machine._ask_driver() == ("580.65.06", ("NVIDIA H100", "NVIDIA H100"), is_empty)


NVIDIA_SMI = {
    "echo '550.54.15, NVIDIA A100-SXM4-80GB'; echo '550.54.15, NVIDIA T4'": ("550.54.15", ("NVIDIA A100-SXM4-80GB", "NVIDIA T4")),
    "echo 'NVIDIA-SMI has failed'; exit 9": (None, ()),
    "echo 'No devices were found'": (None, ()),
}  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="uses a shell script")
@pytest.mark.parametrize(("text", "expected"), NVIDIA_SMI.items())
def test_the_driver_is_found_before_anything_is_installed(tmp_path, monkeypatch, text, expected):
    fake_python(tmp_path, monkeypatch, text)
    (tmp_path / "python").rename(tmp_path / "nvidia-smi")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(machine, "driver_version", lambda: None)
    assert machine._ask_driver() == (*expected, False)


def test_this_machine_is_examined(real_lab):
    """The one test that really imports torch in the other process."""
    code, out, err = real_lab("doctor", "--json")
    answer = json.loads(out)
    assert err == ""
    assert code == (1 if answer["problems"] else 0)
    import_finding = next(finding for finding in answer["findings"] if finding["name"] == "import")
    assert import_finding["level"] == "fine"
    assert answer["facts"]["torch"]["memory_total_bytes"] > 2**28
    assert answer["facts"]["python"] == list(sys.version_info[:3])
