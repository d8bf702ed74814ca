"""When nothing should be recorded: no_grad, inference_mode, detach, and what a kept loss keeps alive."""

from collections.abc import Callable

from pytorch_00_tensor_gpu_basics.src.gradients.kept import KeptBytes
from pytorch_00_tensor_gpu_basics.src.gradients.walk import nodes_behind
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import bytes_text

import torch


def show_recording(lesson: Lesson) -> None:
    show_ways_not_to_record(lesson)
    show_kept_losses(lesson)


# Not recording


def network(width: int, device: torch.device) -> torch.nn.Sequential:
    parts = [part for _ in range(3) for part in (torch.nn.Linear(width, width), torch.nn.Tanh())]
    return torch.nn.Sequential(*parts).to(device)


Model = Callable[[torch.Tensor], torch.Tensor]


def run_recording(model: Model, x: torch.Tensor) -> torch.Tensor:
    return model(x)


def run_without_grad(model: Model, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


@torch.no_grad()
def run_decorated(model: Model, x: torch.Tensor) -> torch.Tensor:
    return model(x)


def run_in_inference_mode(model: Model, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(x)


def run_and_detach(model: Model, x: torch.Tensor) -> torch.Tensor:
    return model(x).detach()


WAYS = {
    "model(x)": run_recording,
    "model(x).detach()": run_and_detach,
    "with torch.no_grad():": run_without_grad,
    "@torch.no_grad()": run_decorated,
    "with torch.inference_mode():": run_in_inference_mode,
}


def update_while_recording(w: torch.Tensor, steps: int) -> torch.Tensor:
    """The mistake: the update is recorded like any computation, so the new w is a result and no longer a leaf."""
    for _ in range(steps):
        (gradient,) = torch.autograd.grad((w**2).sum(), w)
        w = w - 0.1 * gradient
    return w


def update_in_no_grad(w: torch.Tensor, steps: int) -> torch.Tensor:
    """Right: written into w itself, unrecorded, as optimizers do."""
    for _ in range(steps):
        (gradient,) = torch.autograd.grad((w**2).sum(), w)
        with torch.no_grad():
            w -= 0.1 * gradient
    return w


def write_into_data(w: torch.Tensor) -> torch.Tensor:
    """The mistake: .data hides the write from autograd, which goes on with numbers that are no longer those it saved."""
    y = w.exp()
    y.data.mul_(2)
    return y.sum()


def write_into_detached(w: torch.Tensor) -> torch.Tensor:
    """The same write through detach(), which shares memory too, and also the counter of writes."""
    y = w.exp()
    y.detach().mul_(2)
    return y.sum()


def gradient_of(function: Callable[[torch.Tensor], torch.Tensor], w: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(function(w), w)[0]


def show_ways_not_to_record(lesson: Lesson) -> None:
    lesson.section(
        "no_grad, inference_mode, detach",
        "To evaluate, to update weights, to treat a number as a constant, you need no graph, and what it keeps is most "
        "of the memory. Five ways to run the same network of three layers; the bytes are what operations keep for a "
        "backward beside weights and data, while it runs and as long as the result is there.",
    )
    width, batch = lesson.pick(full=1024, cpu=256, quick=32), lesson.pick(full=4096, cpu=512, quick=64)
    model, x = network(width, lesson.device), torch.randn(batch, width, device=lesson.device)
    outputs, ever, now, table = {}, {}, {}, []
    for way, run in WAYS.items():
        with KeptBytes([*model.parameters(), x]) as kept:
            output = outputs[way] = run(model, x)
        ever[way], now[way] = kept.ever, kept.now
        table.append({"way": way, "requires_grad": str(output.requires_grad), "is_inference": str(output.is_inference()),
                      "kept while running": bytes_text(kept.ever), "kept after": bytes_text(kept.now)})  # fmt: skip
        lesson.record("kept", kept.now, "B", way=way)
    lesson.table(table)
    plain, *others = outputs.values()
    activation = plain.nbytes
    lesson.check("all give the same numbers", all(plain.equal(other) for other in others), f"{plain.numel():,} each")
    lesson.check("recording keeps the result of each of the layers", now["model(x)"] == 3 * activation,
                 f"3 x {bytes_text(activation)}")  # fmt: skip
    lesson.check("no_grad and inference_mode keep nothing",
                 not any(ever[way] for way in WAYS if "model" not in way), "0 bytes at any time")  # fmt: skip
    cut = "model(x).detach()"
    lesson.check("detach() cuts afterwards: first all of it was kept", ever[cut] == ever["model(x)"] and now[cut] == 0,
                 f"{bytes_text(ever[cut])} on the way, then {now[cut]} B")  # fmt: skip
    inference = outputs["with torch.inference_mode():"]
    w = torch.ones(width, device=lesson.device, requires_grad=True)
    refused = complaint(lambda: (w * inference).sum())
    allowed = complaint(lambda: (w * outputs["with torch.no_grad():"]).sum().backward())
    lesson.items({"in training": refused})
    lesson.check("what inference_mode made is barred from training", "Inference tensors" in refused and allowed == "",
                 "what no_grad made is welcome; clone() it if needed")  # fmt: skip
    lesson.check("its price is lower: no counter of writes", not has_version(inference) and has_version(plain),
                 "an inference tensor has no _version")  # fmt: skip
    with torch.no_grad(), torch.set_grad_enabled(True):
        inner = w * 2
    with torch.set_grad_enabled(False):
        switched = w * 2
    lesson.check("the innermost setting decides; set_grad_enabled(flag)", inner.requires_grad and not switched.requires_grad,
                 f"{inner.requires_grad} inside no_grad, {switched.requires_grad} when off")  # fmt: skip
    show_detach(lesson)
    lesson.shows(
        f"recording this network keeps {bytes_text(now['model(x)'])} for {batch:,} samples and not recording keeps none. "
        "Evaluate in inference_mode, update in no_grad, detach() what should be a constant in a loss, and leave .data "
        "alone: it is the one way that goes wrong without a word."
    )


def has_version(x: torch.Tensor) -> bool:
    return complaint(lambda: x._version) == ""


def show_detach(lesson: Lesson) -> None:
    w = torch.tensor([0.5, 1.0, 2.0], device=lesson.device, requires_grad=True)
    y = w.exp()
    lesson.check("detach() shares the memory", y.detach().data_ptr() == y.data_ptr(), "same address, no copy")
    held = gradient_of(lambda w: (w * w.detach()).sum(), w)
    lesson.check(
        "a detached factor counts as a constant", held.equal(w.detach()), "w * w.detach() has slope w, not 2 w"
    )
    noticed = complaint(lambda: gradient_of(write_into_detached, w))
    lesson.check(
        "a write through detach() is noticed", "modified by an inplace operation" in noticed, "backward() refuses"
    )
    silent = gradient_of(write_into_data, w)
    truth = w.detach().exp()
    wrong = (silent / truth).mean().item()
    lesson.check("the same write through .data is not, and misleads", abs(wrong - 2) < 1e-5,
                 f"the gradient is {wrong:.2f} times the true one")  # fmt: skip
    steps = 5
    start = torch.ones(3, device=lesson.device)
    right, recorded = (
        update(start.clone().requires_grad_(), steps) for update in (update_in_no_grad, update_while_recording)
    )
    lesson.check("w = w - lr * gradient makes w a result", right.is_leaf and not recorded.is_leaf,
                 f"after {steps} steps a graph of {len(nodes_behind(recorded))} nodes hangs on it")  # fmt: skip
    lesson.check("in no_grad, w -= lr * gradient leaves it a leaf", torch.allclose(right, recorded) and right.requires_grad,
                 f"the same {right[0].item():.5f}, and no graph")  # fmt: skip


# Kept losses

KEEPING = {
    "losses.append(loss)": lambda loss: loss,
    "losses.append(loss.detach())": lambda loss: loss.detach(),
    "losses.append(loss.item())": lambda loss: loss.item(),
}


def show_kept_losses(lesson: Lesson) -> None:
    lesson.section(
        "What a kept loss keeps alive",
        "A loss is one number, but its graph hangs on it. Put it into a list for a plot, and every graph stays. Here 10 "
        "batches run through the network, once as in validation (no backward) and once as in training; the bytes are "
        "counted at the end of the loop, with the list still there.",
    )
    width, batch, batches = lesson.pick(full=1024, cpu=128, quick=32), lesson.pick(full=4096, cpu=256, quick=64), 10
    model, x = network(width, lesson.device), torch.randn(batch, width, device=lesson.device)
    one_batch = 3 * x.nbytes
    kept: dict[tuple[str, bool], int] = {}
    for keeping, keep in KEEPING.items():
        for trains in (False, True):
            with KeptBytes([*model.parameters(), x]) as counter:
                losses = []
                for _ in range(batches):
                    loss = model(x).sum()
                    if trains:
                        loss.backward()
                    losses.append(keep(loss))
                del loss
            kept[keeping, trains] = counter.now
            assert len(losses) == batches
    lesson.table([{"in the loop": keeping, "kept by validation": bytes_text(kept[keeping, False]),
                   "kept by training": bytes_text(kept[keeping, True])} for keeping in KEEPING])  # fmt: skip
    first, *cures = KEEPING
    lesson.check("kept losses without a backward keep every activation", kept[first, False] == batches * one_batch,
                 f"{batches} x {bytes_text(one_batch)}")  # fmt: skip
    lesson.check("backward() frees the activations, kept loss or not", kept[first, True] == 0, "the nodes stay, empty")
    lesson.check("a detached loss or its number keeps nothing", not any(kept[cure, False] for cure in cures),
                 "with or without backward()")  # fmt: skip
    with torch.no_grad(), KeptBytes() as counter:
        losses = [model(x).sum() for _ in range(batches)]
    lesson.check(
        "nor does anything under no_grad", counter.ever == 0 and len(losses) == batches, "validation as it should be"
    )
    total = torch.zeros((), device=lesson.device)
    for _ in range(batches):
        loss = model(x).sum()
        loss.backward()
        total = total + loss
    nodes = len(nodes_behind(total))
    lesson.check(
        "a running total grows a graph of its own", nodes > 10 * batches, f"{nodes} nodes after {batches} batches"
    )
    lesson.shows(
        f"a list of {batches} numbers held {bytes_text(kept[first, False])}, and it would grow until memory ends: an "
        "out-of-memory error after many good steps is the sign. Keep loss.detach(), which does not wait for a GPU as "
        ".item() does, and take the numbers out when you print."
    )
