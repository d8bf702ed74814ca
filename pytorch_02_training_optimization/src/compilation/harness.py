"""What all chapters use: a compiler with a beginning and an end, a backend that keeps graphs, code made readable."""

import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from shared.device import synchronize
from shared.dispatch import Watcher, name_of, tensors_in

import torch
from torch import fx

# What the compiler logs about things that this lesson does on purpose, or that do not matter here.
EXPECTED_LOGS = {
    "torch.utils.cpp_extension": "a CUDA build of PyTorch on a machine without a GPU",
    "torch._dynamo.convert_frame": "the recompile limit is reached",
    "torch._dynamo.variables.tensor": "a graph ends at .item()",
    "torch._dynamo.variables.ctx_manager": "the profiler's marks in optimizer.step() stay out of the graph",
}


@contextmanager
def compiler_session(quick: bool) -> Iterator[list[str]]:
    """Begins with nothing compiled, and leaves nothing behind in this process; yields what the compiler logs.

    A full run has an empty cache folder of its own, so that every first call is one; a quick run uses the machine's.
    Before its first kernel Inductor compiles small tests of the processor's instruction sets (8 s), and keeps the
    answers in its folder. Here it takes the processor's word for them.
    """
    messages: list[str] = []
    with ExitStack() as held:
        held.enter_context(patch.dict(os.environ))  # Inductor writes the folder that it chose into it
        held.enter_context(warnings.catch_warnings())
        # Importing Inductor makes a TorchScript module, of which PyTorch 2.11 to 2.13 itself says that it is deprecated.
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        for name in EXPECTED_LOGS:
            held.enter_context(_kept_from(logging.getLogger(name), messages))
        torch.compiler.reset()
        held.callback(torch.compiler.reset)
        from torch._inductor import config  # imported here: it takes seconds

        held.enter_context(config.patch({"cpp.vec_isa_ok": True}))
        if not quick:
            held.enter_context(empty_cache())
        yield messages


@contextmanager
def empty_cache() -> Iterator[None]:
    """Inside, Inductor finds nothing that was compiled before, on disk or in memory."""
    from torch._inductor.utils import fresh_cache

    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, fresh_cache(dir=folder):
        yield


@contextmanager
def _kept_from(logger: logging.Logger, messages: list[str]) -> Iterator[None]:
    """Puts what the logger would print into `messages`."""

    def keep(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return False

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


class KeepGraphs:
    """A backend, which is any function from a graph to something callable: it keeps each graph and runs it as it is."""

    def __init__(self) -> None:
        self.graphs: list[fx.GraphModule] = []

    def __call__(self, graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward

    def __len__(self) -> int:
        return len(self.graphs)


def operations_of(graph: fx.GraphModule) -> list[str]:
    """The names of what a graph calls, in order, without what only gives a tensor a second name."""
    calls = [node for node in graph.graph.nodes if node.op.startswith("call")]
    names = [getattr(node.target, "__name__", str(node.target)) for node in calls]
    return [name for name in names if name.partition(".")[0] not in ("alias", "detach")]


def graphs_after(calls: Sequence[Callable[[Callable[..., Any]], object]], function: Callable[..., Any],
                 **options: Any) -> list[int]:  # fmt: skip
    """How many graphs `function` was compiled into, in all, after each of the calls; each is given the compiled one."""
    torch.compiler.reset()
    backend = KeepGraphs()
    compiled = torch.compile(function, backend=backend, **options)
    counts = []
    for call in calls:
        call(compiled)
        counts.append(len(backend))
    return counts


class Traffic(Watcher):
    """Counts the operations inside a `with` block, without views, and the bytes that each reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.bytes_moved = 0

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        if operation.is_view:
            return
        self.operations.append(name_of(operation).partition(".")[0])
        self.bytes_moved += sum(x.nbytes for x in tensors_in(args, kwargs, result))


def first_call_s(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, which compiles. It happens once, so there is no median of it."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def readable(code: str) -> str:
    """A graph's code without what frees memory, without second names of one tensor, with the namespaces shortened."""
    lines = [line.partition(";  ")[0] for line in code.splitlines() if line.strip()]
    text = "\n".join(lines).replace("torch.ops.aten.", "aten.")
    text = re.sub(r"\b(aten\.\w+)\.\w+\(", r"\1(", text)
    text = re.sub(r", (dtype|layout|device) = (device\(.*?\)|[\w.]+)", "", text)
    while second := re.search(r"^ +(\w+) = aten\.(?:alias|detach)\((\w+)\)\n", text, re.MULTILINE):
        text = re.sub(rf"(?<!\.)\b{second[1]}\b", second[2], text.replace(second[0], ""))
    return text


def run_and_read(function: Callable[..., Any], *inputs: Any) -> tuple[Any, list[str]]:
    """The result of a call that compiles, and the files that Inductor writes for it, also where it has them on disk."""
    from torch._inductor.utils import run_and_get_code

    return run_and_get_code(function, *inputs)


def kernels_in(code: str) -> list[str]:
    """The kernels in a file that Inductor wrote: C++ for a CPU, Triton for CUDA, Metal for MPS."""
    pattern = r"(?:async_compile\.\w+|compile_mps_shader)\(.*?r?('''|\"\"\")(.*?)\1"
    return [kernel.strip() for _, kernel in re.findall(pattern, code, re.DOTALL)]


def kernel_calls_in(code: str) -> tuple[int, int]:
    """How often such a file calls a kernel of its own, and one of a library, as for a matrix product."""
    own = re.findall(r"^ +(?:cpp_\w+\(|triton_\w+\.run\(|mps_lib_\w+\.\w+\()", code, re.MULTILINE)
    library = re.findall(r"^ +(?:\w+ = )?(?:extern_kernels|torch\.ops\.\w+)\.\w+", code, re.MULTILINE)
    return len(own), len(library)


def body_of(kernel: str, width: int = 94) -> str:
    """What a kernel does, shortened: without casts, type names and lone brackets, at most `width` characters a line."""
    start = max(kernel.find('extern "C"'), kernel.find("@triton.jit"), kernel.find("kernel void"), 0)
    text = re.sub(r"static_cast<\w+>\((-?[\w.]+?)L?\)", r"\1", kernel[start:])
    text = re.sub(r"static_cast<\w+>\(([^()]*)\)", r"\1", text)
    text = text.replace("at::vec::Vectorized<float>", "Vector").replace("at::vec::", "").replace("int64_t ", "long ")
    text = re.sub(r"\(\n\s+|,\n\s+", lambda found: "(" if found[0][0] == "(" else ", ", text)  # arguments on one line
    lines = [line for line in text.splitlines() if line.strip(" {}") and "inductor_cpu" not in line]
    depths = sorted({len(line) - len(line.lstrip()) for line in lines})
    indented = [f"{'  ' * depths.index(len(line) - len(line.lstrip()))}{line.strip()}" for line in lines]
    return "\n".join(line if len(line) <= width else f"{line[: width - 2]} …" for line in indented)
