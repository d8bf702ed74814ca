"""What the machine does while a lesson runs: clocks, power, temperature, utilisation, and why it slowed down.

GPU figures come from NVML, the library under `nvidia-smi` (module `pynvml`, package nvidia-ml-py). Nothing here
raises on a machine without it: a missing driver makes `available` False with the reason in words, and what the card,
the driver or the permissions refuse to tell is None. Neither torch nor pynvml is imported before it is needed.

Reference: NVML API Reference Guide, https://docs.nvidia.com/deploy/nvml-api/
"""

import dataclasses
import os
import statistics
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

if TYPE_CHECKING:
    import torch

NVML_CLOCK_SM, NVML_CLOCK_MEMORY, NVML_TEMPERATURE_DIE = 1, 2, 0  # enumerators of nvml.h

# Bits of nvmlClocksEventReasons, which older drivers call nvmlClocksThrottleReasons.
THROTTLE_REASONS = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "thermal slowdown by the driver",
    0x040: "thermal slowdown by the hardware",
    0x080: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}
# Nothing to do, or a clock that somebody chose: neither says that the card could not keep its speed.
HARMLESS_REASONS = frozenset({"idle", "application clocks"})


class Nvml:
    """One GPU as NVML sees it; closes with its `with` block. `reason` says why there is no GPU, "" where there is.

    `names` are tried in order: a UUID ("GPU-…"), a PCI address ("00000000:3b:00.0") or NVML's own index, which counts
    every GPU of the machine and ignores CUDA_VISIBLE_DEVICES. For a device of torch, `nvml_names` has the right ones.
    Without a name, only `ask_driver` gives answers.
    """

    def __init__(self, *names: int | str) -> None:
        self._pynvml: Any = None
        self._handle: Any = None
        try:
            import pynvml
        except ImportError:
            self.reason = "NVML is not installed; pip install nvidia-ml-py"
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.reason = f"no NVIDIA driver answers: {error}"
            return
        self._pynvml = pynvml
        for name in names:
            kind = "Index" if isinstance(name, int) else "UUID" if name.startswith("GPU-") else "PciBusId"
            self._handle = self._handle or self.ask_driver(f"nvmlDeviceGetHandleBy{kind}", name)
        self.reason = "" if self._handle else f"NVML knows no GPU {' or '.join(map(str, names))}"

    def ask_driver(self, query: str, *arguments: Any) -> Any:
        """`pynvml.<query>(*arguments)`, or None where that is missing or refused."""
        function = getattr(self._pynvml, query, None)
        if function is None:
            return None
        try:
            return function(*arguments)
        except self._pynvml.NVMLError:  # not supported, no permission, unknown to this driver, GPU lost
            return None

    def ask(self, query: str, *arguments: Any) -> Any:
        """`pynvml.<query>(this GPU, *arguments)`, or None where that is missing or refused."""
        return self.ask_driver(query, self._handle, *arguments) if self._handle else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ask_driver("nvmlShutdown")  # counted by NVML: it undoes this object's nvmlInit only
        self._pynvml = self._handle = None


def nvml_names(device: "torch.device") -> list[str]:
    """Names under which NVML finds a CUDA device of torch, whatever CUDA_VISIBLE_DEVICES says.

    The UUID is exact. The PCI address is there for a slice of a GPU (MIG), whose UUID is its own: NVML then reports
    the whole GPU.
    """
    import torch

    properties: Any = torch.cuda.get_device_properties(device)
    names = [f"GPU-{properties.uuid}"] if hasattr(properties, "uuid") else []
    if hasattr(properties, "pci_bus_id"):
        domain, bus, slot = properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id
        names.append(f"{domain:08x}:{bus:02x}:{slot:02x}.0")
    return names


def driver_version() -> str | None:
    """Version of the NVIDIA driver such as "580.65.06"; None without a driver."""
    with Nvml() as nvml:
        version: str | None = nvml.ask_driver("nvmlSystemGetDriverVersion")
    return version


def cuda_driver_version() -> tuple[int, int] | None:
    """Newest CUDA version that the driver supports, such as (13, 0), ready to be compared; None without a driver."""
    with Nvml() as nvml:
        version = nvml.ask_driver("nvmlSystemGetCudaDriverVersion_v2")  # 13000 is 13.0
    return None if version is None else (version // 1000, version % 1000 // 10)


def describe_throttling(bits: int) -> tuple[str, ...]:
    """The reasons in an NVML bit mask, in words; a bit that is newer than the table here keeps its number."""
    set_bits = (1 << position for position in range(bits.bit_length()) if bits >> position & 1)
    return tuple(THROTTLE_REASONS.get(bit, f"reason {bit:#x}") for bit in set_bits)


def cpu_clock_mhz(cpus: list[int]) -> float | None:
    """Clock of the fastest of these CPUs now (the first eight: each costs a read); None where Linux does not say."""
    files = [Path(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in cpus[:8]]
    try:
        if files and files[0].exists():
            return max(int(file.read_text()) for file in files) / 1000
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return max((float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")), default=None)
    except (OSError, ValueError):
        return None


@dataclasses.dataclass(frozen=True)
class Sample:
    """One reading of a GPU; None is a figure that this card or driver does not give.

    `utilization_percent` is the share of the driver's last sampling period (up to 1 s) in which any kernel ran: 100 %
    does not mean that the GPU was full. `power_w` is an average over about a second on many cards.
    """

    time_s: float
    utilization_percent: float | None
    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    power_w: float | None
    temperature_c: float | None
    throttle_reasons: tuple[str, ...]
    memory_used_bytes: int | None


@dataclasses.dataclass(frozen=True)
class CpuSample:
    """One reading of the CPU. `process_share_percent` is 100 when every core open to this process works for it."""

    time_s: float
    clock_mhz: float | None
    load: float | None
    process_share_percent: float | None


AnySample = TypeVar("AnySample", Sample, CpuSample)


class _Sampler(Generic[AnySample]):
    """Reads a sample every `interval_s` in a background thread while the `with` block runs.

    A block has a sample at its start and one at its end, however short it is. Reading takes time from a core: leave it
    out of a block whose microseconds are measured.
    """

    def __init__(self, interval_s: float = 0.1) -> None:
        self.interval_s = interval_s
        self.samples: list[AnySample] = []
        self.available, self.reason = False, "not started"

    def _open(self) -> str:
        """Prepares for `_read`; returns why that is impossible here, else ""."""
        raise NotImplementedError

    def _read(self, time_s: float) -> AnySample:
        raise NotImplementedError

    def _run(self) -> None:
        start = time.perf_counter()
        stopping = False
        while not stopping:
            self.samples.append(self._read(time.perf_counter() - start))
            stopping = self._stop.wait(self.interval_s)
        self.samples.append(self._read(time.perf_counter() - start))

    def __enter__(self) -> Self:
        self.samples = []
        self.reason = self._open()
        self.available = not self.reason
        if self.available:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.available:
            self._stop.set()
            self._thread.join()

    def summary(self) -> dict[str, Any]:
        """Smallest, median and largest of each figure (None where there was none), ready for JSON.

        `throttle_reasons` gives the share of the samples with each reason, `slowed_by` those that are not harmless.
        """
        seconds = self.samples[-1].time_s if self.samples else 0.0
        summary: dict[str, Any] = {"available": self.available, "reason": self.reason, "seconds": seconds}
        summary["samples"] = len(self.samples)
        for name in vars(self.samples[0]) if self.samples else ():
            values = [getattr(sample, name) for sample in self.samples]
            known = [value for value in values if value is not None]
            if name == "throttle_reasons":
                seen = sorted({reason for reasons in values for reason in reasons})
                summary[name] = {reason: sum(reason in reasons for reasons in values) / len(values) for reason in seen}
                summary["slowed_by"] = [reason for reason in seen if reason not in HARMLESS_REASONS]
            elif name != "time_s":
                spread = {"min": min(known), "median": statistics.median(known), "max": max(known)} if known else None
                summary[name] = spread
        return summary


class Telemetry(_Sampler[Sample]):
    """Samples one GPU: `with Telemetry("GPU-…") as telemetry: ...`, then `telemetry.samples`. Names as for `Nvml`."""

    def __init__(self, *names: int | str, interval_s: float = 0.1) -> None:
        super().__init__(interval_s)
        self._names = names

    def _open(self) -> str:
        self._nvml = Nvml(*self._names)
        return self._nvml.reason

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._nvml.__exit__(*error)

    def _read(self, time_s: float) -> Sample:
        ask = self._nvml.ask
        power_mw = ask("nvmlDeviceGetPowerUsage")
        reasons = ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # its name before driver 535
            reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return Sample(
            time_s=time_s,
            utilization_percent=getattr(ask("nvmlDeviceGetUtilizationRates"), "gpu", None),
            sm_clock_mhz=ask("nvmlDeviceGetClockInfo", NVML_CLOCK_SM),
            memory_clock_mhz=ask("nvmlDeviceGetClockInfo", NVML_CLOCK_MEMORY),
            power_w=None if power_mw is None else power_mw / 1000,
            temperature_c=ask("nvmlDeviceGetTemperature", NVML_TEMPERATURE_DIE),
            throttle_reasons=describe_throttling(reasons or 0),
            memory_used_bytes=getattr(ask("nvmlDeviceGetMemoryInfo"), "used", None),
        )


class CpuTelemetry(_Sampler[CpuSample]):
    """Samples this process and the CPU under it; used like `Telemetry`."""

    def _open(self) -> str:
        known = hasattr(os, "sched_getaffinity")  # the CPUs that a container or `taskset` leaves us; Linux only
        self._cpus = sorted(os.sched_getaffinity(0)) if known else list(range(os.cpu_count() or 1))
        self._last_s = (time.perf_counter(), time.process_time())
        return ""

    def _read(self, time_s: float) -> CpuSample:
        now_s = (time.perf_counter(), time.process_time())
        wall_s, busy_s = now_s[0] - self._last_s[0], now_s[1] - self._last_s[1]
        share = None
        if wall_s > 0.02:  # process_time advances in steps of up to 16 ms: a share of less would be noise
            share, self._last_s = 100 * busy_s / wall_s / len(self._cpus), now_s
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        return CpuSample(time_s, cpu_clock_mhz(self._cpus), load, share)


def telemetry_for(device: "torch.device", interval_s: float = 0.1) -> Telemetry | CpuTelemetry:
    """The telemetry of a device: its GPU through NVML on cuda, this process and its CPU elsewhere."""
    if device.type == "cuda":
        return Telemetry(*nvml_names(device), interval_s=interval_s)
    return CpuTelemetry(interval_s)
