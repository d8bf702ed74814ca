"""What this device is, and the limits that everything below is held against."""

import os

from shared.device import describe
from shared.hardware import Limit, describe_gpu, link_bandwidth, matmul_peak, memory_bandwidth
from shared.lesson import Lesson
from shared.units import rate_text, significant

import torch

# What PyTorch can multiply, in falling precision; TF32 is float32 data with a shortened product.
PEAK_DTYPES = {
    "float64": (torch.float64, False),
    "float32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "float8": (torch.float8_e4m3fn, False),
    "int8": (torch.int8, False),
}


def show_device_card(lesson: Lesson) -> None:
    lesson.section(
        "The device",
        "Two numbers decide how fast a program can be: how many operations a second the chip can do, and how many "
        "bytes a second its memory can deliver. On a GPU they come from the maker's data sheet, found by the exact "
        "name; on a CPU they are measured. Every result below stands beside one of them.",
    )
    facts = describe_gpu(lesson.device) if lesson.device.type == "cuda" else describe(lesson.device)
    lesson.facts |= facts
    lesson.table([{"device": label(key), "here": _text(value)} for key, value in facts.items() if value is not None])
    limits = []
    bandwidth = memory_bandwidth(lesson.device)
    if bandwidth:
        limits.append(
            {"limit": "memory", "at most": rate_text(bandwidth.value, bandwidth.unit), "source": bandwidth.source}
        )
    if lesson.device.type == "cuda" and (link := link_bandwidth(lesson.device)):
        limits.append({"limit": "link to the CPU", "at most": rate_text(link.value, link.unit), "source": link.source})
    # A CPU's peak has to be measured, which takes a second for each type; the others follow under `precision`.
    names = ["float32"] if lesson.device.type != "cuda" else list(PEAK_DTYPES)
    for name in names:
        dtype, tf32 = PEAK_DTYPES[name]
        if peak := matmul_peak(lesson.device, dtype, tf32=tf32):
            limits.append(
                {"limit": f"{name} products", "at most": rate_text(peak.value, peak.unit), "source": peak.source}
            )
    lesson.table(limits)

    if lesson.device.type == "cuda":
        product = torch.ones(64, 64, device=lesson.device) @ torch.ones(64, 64, device=lesson.device)
        lesson.check(
            "the GPU computes: a product of ones is exactly 64 everywhere",
            bool((product == 64).all()),
            f"{product.unique().tolist()}",
        )
    else:
        logical = os.cpu_count() or 1
        lesson.check(
            "PyTorch uses no more threads than there are logical cores",
            torch.get_num_threads() <= logical,
            f"{torch.get_num_threads()} threads, {logical} cores",
        )
    peak = matmul_peak(lesson.device, torch.float32)
    if peak is None or bandwidth is None:
        lesson.note("This device's limits are not known, so shares of the limit are left out below.")
        return
    ridge = peak.value / bandwidth.value
    lesson.record("ridge", ridge, "FLOP/B")
    lesson.shows(
        f"in the time that memory needs to deliver one float32 number, this device could do {4 * ridge:,.0f} float32 "
        "operations with it. Most programs do one or two, so they wait for memory; that is why the roofline "
        "at the end matters more than the peak."
    )


def in_unit(lesson: Lesson, unit: str) -> tuple[float, str]:
    """Divisor and name of the unit for rates of products: GFLOP/s on a CPU, TFLOP/s on a GPU."""
    scale, prefix = (1e9, "G") if lesson.device.type == "cpu" else (1e12, "T")
    return scale, prefix + unit


def raised_to(limit: Limit | None, rate: float, kernel: str) -> Limit | None:
    """A measured limit is the best that was seen, so a faster `kernel` is the new limit; a data sheet stays as it is."""
    if limit and limit.kind == "measured" and rate > limit.value:
        return Limit(rate, limit.unit, f"measured here: {kernel}", "measured")
    return limit


def label(key: str) -> str:
    """ "sm_clock_mhz" as "sm clock (MHz)"."""
    words = key.split("_")
    units = {"gib": "GiB", "mib": "MiB", "bytes": "B", "mhz": "MHz", "w": "W", "c": "°C", "percent": "%"}
    if words[-1] in units and len(words) > 1:
        return f"{' '.join(words[:-1])} ({units[words[-1]]})"
    return " ".join(words)


def _text(value: object) -> str:
    return significant(value) if isinstance(value, int | float) else str(value)
