"""One NVIDIA GPU that is not there: what the lab asks of torch.cuda, computed on the CPU.

    with pretended_machine() as machine:
        x = torch.ones(3, device="cuda")  # x.device says cuda:0

Every tensor lies in main memory; a mark on it says that it would lie on the GPU. What a GPU refuses is refused: tensors
of two devices in one call, its memory as a NumPy array, a wait inside a graph's capture, layouts that cuBLAS does not
take; and so is a wait for an event that was never recorded, which CUDA would pass over. Events are stamped by the clock
on the wall, so no time means anything. Whatever else would start CUDA raises AssertionError: a gap in this file.
"""

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tests.fake_nvml import FakeNvml

import pytest
import torch
from torch.overrides import TorchFunctionMode

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def properties(name: str, capability: tuple[int, int], gib: float, processors: int, l2_mib: int, mhz: int,
               memory_mhz: int, bus_bits: int) -> SimpleNamespace:  # fmt: skip
    """What torch.cuda.get_device_properties would say."""
    return SimpleNamespace(
        name=name, major=capability[0], minor=capability[1], total_memory=int(gib * 2**30),
        multi_processor_count=processors, L2_cache_size=l2_mib * 2**20, clock_rate=1000 * mhz,
        memory_clock_rate=1000 * memory_mhz, memory_bus_width=bus_bits, uuid=uuid.uuid5(uuid.NAMESPACE_DNS, name),
        pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0,
    )  # fmt: skip


H200 = properties("NVIDIA H200", (9, 0), 139.8, 132, 60, 1980, 3201, 6144)
A100 = properties("NVIDIA A100-SXM4-80GB", (8, 0), 79.25, 108, 40, 1410, 1593, 5120)
T4 = properties("Tesla T4", (7, 5), 14.56, 40, 4, 1590, 5001, 256)

# These take lengths from the CPU, or only ask.
MAY_MIX = {"copy_", "to", "_has_compatible_shallow_copy_type", "_pack_padded_sequence", "_pad_packed_sequence",
           "lstm", "gru", "rnn_tanh", "rnn_relu"}  # fmt: skip
WAITS = {"item", "tolist", "cpu", "__float__", "__int__", "__bool__", "equal", "nonzero", "unique"}


@dataclass(frozen=True)
class Crossing:
    """A copy_ between CPU and GPU."""

    to_gpu: bool
    is_pinned: bool
    non_blocking: bool
    on_a_side_stream: bool
    size_bytes: int


def is_on_gpu(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "is_pretended", False)


def tensors_in(*values: object) -> list[torch.Tensor]:
    """As in shared.dispatch, for the nestings that arguments have: three times as fast, and called for every call."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += tensors_in(*value)
        elif isinstance(value, dict):
            found += tensors_in(*value.values())
    return found


class PretendedTensors(TorchFunctionMode):
    """Sends every call to the CPU and keeps account of where its tensors would lie."""

    def __init__(self, machine: "Machine") -> None:
        super().__init__()
        self.machine = machine

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.device:
            return function(*args, **kwargs)
        inputs = tensors_in(args, kwargs)
        on_gpu = any(map(is_on_gpu, inputs))
        if function == torch.Tensor.device.__get__:
            return GPU if on_gpu else function(*args)  # the CPU, or meta
        if function == torch.Tensor.is_cuda.__get__:
            return on_gpu
        if function == torch.Tensor.data.__set__:  # how nn.Module.to moves a parameter
            args[0].is_pretended = is_on_gpu(args[1])
            return function(*args)
        name = getattr(function, "__name__", "")
        if on_gpu:
            self.refuse(name, inputs)
        if name == "copy_" and is_on_gpu(args[0]) != is_on_gpu(args[1]):
            self.machine.cross(*args, **kwargs)
        wanted = asked_device(name, args, kwargs)
        to_gpu = on_gpu if wanted is None else wanted.type == "cuda"
        if wanted is not None and wanted.type == "meta":
            result = function(*args, **kwargs)
        elif on_gpu and name in ("_scaled_mm", "_int_mm"):
            result = product_of_few_bits(self.machine.gpu, name, *args, **kwargs)
        else:
            result = compute(function, name, args, kwargs, on_gpu, to_gpu)
        if self.machine.captured and to_gpu:
            self.machine.captured.keep(function, args, kwargs, result)
        for tensor in tensors_in(result):
            if not any(tensor is given for given in inputs):
                tensor.is_pretended = to_gpu
        if name in ("_pack_padded_sequence", "_pad_packed_sequence"):
            result[1].is_pretended = False  # batch sizes and lengths stay with the CPU, which walks along them
        return result

    def refuse(self, name: str, inputs: list[torch.Tensor]) -> None:
        """Raises for what cannot be done with `inputs`, of which at least one lies on the GPU."""
        mixes = any(tensor.dim() and not is_on_gpu(tensor) for tensor in inputs)
        indexes = name == "__getitem__" and is_on_gpu(inputs[0])  # by whole numbers from either device
        if mixes and name not in MAY_MIX and not indexes:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got cuda:0 and cpu!")
        if name in ("numpy", "pin_memory"):
            raise TypeError(f"{name} of a tensor on cuda:0; it has to be on the CPU")
        if name in WAITS:
            self.machine.synchronize()


def asked_device(name: str, args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """The device that a call asks for, if it asks for one."""
    if name in ("cuda", "cpu"):
        return torch.device(name)
    asked = kwargs.get("device")
    if name == "to" and asked is None:
        asked = next((value for value in args[1:] if isinstance(value, str | torch.device)), None)
    return None if asked is None else torch.device(asked)


def compute(function: Any, name: str, args: Any, kwargs: dict[str, Any], on_gpu: bool, to_gpu: bool) -> Any:
    """The call on the CPU."""
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if name in ("to", "cpu", "cuda"):
        kwargs.pop("device", None)
        rest = [value for value in args[1:] if value is not None and not isinstance(value, str | torch.device)]
        if rest and isinstance(rest[0], bool):  # non_blocking, where no dtype stands before it
            rest = []
        moved = args[0].to(*rest, **kwargs) if rest or kwargs else args[0]
        return moved.clone() if moved is args[0] and on_gpu != to_gpu else moved  # it would cross the link
    if name == "pin_memory":
        pinned = args[0].clone()
        pinned.is_pretended_pinned = True
        return pinned
    if on_gpu and name in ("mm", "matmul", "__matmul__") and args[0].dtype in (torch.float16, torch.bfloat16):
        # The same numbers; most CPUs take a hundred times longer for them in half precision.
        product = torch.mm(args[0].float(), args[1].float()).to(args[0].dtype)
        return kwargs["out"].copy_(product) if "out" in kwargs else product
    if "device" in kwargs:
        kwargs["device"] = CPU
    return function(*args, **kwargs)


def product_of_few_bits(gpu: SimpleNamespace, name: str, a: torch.Tensor, b: torch.Tensor,
                        scale_a: torch.Tensor | None = None, scale_b: torch.Tensor | None = None,
                        out_dtype: torch.dtype | None = None, use_fast_accum: bool = False) -> torch.Tensor:  # fmt: skip
    """`_scaled_mm` and `_int_mm` with the conditions of aten/src/ATen/native/cuda/{ScaledBlas,Blas}.cpp."""
    (m, k), (_, n) = a.shape, b.shape
    if name == "_int_mm":
        if m <= 16 or k % 8 or n % 8 or {a.dtype, b.dtype} != {torch.int8}:
            raise RuntimeError(f"_int_mm: {m} x {k} x {n}, {a.dtype} and {b.dtype}")
        return torch.mm(a.int(), b.int())
    if (gpu.major, gpu.minor) < (8, 9):
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0 or 8.9")
    is_rows_by_columns = a.stride() == (k, 1) and b.stride() == (1, k)
    if k % 16 or n % 16 or {a.dtype, b.dtype} != {torch.float8_e4m3fn} or not is_rows_by_columns:
        raise RuntimeError(f"_scaled_mm: {m} x {k} x {n}, {a.dtype} and {b.dtype}, strides {a.stride()}, {b.stride()}")
    for scale in (scale_a, scale_b):
        if scale is None or scale.numel() != 1 or scale.dtype != torch.float32 or not is_on_gpu(scale):
            raise RuntimeError("_scaled_mm: a scale is one float32 number on the GPU")
    return (torch.mm(a.float(), b.float()) * scale_a * scale_b).to(out_dtype or a.dtype)


class Stream:
    """Computes at once, so a forgotten wait does no harm here; `waited_for` tells what was not forgotten."""

    def __init__(self, device: object = None, priority: int = 0) -> None:
        self.waited_for: list[object] = []

    def wait_stream(self, stream: "Stream") -> None:
        self.waited_for.append(stream)

    def wait_event(self, event: "Event") -> None:
        event.wait(self)

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass


class Event:
    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.enable_timing = enable_timing
        self.stamp_s: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.stamp_s = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        if self.stamp_s is None:
            raise AssertionError("this waits for an event that was never recorded")
        if stream is not None:
            stream.waited_for.append(self)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.wait()

    def elapsed_time(self, end: "Event") -> float:
        if not (self.enable_timing and end.enable_timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self.stamp_s is None or end.stamp_s is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return max(1e3 * (end.stamp_s - self.stamp_s), 1e-3)


class CUDAGraph:
    """Keeps the calls of its capture, and repeats them into the same tensors; those hold nothing before."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], Any, Any, list[torch.Tensor]]] = []

    def keep(self, function: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> None:
        given = {tensor.data_ptr() for tensor in tensors_in(args, kwargs)}
        made = [tensor for tensor in tensors_in(result) if tensor.data_ptr() not in given]
        for tensor in made:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
        self.calls.append((function, args, kwargs, made))

    def replay(self) -> None:
        for function, args, kwargs, made in self.calls:
            result = function(*args, **kwargs)
            if made:
                for old, new in zip(made, tensors_in(result), strict=True):
                    old.copy_(new)


class Machine:
    """The pretended machine: its torch.cuda, and its NVML in `nvml`."""

    def __init__(self, gpu: SimpleNamespace) -> None:
        self.gpu = gpu
        self.captured: CUDAGraph | None = None  # the graph that keeps every call now
        self.streams = [Stream()]  # the current one is the last
        self.crossings: list[Crossing] = []
        self.nvml = FakeNvml(SimpleNamespace(uuid=f"GPU-{gpu.uuid}", pci="00000000:3b:00.0", used=2**30, reasons=0x4))
        self.nvml.max_clocks_mhz = {1: gpu.clock_rate // 1000, 2: gpu.memory_clock_rate // 1000}
        self.nvml.clocks_mhz = self.nvml.max_clocks_mhz | {1: 345}
        self.nvml.power_mw, self.nvml.power_limit_mw = 650_000, 700_000
        self.nvml.link, self.nvml.max_link = (5, 8), (5, 16)  # in a slot with half the lanes

    def cross(self, to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> None:
        """Notes a copy between the devices; it waits, unless it is told not to and the memory is pinned."""
        host = source if is_on_gpu(to) else to
        is_pinned = getattr(host, "is_pretended_pinned", False)
        aside = self.streams[-1] is not self.streams[0]
        self.crossings.append(Crossing(is_on_gpu(to), is_pinned, non_blocking, aside, to.numel() * to.element_size()))
        if not (is_pinned and non_blocking):
            self.synchronize()

    @contextmanager
    def stream(self, stream: Stream | None) -> Iterator[None]:
        self.streams.append(stream or self.streams[-1])
        try:
            yield
        finally:
            self.streams.pop()

    @contextmanager
    def graph(self, graph: CUDAGraph) -> Iterator[None]:
        self.captured = graph
        try:
            with self.stream(Stream()):
                yield
        finally:
            self.captured = None

    @contextmanager
    def device(self, device: torch.device | int | str) -> Iterator[None]:
        assert torch.device(device).index in (None, 0), "there is one GPU"
        yield

    def synchronize(self, device: object = None) -> None:
        if self.captured:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def functions(self) -> dict[str, Any]:
        """Names in torch.cuda, and what stands for them."""
        gpu = self.gpu
        return {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: gpu.name,
            "get_device_capability": lambda device=None: (gpu.major, gpu.minor),
            "get_device_properties": lambda device=None: gpu,
            "mem_get_info": lambda device=None: (gpu.total_memory - 2**30, gpu.total_memory),
            "memory_allocated": lambda device=None: 0,
            "memory_reserved": lambda device=None: 0,
            "max_memory_allocated": lambda device=None: 0,
            "reset_peak_memory_stats": lambda device=None: None,
            "empty_cache": lambda: None,
            "synchronize": self.synchronize,
            "current_stream": lambda device=None: self.streams[-1],
            "stream": self.stream,
            "device": self.device,
            "Stream": Stream,
            "Event": Event,
            "CUDAGraph": CUDAGraph,
            "graph": self.graph,
            "_sleep": lambda cycles: None,
            "manual_seed_all": lambda seed: None,
            "get_rng_state": lambda device=None: torch.get_rng_state(),
            "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
            "is_initialized": lambda: False,
            "_lazy_init": refuse_to_start,
        }


def refuse_to_start() -> None:
    raise AssertionError("this would start CUDA; tests/pretend_cuda.py has no stand-in for it")


MAKE_PARAMETER = torch.nn.Parameter.__new__


def make_parameter(cls: type, data: torch.Tensor | None = None, requires_grad: bool = True) -> torch.Tensor:
    """A parameter lies where its data lies; torch makes it without a call that PretendedTensors would see."""
    parameter: torch.Tensor = MAKE_PARAMETER(cls, data, requires_grad)
    parameter.is_pretended = data is not None and is_on_gpu(data)  # type: ignore[attr-defined]
    return parameter


@contextmanager
def pretended_machine(gpu: SimpleNamespace = H200) -> Iterator[Machine]:
    """For the length of a `with` block, torch and pynvml see one GPU."""
    machine = Machine(gpu)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, stand_in in machine.functions().items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(torch.accelerator, "current_stream", lambda device=None: machine.streams[-1])  # optimizers ask it
        patch.setattr(torch._C, "_cuda_init", refuse_to_start, raising=False)  # what every other way ends in
        patch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: False)  # recurrent layers would pack for it
        patch.setattr(torch.nn.Parameter, "__new__", staticmethod(make_parameter))
        patch.setitem(sys.modules, "pynvml", machine.nvml)
        stack.enter_context(PretendedTensors(machine))
        yield machine
