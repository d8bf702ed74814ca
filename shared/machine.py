"""What `lab doctor` has to know about this machine, gathered once: first what is cheap, then what only torch can say.

torch is examined in a process of its own (`python -m shared.machine`), because a wrong build can end the process
that imports it and a GPU in a bad state can hang it.
"""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from shared.records import projects
from shared.telemetry import Nvml, driver_version
from shared.terminal import SIGNS, can_encode

PACKAGES = ("torch", "torchvision", "nvidia-ml-py", "pynvml")
EXAMINATION_LIMIT_S = 300  # a first import from a cold network disk takes over a minute


@dataclass(frozen=True)
class TorchFacts:
    """What torch says about itself; `error` where it cannot be imported."""

    error: str = ""
    cuda: str | None = None  # CUDA version that torch was built for; None for a CPU, Apple or AMD build
    hip: str | None = None  # the same for AMD
    device: str = ""  # "cuda", "mps", or "" without a GPU that torch can use
    device_name: str = ""
    device_count: int = 0
    reason: str = ""  # what torch said when it looked for a GPU
    product_error: float | None = None  # largest error of a product on the GPU, as a share of its largest entry
    device_error: str = ""  # why there is no such product
    torchvision_error: str = ""
    memory_free_bytes: int | None = None
    memory_total_bytes: int | None = None


@dataclass(frozen=True)
class Facts:
    """This machine. `torch` is None until it has been examined."""

    system: str  # "linux", "darwin" or "win32"
    processor: str  # "x86_64", "arm64", …
    is_wsl: bool
    python: tuple[int, int, int]
    packages: Mapping[str, str]  # of PACKAGES, those that are installed → version
    torchvision_fits: bool | None  # whether its metadata allow this torch; None: nobody can say
    installer: str  # "python -m pip" or "uv pip"
    requirements: str  # requirements-base.txt, as a command names it
    driver: str | None  # of NVIDIA, such as "580.65.06"
    gpus: tuple[str, ...]  # names that the driver gives, whatever CUDA_VISIBLE_DEVICES says
    has_empty_mig: bool  # a GPU is in MIG mode and has no slice that could be used
    visible_devices: str | None  # CUDA_VISIBLE_DEVICES
    compiler: str  # what torch.compile calls for C++
    compiler_found: bool
    has_clang: bool
    has_python_headers: bool
    disk_free_bytes: int
    data_folder: Path
    data_error: str  # why nothing can be written there; "" where it can
    results_errors: Mapping[str, str]  # folder → why nothing can be written there
    encoding: str
    can_print_signs: bool
    torch: TorchFacts | None = field(default=None)


def gather_facts(root: Path) -> Facts:
    """Everything that is known without importing torch, in well under a second. `root` is the lab's folder."""
    packages = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    data_folder = Path(os.environ.get("LAB_DATA") or root / "data")
    results = {project / "results": write_error(project / "results") for project in projects()}
    driver, gpus, has_empty_mig = _ask_driver()
    return Facts(
        system=sys.platform,
        processor=platform.machine(),
        is_wsl="microsoft" in platform.release().lower(),
        python=sys.version_info[:3],
        packages=packages,
        torchvision_fits=_torchvision_fits(packages),
        installer="python -m pip" if _is_installed("pip") else "uv pip",
        requirements=_as_typed(root / "requirements-base.txt"),
        driver=driver,
        gpus=gpus,
        has_empty_mig=has_empty_mig,
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        compiler=compiler,
        compiler_found=shutil.which(compiler.split()[0]) is not None,
        has_clang=shutil.which("clang++") is not None,
        has_python_headers=(Path(sysconfig.get_path("include")) / "Python.h").is_file(),
        disk_free_bytes=shutil.disk_usage(root).free,
        data_folder=data_folder,
        data_error=write_error(data_folder),
        results_errors={str(folder): error for folder, error in results.items() if error},
        encoding=sys.stdout.encoding or "ascii",
        can_print_signs=can_encode(sys.stdout, SIGNS),
    )


def _is_installed(package: str) -> bool:
    """By its metadata: find_spec("pip") makes setuptools withdraw, which torch.compile would then miss."""
    with suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(package))
    return False


def _as_typed(path: Path) -> str:
    """The path as a command would name it: short where it is below the present folder, in quotes where it must be."""
    with suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return f'"{path}"' if " " in str(path) else str(path)


def write_error(folder: Path) -> str:
    """Why `folder`, or what would have to be made for it, cannot be written; "" where it can. Leaves nothing behind."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _torchvision_fits(packages: Mapping[str, str]) -> bool | None:
    """Whether torchvision was built for this torch: each of its releases names the torch that it needs."""
    if not {"torch", "torchvision"} <= packages.keys():
        return None
    try:
        from packaging.requirements import Requirement  # comes with matplotlib
    except ImportError:
        return None
    for text in metadata.requires("torchvision") or []:
        needed = Requirement(text)
        if needed.name == "torch":
            return needed.specifier.contains(packages["torch"], prereleases=True)
    return None


def _ask_driver() -> tuple[str | None, tuple[str, ...], bool]:
    """The NVIDIA driver's version, the names of its GPUs, and whether one is in MIG mode without a slice."""
    if driver := driver_version():
        names, has_empty_mig = [], False
        with Nvml() as nvml:
            count = nvml.ask_driver("nvmlDeviceGetCount") or 0
        for index in range(count):
            with Nvml(index) as nvml:
                names.append(str(nvml.ask("nvmlDeviceGetName")))
                mode, slices = nvml.ask("nvmlDeviceGetMigMode"), nvml.ask("nvmlDeviceGetMaxMigDeviceCount") or 0
                made = any(nvml.ask("nvmlDeviceGetMigDeviceHandleByIndex", number) for number in range(slices))
                has_empty_mig |= bool(mode and mode[0]) and not made
        return driver, tuple(names), has_empty_mig
    with suppress(OSError, subprocess.SubprocessError, ValueError):  # before nvidia-ml-py is installed
        command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        found = [line.split(", ", 1) for line in answer.splitlines() if ", " in line]
        return found[0][0] if found else None, tuple(name for _, name in found), False
    return None, (), False


def examine_torch() -> TorchFacts:
    """Runs `python -m shared.machine` and reads what it found; whatever becomes of it, the answer is a TorchFacts."""
    command = [sys.executable, "-m", "shared.machine"]
    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=EXAMINATION_LIMIT_S)
        return TorchFacts(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return TorchFacts(error=f"importing it and one product did not end within {EXAMINATION_LIMIT_S} s")
    except (IndexError, TypeError, ValueError):
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        return TorchFacts(error=f"its process ended with exit code {done.returncode}: {last}")


def _torch_facts() -> TorchFacts:
    """In the other process: imports torch, finds the GPU, and computes one product on it and on the CPU."""
    warnings.simplefilter("ignore")
    try:
        import torch
    except Exception as error:  # a missing DLL is an OSError, a mixed install anything
        return TorchFacts(error=_one_line(error))
    from shared.device import device_name, memory

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        has_cuda = torch.cuda.is_available()
    device = "cuda" if has_cuda else "mps" if torch.backends.mps.is_available() else ""
    facts: dict[str, object] = {"cuda": torch.version.cuda, "hip": torch.version.hip, "device": device}
    facts["reason"] = " ".join(str(said[-1].message).split()) if said else ""
    main_memory = memory(torch.device("cpu"))
    facts["memory_free_bytes"], facts["memory_total_bytes"] = main_memory.free_bytes, main_memory.total_bytes
    if device:
        try:
            facts["device_name"] = device_name(torch.device(device))
            facts["device_count"] = torch.cuda.device_count() if has_cuda else 1
            a, b = (torch.randn(384, 384, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
            expected, found = a @ b, (a.to(device) @ b.to(device)).cpu()
            facts["product_error"] = float((found - expected).abs().max() / expected.abs().max())
        except Exception as error:
            facts["device_error"] = _one_line(error)
    if importlib.util.find_spec("torchvision"):
        try:
            importlib.import_module("torchvision")
        except Exception as error:
            facts["torchvision_error"] = _one_line(error)
    return TorchFacts(**facts)  # type: ignore[arg-type]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_torch_facts())) + "\n")
