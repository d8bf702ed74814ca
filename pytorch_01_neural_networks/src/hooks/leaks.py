"""What becomes of hooks that nobody removes, and of outputs that a hook keeps: calls and bytes, counted."""

import weakref
from collections.abc import Callable

from shared.lesson import Lesson
from shared.units import bytes_text

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks


class _Saved:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class GraphBytes(saved_tensors_hooks):
    """Inside `with GraphBytes(known) as graphs:` what graphs save is followed; `graphs.alive()` is what they still hold.

    A storage counts once; those of `known`, the weights and the data, not at all.
    """

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__(self._pack, lambda saved: saved.tensor)
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._seen: list[weakref.ref[_Saved]] = []

    def __enter__(self) -> "GraphBytes":  # type: ignore[override]
        super().__enter__()
        return self

    def _pack(self, tensor: torch.Tensor) -> _Saved:
        saved = _Saved(tensor.detach())
        self._seen.append(weakref.ref(saved))
        return saved

    def alive(self) -> int:
        storages = (saved.tensor.untyped_storage() for ref in self._seen if (saved := ref()) is not None)
        return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in self._known}.values())


def network(width: int, device: torch.device) -> nn.Sequential:
    """Three layers; each Tanh saves its output for the backward."""
    layers = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*layers).to(device)


def show_leaks(lesson: Lesson) -> None:
    show_stacking(lesson)
    show_keeping(lesson)


# Hooks that stack up


def watch_and_forget(model: nn.Module, seen: list[torch.Tensor]) -> None:
    """The mistake, called in every epoch: it registers one more hook, and the old ones are still there."""
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.detach()))  # type: ignore[index]


def show_stacking(lesson: Lesson) -> None:
    epochs, batches = 5, 4
    width, batch = lesson.pick(full=512, cpu=256, quick=64), lesson.pick(full=512, cpu=128, quick=32)
    lesson.section(
        "Hooks that nobody removes",
        "A hook stays until its handle is told to remove it. A notebook cell run twice, a function called in every epoch: "
        f"each time there is one hook more, all of them fire, and what they collect grows. Here {epochs} epochs of "
        f"{batches} batches; one layer's output is {batch} x {width} numbers.",
    )
    x = torch.randn(batch, width, device=lesson.device)
    one = x.nbytes
    rows: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}
    for removes, of_epochs in rows.items():
        model, seen = network(width, lesson.device), list[torch.Tensor]()
        for _ in range(epochs):
            before = len(seen)
            if removes:
                handle = model[0].register_forward_hook(lambda module, args, output: seen.append(output.detach()))
            else:
                watch_and_forget(model, seen)
            with torch.no_grad():
                for _ in range(batches):
                    model(x)
            if removes:
                handle.remove()
            of_epochs.append((len(model[0]._forward_hooks), len(seen) - before, sum(y.nbytes for y in seen)))
            if removes:
                seen.clear()  # used, and let go
    forgotten, removed = rows[False], rows[True]
    lesson.table(
        [
            {"epoch": epoch + 1, "hooks, forgotten": hooks, "calls": calls, "kept": bytes_text(kept),
             "hooks, removed": right_hooks, "their calls": right_calls, "their bytes": bytes_text(right_kept)}
            for epoch, ((hooks, calls, kept), (right_hooks, right_calls, right_kept)) in enumerate(
                zip(forgotten, removed, strict=True)
            )
        ]
    )  # fmt: skip
    lesson.check("forgotten: one hook more in every epoch", [hooks for hooks, *_ in forgotten] == list(range(1, epochs + 1)),
                 f"{forgotten[-1][0]} after {epochs} epochs")  # fmt: skip
    lesson.check("all fire, so the calls of an epoch grow with them",
                 [calls for _, calls, _ in forgotten] == [batches * epoch for epoch in range(1, epochs + 1)],
                 f"{forgotten[-1][1]} in the last epoch instead of {batches}")  # fmt: skip
    lesson.check("what they keep grows with the square of the epochs",
                 forgotten[-1][2] == one * batches * epochs * (epochs + 1) // 2,
                 f"{batches} x (1 + 2 + … + {epochs}) outputs of {bytes_text(one)}")  # fmt: skip
    lesson.check("removed and let go: every epoch is like the first", len(set(removed)) == 1 and removed[0][0] == 0,
                 f"{removed[0][1]} calls, no hook left")  # fmt: skip
    lesson.shows(
        f"after {epochs} epochs {forgotten[-1][1] // batches} copies of each output were kept, and averages over them would "
        "still look right: this leak is first seen as memory that runs out. Keep the handle, or write "
        "`with module.register_forward_hook(hook):`."
    )


# What is kept

Keep = Callable[[torch.Tensor], torch.Tensor]
KEEPING: dict[str, Keep] = {
    "seen.append(output)": lambda output: output,
    "seen.append(output.detach())": lambda output: output.detach(),
    "seen.append(output.detach().norm())": lambda output: output.detach().norm(),
}


def kept_by(keep: Keep, trains: bool, batches: int, model: nn.Sequential, x: torch.Tensor) -> tuple[int, int]:
    """Bytes alive after some batches with a hook that keeps the last layer's outputs: in graphs, and in the list itself."""
    seen: list[torch.Tensor] = []

    def remember(module: nn.Module, args: object, output: torch.Tensor) -> None:
        seen.append(keep(output))

    with model[-1].register_forward_hook(remember), GraphBytes([*model.parameters(), x]) as graphs:
        for _ in range(batches):
            loss = model(x).square().mean()
            if trains:
                loss.backward()
        del loss
        return graphs.alive(), sum(y.nbytes for y in seen)


def show_keeping(lesson: Lesson) -> None:
    batches = 10
    width, batch = lesson.pick(full=512, cpu=256, quick=64), lesson.pick(full=512, cpu=128, quick=32)
    model, x = network(width, lesson.device), torch.randn(batch, width, device=lesson.device)
    layer = x.nbytes
    lesson.section(
        "An output that keeps its graph",
        "An output remembers how it was computed, and through that memory holds the outputs of all layers before it. A hook "
        f"that keeps it in a list keeps them all, unless a backward() frees them. Here the last of three layers is kept for "
        f"{batches} batches; each layer's output has {bytes_text(layer)}.",
    )
    table, graph_bytes, list_bytes = [], {}, {}
    for way, keep in KEEPING.items():
        for trains in (False, True):
            graph_bytes[way, trains], list_bytes[way, trains] = kept_by(keep, trains, batches, model, x)
        validation, training = graph_bytes[way, False], graph_bytes[way, True]
        table.append({"in the hook": way, "graphs, validation": bytes_text(validation),
                      "graphs, training": bytes_text(training), "the list": bytes_text(list_bytes[way, True])})  # fmt: skip
        lesson.record("kept", graph_bytes[way, False], "B", way=way)
    lesson.table(table)
    attached, detached, summed = KEEPING
    lesson.check("kept as it is: three layers for every batch", graph_bytes[attached, False] == 3 * layer * batches,
                 f"{batches} x 3 x {bytes_text(layer)}, where nothing calls backward()")  # fmt: skip
    lesson.check("backward() empties the graphs", graph_bytes[attached, True] == 0, "what is left is the list itself")
    lesson.check("detached, no graph hangs on it", not graph_bytes[detached, False], "in validation as in training")
    lesson.check("yet the list still grows by one layer for every batch", list_bytes[detached, True] == layer * batches,
                 bytes_text(list_bytes[detached, True]))  # fmt: skip
    lesson.check("a statistic grows by four bytes", list_bytes[summed, True] == 4 * batches,
                 f"{list_bytes[summed, True]} B for {batches} batches")  # fmt: skip
    lesson.shows(
        f"the same hook kept {bytes_text(graph_bytes[attached, False])}, {bytes_text(list_bytes[detached, True])} or "
        f"{list_bytes[summed, True]} B. Detach what you keep, and keep a number where a number will do; .item() would do "
        "that too, and make the program wait for the GPU at every call."
    )
