"""Telemetry against a small NVML that answers, refuses and counts as the real one does."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from shared import telemetry
from shared.telemetry import (
    HARMLESS_REASONS,
    THROTTLE_REASONS,
    CpuTelemetry,
    Nvml,
    Sample,
    Telemetry,
    cpu_clock_mhz,
    cuda_driver_version,
    describe_throttling,
    driver_version,
    nvml_names,
    telemetry_for,
)
from tests.fake_nvml import MIB, FakeNvml

import pytest
import torch

ROOT = Path(telemetry.__file__).parents[1]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture(autouse=True)
def _no_thread_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "telemetry"]


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, **properties: object) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**properties))
    return torch.device("cuda", 0)


def test_reading_of_every_figure_in_its_unit(nvml: FakeNvml) -> None:
    with Telemetry("GPU-bbbb", interval_s=0.005) as watch:
        time.sleep(0.03)
    assert watch.available
    assert watch.reason == ""
    assert len(watch.samples) >= 3
    times = [sample.time_s for sample in watch.samples]
    assert times == sorted(times)
    assert times[-1] >= 0.03
    assert watch.samples[0] == Sample(times[0], 97, 1410, 1593, 250.5, 61, ("power cap",), 200 * MIB)
    assert nvml.open_count == 0


def test_a_block_shorter_than_the_interval_has_its_start_and_its_end(nvml: FakeNvml) -> None:
    start = time.perf_counter()
    with Telemetry(0, interval_s=60) as watch:
        pass
    assert len(watch.samples) == 2
    assert time.perf_counter() - start < 10  # leaving does not wait for the interval


def test_every_block_starts_afresh(nvml: FakeNvml) -> None:
    watch = Telemetry(0, interval_s=60)
    for _ in range(2):
        with watch:
            pass
        assert len(watch.samples) == 2
    assert nvml.open_count == 0


def test_an_error_in_the_block_passes_through_and_the_thread_ends(nvml: FakeNvml) -> None:
    with pytest.raises(ZeroDivisionError), Telemetry(0) as watch:
        _ = 1 / 0
    assert len(watch.samples) == 2
    assert nvml.open_count == 0


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("nvmlDeviceGetUtilizationRates", {"utilization_percent"}),
        ("nvmlDeviceGetClockInfo", {"sm_clock_mhz", "memory_clock_mhz"}),
        ("nvmlDeviceGetPowerUsage", {"power_w"}),
        ("nvmlDeviceGetTemperature", {"temperature_c"}),
        ("nvmlDeviceGetMemoryInfo", {"memory_used_bytes"}),
    ],
)
def test_a_refused_query_is_none_and_the_others_stay(nvml: FakeNvml, query: str, fields: set[str]) -> None:
    nvml.refuse = {query}
    with Telemetry(1) as watch:
        pass
    assert {name for name, value in vars(watch.samples[0]).items() if value is None} == fields
    assert all(watch.summary()[field] is None for field in fields)


def test_zero_watts_is_a_reading(nvml: FakeNvml) -> None:
    nvml.power_mw = 0
    with Telemetry(0) as watch:
        pass
    assert watch.samples[0].power_w == 0


def test_an_older_driver_gives_its_reasons_under_the_older_name(nvml: FakeNvml) -> None:
    nvml.refuse = {"nvmlDeviceGetCurrentClocksEventReasons"}
    with Telemetry(0) as watch:
        pass
    assert watch.samples[0].throttle_reasons == ("idle", "thermal slowdown by the driver")
    nvml.refuse.add("nvmlDeviceGetCurrentClocksThrottleReasons")
    with watch:
        pass
    assert watch.samples[0].throttle_reasons == ()


def test_machines_without_nvml_get_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it raises ImportError
    with Telemetry(0) as watch:
        pass
    assert not watch.available
    assert "pip install nvidia-ml-py" in watch.reason
    assert watch.samples == []
    summary = watch.summary()
    assert summary == {"available": False, "reason": watch.reason, "seconds": 0.0, "samples": 0}
    assert driver_version() is None
    assert cuda_driver_version() is None


def test_machines_without_a_driver_get_a_reason(nvml: FakeNvml) -> None:
    nvml.refuse = {"nvmlInit"}
    with Telemetry(0) as watch:
        pass
    assert not watch.available
    assert watch.reason == "no NVIDIA driver answers: Not Supported"
    assert driver_version() is None
    assert cuda_driver_version() is None


@pytest.mark.parametrize("name", [7, "GPU-cccc", "00000000:00:00.0"])
def test_a_gpu_that_nvml_does_not_know(nvml: FakeNvml, name: int | str) -> None:
    with Telemetry(name) as watch:
        pass
    assert not watch.available
    assert str(name) in watch.reason
    assert "\n" not in watch.reason
    assert nvml.open_count == 0


def test_names_are_tried_in_order(nvml: FakeNvml) -> None:
    for names in (("GPU-cccc", "00000001:af:00.0"), ("GPU-bbbb", "00000000:3b:00.0"), (7, 1)):
        with Nvml(*names) as gpu:
            assert gpu.ask("nvmlDeviceGetMemoryInfo").used == 200 * MIB
            assert gpu.reason == ""


def test_a_query_that_this_pynvml_lacks_is_none(nvml: FakeNvml) -> None:
    with Nvml(0) as gpu:
        assert gpu.ask("nvmlDeviceGetSomethingOf2030") is None
        assert gpu.ask_driver("nvmlSystemGetSomethingOf2030") is None
    assert gpu.ask("nvmlDeviceGetPowerUsage") is None  # closed


def test_versions(nvml: FakeNvml) -> None:
    assert driver_version() == "580.65.06"
    assert cuda_driver_version() == (13, 2)
    nvml.cuda_version = 13100
    assert cuda_driver_version() == (13, 10)
    assert nvml.open_count == 0


def test_the_gpu_is_found_by_its_identity_whatever_cuda_visible_devices_says(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With CUDA_VISIBLE_DEVICES=1, torch's device 0 is NVML's GPU 1.
    address = {"pci_domain_id": 1, "pci_bus_id": 0xAF, "pci_device_id": 0}
    device = pretend_cuda(monkeypatch, uuid="bbbb", **address)
    assert nvml_names(device) == ["GPU-bbbb", "00000001:af:00.0"]
    with telemetry_for(device) as watch:
        pass
    assert watch.samples[0].memory_used_bytes == 200 * MIB

    slice_of_it = pretend_cuda(monkeypatch, uuid="a-slice-of-bbbb", **address)
    with telemetry_for(slice_of_it) as watch:
        pass
    assert watch.samples[0].memory_used_bytes == 200 * MIB

    with telemetry_for(pretend_cuda(monkeypatch)) as watch:  # a torch that tells neither
        pass
    assert not watch.available


def test_reasons_and_enumerators_are_those_of_nvml() -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed for this system")
    names = {
        "GpuIdle": "idle",
        "ApplicationsClocksSetting": "application clocks",
        "SwPowerCap": "power cap",
        "HwSlowdown": "hardware slowdown",
        "SyncBoost": "sync boost",
        "SwThermalSlowdown": "thermal slowdown by the driver",
        "HwThermalSlowdown": "thermal slowdown by the hardware",
        "HwPowerBrakeSlowdown": "power brake",
        "DisplayClockSetting": "display clocks",
    }
    for suffix, words in names.items():
        assert describe_throttling(getattr(real, f"nvmlClocksEventReason{suffix}")) == (words,)
    assert describe_throttling(real.nvmlClocksEventReasonNone) == ()
    assert sum(THROTTLE_REASONS) & real.nvmlClocksThrottleReasonAll == real.nvmlClocksThrottleReasonAll
    assert real.NVML_CLOCK_SM == telemetry.NVML_CLOCK_SM
    assert real.NVML_CLOCK_MEM == telemetry.NVML_CLOCK_MEMORY
    assert real.NVML_TEMPERATURE_GPU == telemetry.NVML_TEMPERATURE_DIE


def test_reasons_in_words() -> None:
    assert describe_throttling(0x44) == ("power cap", "thermal slowdown by the hardware")
    assert describe_throttling(0x8004) == ("power cap", "reason 0x8000")
    assert set(THROTTLE_REASONS.values()) > HARMLESS_REASONS


def test_summary_of_samples(nvml: FakeNvml) -> None:
    watch = Telemetry(0)
    powers = [100.0, 300.0, None, 250.0]
    reasons: list[tuple[str, ...]] = [("idle",), ("power cap",), ("power cap", "sync boost"), ()]
    watch.samples = [
        Sample(i * 0.5, 50.0, 1000.0 + i, None, power, 60, why, 5)
        for i, (power, why) in enumerate(zip(powers, reasons, strict=True))
    ]
    summary = watch.summary()
    assert summary["samples"] == 4
    assert summary["seconds"] == 1.5
    assert summary["power_w"] == {"min": 100, "median": statistics.median([100, 250, 300]), "max": 300}
    assert summary["sm_clock_mhz"] == {"min": 1000, "median": 1001.5, "max": 1003}
    assert summary["memory_clock_mhz"] is None
    assert summary["throttle_reasons"] == {"idle": 0.25, "power cap": 0.5, "sync boost": 0.25}
    assert summary["slowed_by"] == ["power cap", "sync boost"]
    assert "time_s" not in summary
    assert json.loads(json.dumps(summary)) == summary


def test_a_busy_process_is_seen_on_the_cpu() -> None:
    with telemetry_for(torch.device("cpu"), interval_s=0.05) as watch:
        start = time.perf_counter()
        while time.perf_counter() - start < 0.3:
            sum(range(1000))
    assert isinstance(watch, CpuTelemetry)
    assert watch.available
    shares = [s.process_share_percent for s in watch.samples if s.process_share_percent is not None]
    assert shares
    assert 0 < max(shares) < 120  # 100 is every core; the two clocks differ by a tick
    assert watch.summary()["process_share_percent"]["max"] == max(shares)
    if hasattr(os, "getloadavg"):
        assert all(sample.load is not None and sample.load >= 0 for sample in watch.samples)


def test_a_sleeping_process_uses_next_to_nothing() -> None:
    with CpuTelemetry(interval_s=60) as watch:
        time.sleep(0.2)
    assert watch.samples[0].process_share_percent is None  # no time has passed to take a share of
    assert watch.samples[-1].process_share_percent < 50


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({4: "2400000\n", 5: "3100000\n"}, 3100.0),
        ({4: "unreadable", 5: "3100000\n"}, None),
        ({"proc": "processor : 0\ncpu MHz\t\t: 2596.142\n\ncpu MHz\t\t: 2801.5\n"}, 2801.5),
        ({"proc": "processor : 0\nBogoMIPS : 48.00\n"}, None),  # Arm says nothing
        ({}, None),  # neither macOS nor Windows has these files
    ],
)
def test_cpu_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[int | str, str], expected: float | None
) -> None:
    for cpu, text in files.items():
        path = tmp_path / (
            "proc/cpuinfo" if cpu == "proc" else f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"
        )
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.setattr(telemetry, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert cpu_clock_mhz([4, 5]) == expected


def test_importing_needs_neither_torch_nor_nvml() -> None:
    code = "import sys, shared.telemetry; print({'torch', 'pynvml'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"
