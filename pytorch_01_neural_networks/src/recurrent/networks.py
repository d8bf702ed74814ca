"""Whole networks of layers and directions: equal to the library's, how fast, and what comes out at which end."""

from pytorch_01_neural_networks.src.recurrent import cells
from pytorch_01_neural_networks.src.recurrent.comparing import (
    KINDS,
    TOLERANCES,
    StatesApart,
    own_and_library,
)
from shared.agreement import Agreement, agreement
from shared.device import full_float32
from shared.lesson import Lesson
from shared.timing import compare, ratio
from shared.traps import operations

import torch
from torch import nn

CPU = torch.device("cpu")
B, T, C, H = 5, 7, 3, 6  # sequences, steps, numbers in a step, numbers in a state


# Whole networks

SHAPES = {"1 layer": (1, False), "2 layers": (2, False), "1, both ways": (1, True), "3, both ways": (3, True)}


def network_agreement(kind: str, layers: int, both_ways: bool, device: torch.device, dtype: torch.dtype) -> Agreement:
    """Outputs and final states; gradients of input, initial states and all parameters. Random batch_first inputs."""
    own, library = own_and_library(
        kind, C, H, layers, batch_first=True, bidirectional=both_ways, device=device, dtype=dtype
    )
    x = torch.randn(B, T, C, dtype=dtype).to(device)
    count = 2 if kind == "LSTM" else 1
    state = [torch.randn(layers * (1 + both_ways), B, H, dtype=dtype).to(device) for _ in range(count)]
    with full_float32():
        return agreement(StatesApart(own), StatesApart(library), x, *state)


def show_networks(lesson: Lesson) -> None:
    lesson.section(
        "Whole networks, equal to the library's",
        "A second layer reads the states of the first as its input. A second direction reads the sequence from its end "
        "with weights of its own, and the two states are joined. Here our networks get the weights of nn.RNN, nn.LSTM "
        "and nn.GRU by load_state_dict, random inputs and initial states, and a random gradient sent back. The table "
        "has the largest deviation of any output, final state or gradient.",
    )
    table, found = [], {}
    for dtype in TOLERANCES:
        device = lesson.device if dtype == torch.float32 else CPU
        for kind in KINDS:
            row: dict[str, object] = {"network": kind, "dtype": str(dtype).removeprefix("torch.")}
            for shape, (layers, both_ways) in SHAPES.items():
                found[dtype, kind, shape] = each = network_agreement(kind, layers, both_ways, device, dtype)
                row[shape] = f"{max(each.value, each.gradient):.0e}"
            table.append(row)
    lesson.table(table)
    for dtype, tolerance in TOLERANCES.items():
        of_dtype = [each for (of, *_), each in found.items() if of == dtype]
        name = str(dtype).removeprefix("torch.")
        lesson.check(f"{len(of_dtype)} networks equal the library's in {name}", all(each.within(tolerance) for each in of_dtype),
                     f"values to {max(each.value for each in of_dtype):.0e}, "
                     f"gradients to {max(each.gradient for each in of_dtype):.0e}")  # fmt: skip
    own, library = own_and_library("LSTM", C, H, 2, bidirectional=True, device=CPU)
    library.load_state_dict(own.state_dict())  # strict: raises if a name or a shape were different
    lesson.check("a state_dict goes both ways", list(own.state_dict()) == list(library.state_dict()),
                 f"{len(own.state_dict())} names, such as {list(own.state_dict())[-4]}")  # fmt: skip
    drawn = []
    for make in (cells.LSTM, nn.LSTM):
        torch.manual_seed(lesson.options.seed)
        drawn.append(torch.cat([weight.flatten() for weight in make(C, H).parameters()]))
    lesson.check("the same seed draws the same weights", torch.equal(*drawn), "uniform within 1 / sqrt(H), biases too")
    slower = show_speed(lesson)
    lesson.shows(
        "all of nn.RNN, nn.LSTM and nn.GRU is one loop over layers, directions and steps. What the library adds is speed: "
        f"our LSTM takes {slower:.1f} times as long as nn.LSTM here. The product with the input needs no state, so it can "
        "be done for all steps at once, and where one kernel does the whole layer no step waits for Python."
    )


def show_speed(lesson: Lesson) -> float:
    """How many times longer our LSTM takes than nn.LSTM, forwards and backwards."""
    steps, batch, width = (
        lesson.pick(full=100, quick=20),
        lesson.pick(full=64, cpu=16, quick=8),
        lesson.pick(full=64, quick=16),
    )
    x = torch.randn(steps, batch, width, device=lesson.device)
    ways, sent = {}, {}
    for kind in ("RNN, tanh", "GRU", "LSTM"):
        own, library = own_and_library(kind, width, width, device=lesson.device)
        for owner, network in (("ours", own), ("the library", library)):
            ways[kind, owner] = lambda network=network: network(x)[0].sum().backward()
            with torch.no_grad():
                sent[kind, owner] = len(operations(network, x))
    timings = compare({" ".join(way): run for way, run in ways.items()}, lesson.device, rounds=5,
                      budget_s=lesson.pick(full=2.0, quick=0.3))  # fmt: skip
    lesson.text(
        f"What the loop in Python costs: {batch} sequences of {steps} steps, H = {width}, forwards and backwards."
    )
    table = []
    for kind, owner in ways:
        timing = timings[f"{kind} {owner}"]
        lesson.record("recurrent step", timing.median_s / steps * 1e6, "µs", timing, kind=kind, owner=owner)
        table.append({"network": kind, "whose": owner, "operations sent, forwards": sent[kind, owner],
                      "ms": timing.median_s * 1e3, "µs a step": timing.median_s / steps * 1e6})  # fmt: skip
    lesson.table(table)
    lesson.check("our loop sends some operations for every step", all(sent[kind, "ours"] > 3 * steps for kind, _ in ways),
                 f"LSTM: {sent['LSTM', 'ours']:,} for {steps} steps; the library {sent['LSTM', 'the library']:,}")  # fmt: skip
    return ratio(timings["LSTM ours"], timings["LSTM the library"]).median


# What comes out


def last_step_of_both_directions(output: torch.Tensor) -> torch.Tensor:
    """The mistake: in output[:, -1] the backward direction has read one step, its first. `output` is (B, T, 2 H)."""
    return output[:, -1]


def end_of_both_directions(final: torch.Tensor) -> torch.Tensor:
    """Right: the final states of the last layer, each after all steps, (B, 2 H); `final` is h_n, (L 2, B, H)."""
    return torch.cat([final[-2], final[-1]], dim=1)


def run_with_axes_mixed_up(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The mistake: `x` is (B, T, C) and the model expects (T, B, C). It runs, and reads across the batch."""
    output: torch.Tensor = model(x)[0]
    return output


def which_steps_count(result: torch.Tensor, x: torch.Tensor) -> list[bool]:
    """For each step of `x` (B, T, C), whether `result` depends on it: whether its gradient is other than 0."""
    (gradient,) = torch.autograd.grad(result.sum(), x, retain_graph=True)
    return [bool(gradient[:, t].any()) for t in range(x.shape[1])]


def show_outputs(lesson: Lesson) -> None:
    lesson.section(
        "What comes out, and at which end",
        "A recurrent network returns two things: the state of its last layer at every step, and the final state of every "
        "layer and direction. To classify a sequence you want the final states; with two directions they lie at "
        "opposite ends of the output, and here most first attempts go wrong.",
    )
    model = nn.LSTM(C, H, 2, batch_first=True, bidirectional=True).to(lesson.device)
    x = torch.randn(B, T, C, device=lesson.device, requires_grad=True)
    output, (h, c) = model(x)
    lesson.text(
        f"nn.LSTM with two layers and both directions, batch_first, for x of shape (B, T, C) = {tuple(x.shape)}:"
    )
    lesson.table(
        [
            {"name": "output", "shape": str(tuple(output.shape)), "is": "(B, T, 2 H): h of the last layer, all steps"},
            {"name": "h_n", "shape": str(tuple(h.shape)), "is": "(2 L, B, H): final h of each layer and direction"},
            {"name": "c_n", "shape": str(tuple(c.shape)), "is": "(2 L, B, H): final c; an RNN and a GRU have none"},
        ]
    )
    lesson.check(
        "batch_first turns the output, not the states", output.shape[0] == h.shape[1] == B, "h_n keeps B second"
    )
    lesson.check("forwards the end is output[:, -1]", torch.equal(output[:, -1, :H], h[-2]), "equal to h_n[-2]")
    lesson.check("backwards the end is output[:, 0]", torch.equal(output[:, 0, H:], h[-1]), "equal to h_n[-1]")
    lesson.text("Which steps each half depends on (its gradient is not 0), for a network of one layer:")
    single = nn.LSTM(C, H, batch_first=True, bidirectional=True).to(lesson.device)
    output, (h, _) = single(x)
    halves = {"output[:, -1]": last_step_of_both_directions(output), "h_n": end_of_both_directions(h)}
    steps = {(name, way): which_steps_count(part, x) for name, both in halves.items()
             for way, part in (("forwards", both[:, :H]), ("backwards", both[:, H:]))}  # fmt: skip
    lesson.table(
        [{"taken from": name, "half": way, "steps it has read": " ".join("x" if read else "·" for read in reads)}
         for (name, way), reads in steps.items()]
    )  # fmt: skip
    lesson.check("half of output[:, -1] has read a single step",
                 steps["output[:, -1]", "backwards"] == [False] * (T - 1) + [True], f"1 of {T}")  # fmt: skip
    lesson.check(
        "both halves of h_n have read all", all(steps["h_n", "forwards"] + steps["h_n", "backwards"]), f"{T} of {T}"
    )
    time_first = nn.RNN(C, H).to(lesson.device)
    mixed = run_with_axes_mixed_up(time_first, x)
    (gradient,) = torch.autograd.grad(mixed[1].sum(), x)
    crossed = bool(gradient[0].any())
    lesson.check("without batch_first, samples leak into each other", crossed and mixed.shape[:2] == x.shape[:2],
                 "output of sample 1 depends on sample 0, shapes fit")  # fmt: skip
    lesson.shows(
        f"take h_n, not output[:, -1]: with two directions the latter holds {sum(steps['output[:, -1]', 'backwards'])} of "
        f"{T} steps in one of its halves. And pass batch_first=True if your batch comes first; the network cannot tell, "
        "and with the axes mixed up it reads your samples as if they were one another's past."
    )
