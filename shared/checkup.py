"""What the facts about a machine mean for the lab: one finding each, and for a problem its cure on this system.

Each check is a pure function of the facts; None means that it has nothing to say about such a machine.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from shared.cures import cure_for
from shared.machine import Facts, TorchFacts
from shared.units import bytes_text, significant

Level = Literal["fine", "notice", "problem"]

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)
OLDEST_TORCH, NEWEST_TORCH = (2, 11), (2, 15)
# CUDA major version → oldest driver that runs programs built for it. NVIDIA, CUDA Compatibility, "Minor Version
# Compatibility", table 1: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
INSTALL_BYTES = 8 * 10**9  # the CUDA build of torch and what it needs: 2.9 GiB to download, 5.4 GiB unpacked
RUN_BYTES = 2 * 10**9  # records, pictures, checkpoints and a small dataset
MEMORY_BYTES = 2 * 2**30  # a full-size script on the CPU
# float32 sums of 384 products differ in the sixth digit, TF32 in the third; a broken GPU differs in the first.
PRODUCT_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Finding:
    """One line of the doctor; `cure` says what to do, and stands there for every problem."""

    name: str
    level: Level
    text: str
    cure: str = ""


Check = Callable[[Facts], Finding | None]


def _fine(name: str, text: str) -> Finding:
    return Finding(name, "fine", text)


def _numbers(version: str) -> tuple[int, int]:
    """(2, 15) for "2.15.0+cu132"."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _torch(facts: Facts) -> TorchFacts | None:
    """What torch said, where it can be imported."""
    return facts.torch if facts.torch and not facts.torch.error else None


def _is_hidden(facts: Facts) -> bool:
    """CUDA_VISIBLE_DEVICES names no GPU. CUDA reads it up to the first number that is not a GPU's."""
    return facts.visible_devices is not None and facts.visible_devices.split(",")[0].strip() in ("", "-1")


def _is_driver_too_old(facts: Facts) -> bool:
    """By NVIDIA's table, unless torch computes on the GPU all the same (a compatibility package)."""
    torch = _torch(facts)
    if torch is None or torch.device or not torch.cuda or not facts.driver:
        return False
    return int(facts.driver.split(".")[0]) < OLDEST_DRIVER.get(_numbers(torch.cuda)[0], 0)


def check_python(facts: Facts) -> Finding:
    version = ".".join(map(str, facts.python))
    if OLDEST_PYTHON <= facts.python[:2] <= NEWEST_PYTHON:
        return _fine("Python", f"Python {version}")
    text = f"Python {version}; the lab is made for 3.11 to 3.14"
    return Finding("Python", "problem", text, cure_for("newer Python", facts))


def check_torch_version(facts: Facts) -> Finding:
    version = facts.packages.get("torch")
    if version is None or _numbers(version) < OLDEST_TORCH:
        text = f"torch {version}; the lab needs 2.11 or newer" if version else "PyTorch is not installed here"
        if facts.system == "darwin" and facts.processor == "x86_64":
            text += ", and since 2.3 it is made for Apple silicon only"
            return Finding("torch", "problem", text, cure_for("Apple silicon", facts))
        return Finding("torch", "problem", text, cure_for("install", facts))
    if _numbers(version) > NEWEST_TORCH:
        return Finding("torch", "notice", f"torch {version} is newer than the lab's tests, which end with 2.15")
    return _fine("torch", f"torch {version}")


def check_torchvision_version(facts: Facts) -> Finding | None:
    if "torch" not in facts.packages:
        return None
    if "torchvision" not in facts.packages:
        return Finding("torchvision", "problem", "torchvision is not installed", cure_for("install", facts))
    pair = f"torchvision {facts.packages['torchvision']} beside torch {facts.packages['torch']}"
    if facts.torchvision_fits is False:
        return Finding("torchvision", "problem", f"{pair} do not belong together", cure_for("install", facts))
    return _fine("torchvision", pair)


def check_pynvml(facts: Facts) -> Finding | None:
    """The package pynvml is an abandoned redirect to nvidia-ml-py."""
    if "pynvml" not in facts.packages:
        return None
    text = "the abandoned package pynvml is installed, which makes torch warn at every import"
    return Finding("pynvml", "problem", text, cure_for("pynvml", facts))


def check_compiler(facts: Facts) -> Finding:
    if not facts.compiler_found:
        text = f"torch.compile calls {facts.compiler}, which is not here"
        return Finding("compiler", "problem", text, cure_for("use clang" if facts.has_clang else "compiler", facts))
    if not facts.has_python_headers:
        text = "Python.h is not here, which torch.compile needs beside a compiler"
        return Finding("compiler", "problem", text, cure_for("headers", facts))
    return _fine("compiler", f"{facts.compiler} for torch.compile")


def check_disk(facts: Facts) -> Finding:
    free = f"{significant(facts.disk_free_bytes / 1e9)} GB free on the lab's disk"
    is_installed = "torch" in facts.packages
    needed = RUN_BYTES if is_installed else INSTALL_BYTES
    if facts.disk_free_bytes >= needed:
        return _fine("disk", free)
    what = "runs may take" if is_installed else "an installation takes"
    return Finding("disk", "problem", f"{free}; {what} {needed // 10**9} GB", cure_for("disk", facts))


def check_data_folder(facts: Facts) -> Finding:
    if not facts.data_error:
        return _fine("datasets", f"datasets are kept in {facts.data_folder}")
    text = f"cannot write to {facts.data_folder}: {facts.data_error}"
    return Finding("datasets", "problem", text, cure_for("datasets", facts))


def check_results_folders(facts: Facts) -> Finding:
    if not facts.results_errors:
        return _fine("results", "results can be written")
    folder, error = next(iter(facts.results_errors.items()))
    return Finding("results", "problem", f"cannot write to {folder}: {error}", cure_for("results", facts))


def check_terminal(facts: Facts) -> Finding:
    if facts.can_print_signs:
        return _fine("terminal", f"the output can have ✓ and ─ ({facts.encoding})")
    text = f"the output is {facts.encoding}, so plain signs replace the lab's"
    return Finding("terminal", "notice", text, cure_for("signs", facts))


def check_visible_devices(facts: Facts) -> Finding | None:
    if not facts.driver or not _is_hidden(facts):
        return None
    text = f"CUDA_VISIBLE_DEVICES is {facts.visible_devices!r}, which hides every GPU from torch"
    return Finding("visible devices", "problem", text, cure_for("show the GPU", facts))


def check_torch_import(facts: Facts) -> Finding | None:
    if facts.torch is None:
        return None
    if facts.torch.error:
        text = f"torch cannot be imported: {facts.torch.error}"
        return Finding("import", "problem", text, cure_for("reinstall", facts))
    cuda, hip = facts.torch.cuda, facts.torch.hip
    build = f"for CUDA {cuda}" if cuda else f"for ROCm {hip}" if hip else "without CUDA"
    return _fine("import", f"torch imports; it is built {build}")


def check_driver(facts: Facts) -> Finding | None:
    torch = _torch(facts)
    if not facts.driver or torch is None or not torch.cuda:
        return None
    if not _is_driver_too_old(facts):
        return _fine("driver", f"NVIDIA driver {facts.driver} serves a torch built for CUDA {torch.cuda}")
    oldest = OLDEST_DRIVER[_numbers(torch.cuda)[0]]
    text = f"NVIDIA driver {facts.driver} is too old: a torch built for CUDA {torch.cuda} needs {oldest} or newer"
    return Finding("driver", "problem", text, cure_for("driver", facts, driver=oldest))


def check_gpu(facts: Facts) -> Finding | None:
    """Whether torch sees the GPU; where it does not, the likeliest cause."""
    torch = _torch(facts)
    if torch is None:
        return None
    if torch.device:
        more = f" and {torch.device_count - 1} more" if torch.device_count > 1 else ""
        return _fine("GPU", f"torch sees {torch.device_name}{more} ({torch.device})")
    if not facts.driver:
        return Finding("GPU", "notice", "no GPU; the lab runs on the CPU with smaller sizes", cure_for("no GPU", facts))
    card = facts.gpus[0] if facts.gpus else "a GPU"
    if not torch.cuda:
        text = f"the driver has {card}, but this torch is built without CUDA"
        return Finding("GPU", "problem", text, cure_for("CUDA build", facts))
    if _is_driver_too_old(facts) or _is_hidden(facts):
        return None  # said by another check
    if facts.has_empty_mig:
        text = f"{card} is in MIG mode and has no slice, so CUDA finds nothing to use"
        return Finding("GPU", "problem", text, cure_for("MIG", facts))
    if facts.visible_devices is not None:
        text = f"the driver has {card}; torch finds no GPU with CUDA_VISIBLE_DEVICES={facts.visible_devices}"
        return Finding("GPU", "problem", text, cure_for("show the GPU", facts))
    text = f"the driver has {card}, but torch cannot use it: {torch.reason or 'it gives no reason'}"
    return Finding("GPU", "problem", text, cure_for("wake the GPU", facts))


def check_computing(facts: Facts) -> Finding | None:
    """A GPU that is listed may still not compute: unknown to this build, full, or broken."""
    torch = _torch(facts)
    if torch is None or not torch.device:
        return None
    if torch.device_error:
        problem = torch.device_error.lower()
        key = "other build" if "no kernel image" in problem else "free the GPU" if "memory" in problem else "GPU fails"
        text = f"{torch.device_name or torch.device} does not compute: {torch.device_error}"
        return Finding("computing", "problem", text, cure_for(key, facts))
    error = torch.product_error
    if error is None or not error <= PRODUCT_TOLERANCE:  # so that not-a-number is wrong too
        text = f"{torch.device_name} computes wrongly: a product is off by {significant(error)} of its largest entry"
        return Finding("computing", "problem", text, cure_for("GPU is wrong", facts))
    return _fine("computing", f"a product on {torch.device_name} equals the CPU's (off by {error:.0e})")


def check_torchvision_import(facts: Facts) -> Finding | None:
    torch = _torch(facts)
    if torch is None or not torch.torchvision_error:
        return None
    if "torchvision::nms" in torch.torchvision_error:
        why = "its compiled part was made for another build of torch (operator torchvision::nms does not exist)"
    else:
        why = torch.torchvision_error
    return Finding("torchvision", "problem", f"torchvision cannot be imported: {why}", cure_for("same source", facts))


def check_memory(facts: Facts) -> Finding | None:
    torch = _torch(facts)
    if torch is None or torch.memory_total_bytes is None:
        return None
    total, free = bytes_text(torch.memory_total_bytes), torch.memory_free_bytes
    if free is None:
        return _fine("memory", f"{total} of memory")
    text = f"{bytes_text(free)} of {total} of memory free"
    if free >= MEMORY_BYTES:
        return _fine("memory", text)
    text += f"; a full-size script takes up to {bytes_text(MEMORY_BYTES)}"
    return Finding("memory", "problem", text, cure_for("memory", facts))


MACHINE_CHECKS: tuple[Check, ...] = (
    check_python,
    check_torch_version,
    check_torchvision_version,
    check_pynvml,
    check_compiler,
    check_disk,
    check_data_folder,
    check_results_folders,
    check_terminal,
    check_visible_devices,
)
TORCH_CHECKS: tuple[Check, ...] = (
    check_torch_import,
    check_driver,
    check_gpu,
    check_computing,
    check_torchvision_import,
    check_memory,
)


def examine(facts: Facts, checks: tuple[Check, ...]) -> list[Finding]:
    """The findings of `checks`, in their order."""
    return [finding for check in checks if (finding := check(facts))]
