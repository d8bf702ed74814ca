"""What a training step needs, and when: every tensor of two steps counted, and the 16 bytes of each parameter."""

import gc
import itertools
from collections.abc import Callable
from typing import Any

from pytorch_00_tensor_gpu_basics.src.memory.kept_for_backward import make_batch, make_mlp, predict_kept_bytes
from pytorch_00_tensor_gpu_basics.src.memory.ledger import Ledger, Moment
from shared.device import memory, reset_peak
from shared.lesson import Lesson
from shared.units import bytes_text, significant

import torch
import torch.nn.functional as F

MIB, GIB = 2**20, 2**30
MODELS = {"GPT-2 small": 124e6, "1 billion": 1e9, "7 billion": 7e9, "70 billion": 70e9}


def train_under_watch(lesson: Lesson, model_sizes: tuple[int, ...], batch_size: int
                      ) -> tuple[Ledger, list[tuple[str, int, int]], int, int]:  # fmt: skip
    """Two steps with Adam. Returns the ledger, the phases (name, moments so far, bytes alive at its end), the number of
    parameters, and the bytes of the optimizer's step counters that lie on this device."""
    phases = []
    gc.collect()
    reset_peak(lesson.device)
    with Ledger(lesson.device, keeps_history=True) as ledger:

        def end_of(phase: str) -> None:
            phases.append((phase, len(ledger.history or ()), ledger.live_bytes))

        model = make_mlp(model_sizes, "nn.ReLU()", torch.float32, lesson.device)
        end_of("parameters")
        optimizer = torch.optim.Adam(model.parameters())
        x, targets = make_batch(model_sizes, batch_size, torch.float32, lesson.device)
        end_of("batch")
        for _ in range(2):
            loss = F.cross_entropy(model(x), targets)
            end_of("forward")
            loss.backward()
            del loss
            end_of("backward")
            optimizer.step()
            end_of("step")
            optimizer.zero_grad()
            end_of("zero_grad")
    steps = [state["step"] for state in optimizer.state.values()]
    counters = sum(step.nbytes for step in steps if step.device.type == ledger.counted)
    return ledger, phases, sum(parameter.numel() for parameter in model.parameters()), counters


def show_training_step(lesson: Lesson) -> None:
    lesson.section(
        "A training step, byte by byte",
        "Parameters are there from the start. The forward pass adds activations, the backward pass trades them for "
        "gradients, the first optimizer step adds two averages for each parameter, and zero_grad() gives the gradients "
        "back. Every tensor of two steps, counted:",
    )
    width, batch_size = lesson.pick(full=2048, cpu=384, quick=64), lesson.pick(full=16384, cpu=2048, quick=512)
    sizes = (width,) * 7 + (10,)
    ledger, phases, count, counters = train_under_watch(lesson, sizes, batch_size)
    ends = [live for _, _, live in phases]
    parameters, batch = ends[0], ends[1]
    table = []
    for i, ((_, start, before), (phase, stop, live)) in enumerate(itertools.pairwise(phases[1:])):
        peak = max([moment.live_bytes for moment in (ledger.history or [])[start:stop]], default=live)
        lesson.record("alive", live, "B", after=phase, step=1 + i // 4)
        table.append({"after": phase, "alive, MiB": live / MIB, "change": (live - before) / MIB,
                      "most on the way": max(peak, before) / MIB})  # fmt: skip
    lesson.table(table)
    forward, backward, step, zeroed, forward_2, backward_2, step_2, zeroed_2 = ends[2:]
    kept = predict_kept_bytes(sizes, batch_size, "nn.ReLU()", torch.float32) - (batch - parameters) + 4
    lesson.check("parameters take 4 bytes each", parameters == 4 * count, f"{count:,} parameters")
    lesson.check("forward adds what the formula of the next section says", forward - batch == kept,
                 f"{forward - batch:,} bytes, the loss among them")  # fmt: skip
    lesson.check("backward frees all of that and leaves the gradients", backward - batch == 4 * count,
                 f"{backward - batch:,} bytes, 4 for each parameter")  # fmt: skip
    lesson.check("the first step adds 8 bytes for each parameter", step - backward == 8 * count + counters,
                 f"{step - backward:,} bytes, {counters} of them counters")  # fmt: skip
    lesson.check("the second adds nothing", step_2 == step, f"{step_2 - step} bytes")
    lesson.check("zero_grad() gives the gradients back", zeroed == zeroed_2 == step - 4 * count, f"{4 * count:,} bytes")
    lesson.check("together 16 bytes for each parameter", step - (batch - parameters) == 16 * count + counters,
                 "4 + 4 + 8, whatever the batch")  # fmt: skip
    lesson.check("the second step is the first, on top of Adam's averages",
                 (forward_2 - forward, backward_2 - backward) == (zeroed - batch,) * 2,
                 f"{zeroed - batch:,} bytes more throughout")  # fmt: skip
    lesson.check("the peak lies between these moments", ledger.peak_bytes > max(ends),
                 f"{bytes_text(ledger.peak_bytes)}; at their ends {bytes_text(max(ends))} at most")  # fmt: skip
    if lesson.device.type == "cuda":
        peak = memory(lesson.device).peak_bytes or 0
        lesson.check("torch.cuda.max_memory_allocated() has seen it", peak >= ledger.peak_bytes, bytes_text(peak))
        behind = [moment for moment in ledger.history or [] if (moment.allocated_bytes or 0) < moment.live_bytes]
        lesson.check("the GPU's allocator never counts less than the tensors", not behind,
                     f"at {len(ledger.history or ())} moments")  # fmt: skip
    show_optimizers(lesson)
    lesson.figure("training_step", lambda axis: draw_step(axis, ledger.history or [], phases, count))
    total = memory(lesson.device).total_bytes
    limit = (
        f" This device has {bytes_text(total)}: enough to train at most {significant(total / 16 / 1e9)} billion "
        "parameters this way, before the first activation."
        if total
        else ""
    )
    lesson.text("The same for models of other sizes, activations not counted:")
    lesson.table([{"parameters": name, "run it, 2 bytes each": f"{2 * n / GIB:,.1f} GiB",
                   "parameters, 4": f"{4 * n / GIB:,.1f} GiB", "gradients, 4": f"{4 * n / GIB:,.1f} GiB",
                   "Adam, 8": f"{8 * n / GIB:,.1f} GiB", "train it, 16": f"{16 * n / GIB:,.1f} GiB"}
                  for name, n in MODELS.items()])  # fmt: skip
    lesson.shows(
        f"at the end of forward {significant((forward - batch) / parameters)} times the parameters' bytes are "
        f"activations; they grow with the batch, the 16 bytes do not.{limit} Memory runs out at the peak, which a print "
        "after each phase never sees: on a GPU torch.cuda.max_memory_allocated() has kept it, and "
        "torch.cuda.reset_peak_memory_stats() begins a new one. The picture is training_step.png."
    )


def show_optimizers(lesson: Lesson) -> None:
    lesson.text("What stays between two steps depends on the optimizer, and can be known before the first one:")
    makers: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], int]] = {
        "SGD": (lambda parameters: torch.optim.SGD(parameters, lr=0.1), 0),
        "SGD with momentum": (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), 4),
        "Adam, AdamW": (lambda parameters: torch.optim.AdamW(parameters), 8),
    }
    table, right = [], 0
    for name, (make, state_bytes) in makers.items():
        model = make_mlp((64, 64, 10), "nn.ReLU()", torch.float32, lesson.device)
        count = sum(parameter.numel() for parameter in model.parameters())
        optimizer = make(model.parameters())
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        with Ledger(lesson.device) as ledger:
            optimizer.step()
        counters = sum(state["step"].nbytes for state in optimizer.state.values()
                       if "step" in state and state["step"].device.type == ledger.counted)  # fmt: skip
        right += ledger.live_bytes - counters == state_bytes * count
        table.append({"optimizer": name, "its state": (ledger.live_bytes - counters) // count,
                      "with parameter and gradient": 8 + (ledger.live_bytes - counters) // count})  # fmt: skip
    lesson.table(table)
    lesson.check("momentum costs 4 bytes for each parameter, Adam 8", right == len(makers), "SGD alone nothing")


def draw_step(axis: Any, history: list[Moment], phases: list[tuple[str, int, int]], count: int) -> None:
    """The bytes alive besides the batch, from the first forward pass to the last zero_grad()."""
    (_, _, parameters), (_, first, start) = phases[:2]
    batch, last = start - parameters, phases[-1][1]
    moments = range(first - 1, last)
    top = 1.15 * max(history[i].live_bytes - batch for i in moments) / MIB
    heights = {"forward": 0.98, "backward": 0.93, "step": 0.98, "zero_grad": 0.98}
    for (_, begin, _), (phase, stop, _) in itertools.pairwise(phases[1:]):
        axis.axvspan(begin - 1, stop - 1, color="0.96" if phase in ("forward", "step") else "0.84", linewidth=0)
        axis.annotate(phase, ((begin + stop) / 2 - 1, heights[phase] * top), ha="center", va="top", fontsize=9,
                      rotation=90 if phase == "zero_grad" else 0)  # fmt: skip
    axis.step(
        moments, [(history[i].live_bytes - batch) / MIB for i in moments], where="post", marker="", label="tensors"
    )
    blocks = [history[i].allocated_bytes for i in moments]
    if blocks[0] is not None:
        before = blocks[0] - parameters
        axis.step(moments, [((block or 0) - before) / MIB for block in blocks], where="post", marker="",
                  label="blocks of the GPU's allocator")  # fmt: skip
        axis.legend(loc="lower right")
    for bytes_each, what in ((4, "parameters"), (8, "+ gradients"), (12, "+ one average"), (16, "+ the other")):
        axis.axhline(bytes_each * count / MIB, color="black", linewidth=0.8, linestyle=":")
        axis.annotate(what, (last, bytes_each * count / MIB), (4, 0), textcoords="offset points", va="center", fontsize=9,
                      annotation_clip=False)  # fmt: skip
    axis.set(xlim=(first - 1, last), ylim=(0, top), xlabel="tensors made and freed, in order",
             ylabel="alive besides the batch (MiB)", title="Two training steps with Adam")  # fmt: skip
    axis.grid(visible=False)
