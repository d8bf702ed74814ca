"""What does torch.compile make of your model, what does that cost, and when does it pay?

Three programs work in a row. Dynamo reads your Python and writes down its tensor operations, AOTAutograd adds the backward
pass, Inductor turns both into a few loops. You will see what each one makes, and count what it saves. Then the price: the
first call, and everything that makes it come again (compilation/cost.py, graph_breaks.py, shapes.py). Last a training
step, and what compiling changes in your numbers (compilation/training.py).

    python src/torch_compile.py            about a minute
    python src/torch_compile.py --quick    the same path with tiny sizes and nearly without Inductor, a few seconds
"""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.compilation.cost import show_blocks, show_first_call, show_modes
from pytorch_02_training_optimization.src.compilation.graph_breaks import show_breaks, show_control_flow, show_traps
from pytorch_02_training_optimization.src.compilation.harness import (
    KeepGraphs,
    Traffic,
    body_of,
    compiler_session,
    graphs_after,
    kernels_in,
    operations_of,
    readable,
    run_and_read,
)
from pytorch_02_training_optimization.src.compilation.shapes import show_lengths, show_limit
from pytorch_02_training_optimization.src.compilation.training import show_numbers, show_training
from shared.agreement import agreement, deviation
from shared.hardware import memory_bandwidth
from shared.lesson import Lesson
from shared.timing import compare, ratio
from shared.units import bytes_text, percent, seconds_text, significant

import torch
from torch import nn

# Dynamo: from Python to a graph


def repeat_tanh(x: torch.Tensor, settings: dict[str, int]) -> torch.Tensor:
    for i in range(settings["repeats"]):
        if x.ndim == 2:
            x = torch.tanh(x * (i + 1))
    return x + len(settings)


def show_dynamo(lesson: Lesson) -> None:
    lesson.section(
        "Dynamo: your Python becomes a graph",
        "PyTorch runs your model line by line and never sees more than one operation. torch.compile lets Dynamo run your "
        "function once without numbers: it interprets Python's bytecode and writes down each tensor operation. What runs it "
        "afterwards is a backend: any function that takes the graph and returns something callable. Ours keeps the graph "
        "and runs it as it is. The Python:",
    )
    x, settings = torch.randn(4, 8, device=lesson.device), {"repeats": 3}
    backend = KeepGraphs()
    compiled = torch.compile(repeat_tanh, backend=backend)
    results = [compiled(x, settings) for _ in range(5)]
    lesson.drawing(inspect.getsource(repeat_tanh))
    lesson.text(f"The graph that Dynamo hands over, when settings is {settings}:")
    lesson.drawing(readable(backend.graphs[0].code))
    made = operations_of(backend.graphs[0])
    lesson.check("five calls, one graph", len(backend) == 1, f"{len(backend)} made, {len(results)} results")
    lesson.check("a loop of three turns is written out", made.count("tanh") == 3, " → ".join(made))
    lesson.check("loop, if, dict and len() are gone: only operations are left", set(made) == {"mul", "tanh", "add"},
                 f"{len(made)} operations on tensors")  # fmt: skip
    lesson.check("the graph computes what the Python computes", torch.equal(results[0], repeat_tanh(x, settings)),
                 "equal to the last bit")  # fmt: skip
    settings["repeats"] = 4
    longer = compiled(x, settings)
    lesson.check("another number in the dict, another graph",
                 len(backend) == 2 and torch.equal(longer, repeat_tanh(x, settings)),
                 f"repeats 4: {operations_of(backend.graphs[-1]).count('tanh')} tanh, in graph {len(backend)}")  # fmt: skip
    lesson.shows(
        f"{len(made)} operations are what is left of a function with a loop, an if and a dict. Whatever Python decided while "
        "the graph was made is frozen in it, so the graph may only be used again where Python would decide the same. That "
        "is what the next section is about."
    )


# Guards: when a graph may be used again


class Head(nn.Module):
    """Something with a mode, and a number that Python hands in."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, factor: int = 2) -> torch.Tensor:
        return self.dropout(torch.relu(x)) * factor


def call_in_eval_mode(head: Any, x: torch.Tensor) -> object:
    head.eval()
    try:
        return head(x)
    finally:
        head.train()


CHANGES: dict[str, Callable[[Any, torch.Tensor], object]] = {
    "other numbers": lambda head, x: head(torch.randn_like(x)),
    "a slice of the same shape": lambda head, x: head(torch.cat([x, x])[len(x) :]),
    "one row more": lambda head, x: head(torch.cat([x, x[:1]])),
    "bfloat16": lambda head, x: head(x.bfloat16()),
    "other strides": lambda head, x: head(x.T.contiguous().T),
    "x.requires_grad": lambda head, x: head(x.clone().requires_grad_()),
    "torch.no_grad()": torch.no_grad()(lambda head, x: head(x)),
    "factor=3": lambda head, x: head(x, 3),
    "head.eval()": call_in_eval_mode,
}


def why_compile_again(call: Callable[[], object]) -> str:
    """The guard that fails in this call, in Dynamo's words; "" where a graph that is there fits. Compiles nothing."""
    with torch.compiler.set_stance("fail_on_recompile"):
        try:
            call()
        except RuntimeError as error:
            failed = re.search(r"- \d+/\d+: (.*)", str(error))
            return re.sub(r"\s{2,}#.*", "", failed[1]) if failed else str(error)
    return ""


def show_guards(lesson: Lesson) -> None:
    lesson.section(
        "Guards: when a graph may be used again",
        "With each graph Dynamo keeps guards: short tests of all that it relied on. Every call runs them first. Where one "
        "fails, the function is compiled again, which takes seconds in the middle of your training. Here is one graph, made "
        "for a float32 tensor of 4 x 6 in training mode, and nine calls that come later. Which of them need another one?",
    )
    torch.compiler.reset()
    head, x = Head(), torch.randn(4, 6, device=lesson.device)
    compiled = torch.compile(head, backend="eager")
    compiled(x)
    reasons = {change: why_compile_again(lambda call=call: call(compiled, x)) for change, call in CHANGES.items()}
    lesson.table([{"the next call": change, "again": "yes" if reason else "no", "because": reason}
                  for change, reason in reasons.items()])  # fmt: skip
    same = [change for change, reason in reasons.items() if not reason]
    lesson.check("other numbers of the same shape need no new graph", same == list(CHANGES)[:2], " and ".join(same))
    lesson.check("shape, dtype and strides are guarded", all(reasons[key] for key in list(CHANGES)[2:5]),
                 reasons["one row more"])  # fmt: skip
    lesson.check("so is whether a gradient is wanted", all(reasons[key] for key in list(CHANGES)[5:7]),
                 "of the tensor, and of the whole call")  # fmt: skip
    lesson.check("and what Python decides on: numbers, modes", all(reasons[key] for key in list(CHANGES)[7:]),
                 reasons["factor=3"])  # fmt: skip
    graphs = graphs_after([lambda compiled, call=call: call(compiled, x) for call in CHANGES.values()] * 2, Head())
    half = len(CHANGES)
    lesson.check("what was compiled once is found again", graphs[-1] == graphs[half - 1],
                 f"{half} calls: {graphs[half - 1]} graphs; the same {half} again: {graphs[-1]}")  # fmt: skip
    lesson.shows(
        f"of {len(CHANGES)} calls that look alike {len(CHANGES) - len(same)} need a graph of their own. The values of a "
        'tensor are never guarded; all that Python can ask about it is. torch.compiler.set_stance("fail_on_recompile"), '
        "which made this table, also has a place in a training that has warmed up: it names the guard, where otherwise "
        "you would only notice a slow step."
    )


# AOTAutograd: the backward pass


def gated(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x + torch.relu(x + bias) * torch.sigmoid(x)


class KeepBackward:
    """A backend behind AOTAutograd: keeps its joint graph, and the two into which `partition` cuts it."""

    def __init__(self, partition: Callable[..., Any]) -> None:
        self.partition = partition
        self.joint, self.code, self.operations = "", dict[str, str](), dict[str, list[str]]()

    def __call__(self, graph: Any, example_inputs: Any) -> Any:
        from torch._decomp import get_decompositions
        from torch._dynamo.backends.common import aot_autograd

        aten = torch.ops.aten
        simple = get_decompositions([aten.sigmoid_backward, aten.threshold_backward, aten.detach])
        backend = aot_autograd(fw_compiler=self.keeper("forward"), bw_compiler=self.keeper("backward"),
                               partition_fn=self.cut, decompositions=simple)  # fmt: skip
        return backend(graph, example_inputs)

    def cut(self, joint: Any, inputs: Any, **options: Any) -> Any:
        self.joint = joint.code
        return self.partition(joint, inputs, **options)

    def keeper(self, name: str) -> Callable[[Any, Any], Any]:
        def keep(graph: Any, example_inputs: Any) -> Any:
            from functorch.compile import make_boxed_func

            self.code[name], self.operations[name] = readable(graph.code), operations_of(graph)
            return make_boxed_func(graph.forward)

        return keep


def saved_bytes(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> int:
    """Bytes that are kept between forward and backward, besides the inputs, which are alive anyway."""
    storages = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        function(*inputs)
    return sum(storages.values()) - sum(storages.get(x.untyped_storage().data_ptr(), 0) for x in inputs)


def show_aot(lesson: Lesson) -> None:
    from functorch.compile import default_partition, min_cut_rematerialization_partition

    lesson.section(
        "AOTAutograd: the backward pass becomes a graph too",
        "Autograd learns of an operation when it runs. AOTAutograd runs it ahead of time: it traces your graph together with "
        "its gradient into one joint graph, in simple operations, and cuts that in two. Where it cuts decides what is kept "
        "in memory between them. Eager PyTorch keeps what each operation asks for. The min-cut partition, which Inductor "
        "uses, looks for the cut with the fewest bytes, and computes cheap things again. For x + relu(x + bias) * sigmoid(x):",
    )
    x = torch.randn(64, 128, device=lesson.device, requires_grad=True)
    bias = torch.randn(128, device=lesson.device, requires_grad=True)
    rows = [{"backward by": "autograd, eager", "kept for backward()": bytes_text(saved_bytes(gated, x, bias)),
             "of x": percent(saved_bytes(gated, x, bias) / x.nbytes),
             "operations forward": "–", "backward": "–"}]  # fmt: skip
    kept, backends = {}, {}
    for name, partition in (("as autograd", default_partition), ("min-cut", min_cut_rematerialization_partition)):
        torch.compiler.reset()
        backend = backends[name] = KeepBackward(partition)
        compiled = torch.compile(gated, backend=backend)
        kept[name] = saved_bytes(compiled, x, bias)
        found = agreement(compiled, gated, x, bias)
        rows.append({"backward by": f"AOTAutograd, cut {name}", "kept for backward()": bytes_text(kept[name]),
                     "of x": percent(kept[name] / x.nbytes), "operations forward": len(backend.operations["forward"]),
                     "backward": len(backend.operations["backward"])})  # fmt: skip
    lesson.table(rows)
    lesson.text("The forward graph after the min-cut (primals are the inputs), which also returns what is to be kept:")
    lesson.drawing(backends["min-cut"].code["forward"])
    lesson.text("And the backward graph, which begins like the forward one; tangents_1 is the gradient that comes in:")
    lesson.drawing(backends["min-cut"].code["backward"])
    lesson.check("the joint graph was made before any backward()", "tangents" in backends["min-cut"].joint,
                 f"it has {backends['min-cut'].joint.count('aten.')} operations")  # fmt: skip
    lesson.check("gradients are autograd's", found.within(1e-5), f"{found}")
    least, most = backends["min-cut"].operations, backends["as autograd"].operations
    lesson.check("min-cut keeps nothing but the inputs here", kept["min-cut"] == 0 < kept["as autograd"],
                 f"{bytes_text(kept['min-cut'])}, where autograd keeps {bytes_text(kept['as autograd'])}")  # fmt: skip
    again = [name for name in ("add", "relu", "sigmoid") if name in str(least["backward"])]
    lesson.check("and computes relu and sigmoid again on the way back",
                 {"relu.default", "sigmoid.default"} <= set(least["backward"]) - set(most["backward"]),
                 f"{len(least['backward'])} operations backwards instead of {len(most['backward'])}")  # fmt: skip
    lesson.shows(
        f"for an x of {bytes_text(x.nbytes)} this cut keeps {bytes_text(kept['as autograd'] - kept['min-cut'])} less, and "
        f"computes {', '.join(again)} twice. That is activation checkpointing that nobody had to write, and it is no loss: in "
        "the loop of the next section an extra addition is free, and reading memory is not."
    )


# Inductor: loops


def show_inductor(lesson: Lesson) -> bool:
    """Returns whether Inductor can compile here; the later chapters ask."""
    lesson.section(
        "Inductor: one loop instead of five passes",
        "Eager PyTorch runs gated() as five kernels. Each reads whole tensors from memory and writes one back. Inductor "
        "lowers the graph to loops, puts loops over the same indices into one, and writes the source: C++ for a CPU, Triton "
        "for CUDA, Metal for MPS. What was a tensor in between becomes a variable in a register.",
    )
    rows = lesson.pick(full=65_536, cpu=4096, quick=64)
    x, bias = torch.randn(rows, 1024, device=lesson.device), torch.randn(1024, device=lesson.device)
    with Traffic() as eager:
        right = gated(x, bias)
    lesson.check("eager: five operations, each a pass over memory", len(eager.operations) == 5,
                 ", ".join(eager.operations))  # fmt: skip
    compiled = torch.compile(gated)
    try:
        result, (code,) = run_and_read(compiled, x, bias)
    except Exception as error:  # no C++ compiler, no Triton, or a Python that this torch cannot compile for
        reason = " ".join(str(error).split())[:120]
        lesson.skip(f"The kernel that Inductor writes, and all that is measured with it ({type(error).__name__}: {reason}).",
                    "a working compiler; `python lab.py doctor` names the missing piece")  # fmt: skip
        lesson.shows(f"without fusion {bytes_text(eager.bytes_moved)} move for inputs of {bytes_text(x.nbytes)}.")
        return False
    kernels = kernels_in(code)
    lesson.text("The kernel that Inductor wrote on this machine, shortened:")
    lesson.drawing(body_of(kernels[0]))
    least_bytes = 2 * x.nbytes + bias.nbytes
    lesson.check(
        "Inductor: one kernel", len(kernels) == 1, f"{len(kernels)} in a file of {len(code.splitlines())} lines"
    )
    lesson.check(
        "it gives what the five give", deviation(result, right) < 1e-5, f"{deviation(result, right):.0e} apart"
    )
    lesson.check("and moves a sixth of the bytes or less", eager.bytes_moved >= 5.9 * least_bytes,
                 f"{bytes_text(least_bytes)} instead of {bytes_text(eager.bytes_moved)}")  # fmt: skip
    timings = compare({"eager": lambda: gated(x, bias), "compiled": lambda: compiled(x, bias)}, lesson.device,
                      budget_s=lesson.pick(full=0.8, quick=0.1))  # fmt: skip
    limit = memory_bandwidth(lesson.device)
    table = []
    for name, timing in timings.items():
        rate = least_bytes / timing.median_s / 1e9
        lesson.record("gated", rate, "GB/s", timing, limit, way=name, rows=rows)
        moved = eager.bytes_moved if name == "eager" else least_bytes
        table.append({"gated()": name, "kernels": 5 if name == "eager" else len(kernels), "bytes moved": bytes_text(moved),
                      "time": seconds_text(timing.median_s), "useful GB/s": rate,
                      "of memory": percent(rate * 1e9 / limit.value if limit else None)})  # fmt: skip
    lesson.table(table)
    if limit:
        lesson.text(
            f"Useful: x read and the result written, once. The limit: {limit.value / 1e9:,.0f} GB/s ({limit.source})."
        )
    gain = ratio(timings["eager"], timings["compiled"])
    if not lesson.quick:  # where the sizes are tiny, the guards take longer than the loop
        lesson.check("fewer bytes, less time", gain.median > 1.2, f"{gain}")
    lesson.shows(
        f"the arithmetic is the same, the traffic is {significant(eager.bytes_moved / least_bytes)} times less, and the time "
        f"{gain.median:.2f} times less. Fusion is what torch.compile is for. A matrix product gains nothing from it: Inductor "
        "calls the same library for that as eager PyTorch does, so a model gains as much as it spends between its products."
    )
    return True


def main(argv: list[str] | None = None) -> int:
    with Lesson(__file__, argv) as lesson, compiler_session(lesson.quick) as logged:
        show_dynamo(lesson)
        show_guards(lesson)
        show_aot(lesson)
        has_inductor = show_inductor(lesson)
        show_first_call(lesson, has_inductor)
        show_breaks(lesson)
        show_traps(lesson)
        show_control_flow(lesson)
        show_lengths(lesson)
        show_limit(lesson, logged)
        show_blocks(lesson, has_inductor)
        show_modes(lesson, has_inductor)
        show_training(lesson, has_inductor)
        show_numbers(lesson, has_inductor)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
