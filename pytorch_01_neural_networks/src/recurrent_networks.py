"""How does a network read a sequence, what does it remember of it, and when is it worth its training?

You will see RNN, LSTM and GRU written from their gate equations and equal to PyTorch's, value and gradient, with layers,
directions, initial states and packed sequences of unequal length. Then what they remember: how fast a gradient fades on
its way back, how far a symbol can be recalled, what truncation and clipping do. At the end a real series is forecast
honestly: it is held against a last value, a last year, and a model of 1970 with two parameters.

    python src/recurrent_networks.py            about 40 seconds
    python src/recurrent_networks.py --quick    the same path with tiny sizes, about 10 seconds
"""

import inspect
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_01_neural_networks.src.recurrent.cells import (
    State,
    Step,
    Weights,
    gru_step,
    lstm_step,
    relu_step,
    tanh_step,
)
from pytorch_01_neural_networks.src.recurrent.comparing import KINDS, TOLERANCES
from pytorch_01_neural_networks.src.recurrent.forecasting import show_forecasting
from pytorch_01_neural_networks.src.recurrent.leaks import show_leaks
from pytorch_01_neural_networks.src.recurrent.networks import show_networks, show_outputs
from pytorch_01_neural_networks.src.recurrent.packing import show_packing
from pytorch_01_neural_networks.src.recurrent.reach import show_reach
from pytorch_01_neural_networks.src.recurrent.recall import show_recall
from pytorch_01_neural_networks.src.recurrent.truncation import show_truncation
from shared.agreement import Agreement, agreement, deviation
from shared.lesson import Lesson

import torch
from torch import nn

CPU = torch.device("cpu")
B, T, C, H = 5, 7, 3, 6  # sequences, steps, numbers in a step, numbers in a state: small where only equality counts


# One cell, many steps


def draw_unrolled(steps: int) -> str:
    """The same cell at each step, its state going to the right."""
    times = range(1, steps + 1)
    over = "".join(f"h{t}".center(14) for t in times)
    line = "".join("│".center(14) for _ in times)
    under = "".join(f"x{t}".center(14) for t in times)
    cell = " ──→ ".join("[ cell ]".center(9) for _ in times)
    return "\n".join(row.rstrip() for row in (f"       {over}", f"       {line}", f" h0 ──→ {cell} ──→  h{steps}",
                                              f"       {line}", f"       {under}"))  # fmt: skip


def run_one_by_one(step: Step, x: torch.Tensor, state: State, weights: Weights) -> torch.Tensor:
    """All states h1 ... hT, (T, B, H), of one layer that reads `x` (T, B, C): the loop that is all of recurrence."""
    states = []
    for now in x:
        state = step(now, state, weights)
        states.append(state[0])
    return torch.stack(states)


def show_unrolling(lesson: Lesson) -> None:
    lesson.section(
        "One cell, used again at every step",
        "A recurrent network reads a sequence as you read a line: one step at a time, with a state h that carries what "
        "matters of everything before. Unrolled over time it is a deep network whose layers all share their weights. "
        "So it takes any length, and training it means to backpropagate through every step.",
    )
    lesson.drawing(draw_unrolled(5))
    lesson.text(
        "The smallest one: one number in, one in the state, h' = tanh(1 x + 0.5 h). A single 1 is read, then zeros:"
    )
    weights = [torch.tensor(value) for value in ([[1.0]], [[0.5]], [0.0], [0.0])]
    pulse = torch.tensor([1.0, 0, 0, 0, 0, 0]).view(6, 1, 1)
    states = run_one_by_one(tanh_step, pulse, (torch.zeros(1, 1),), weights).flatten()
    before = [0.0, *states.tolist()]
    lesson.table(
        [{"step": t + 1, "x": f"{pulse[t].item():g}", "0.5 h": f"{0.5 * before[t]:.4f}",
          "tanh(x + 0.5 h)": f"{before[t + 1]:.4f}"} for t in range(6)]
    )  # fmt: skip
    small = nn.RNN(1, 1)
    small.load_state_dict(dict(zip(small.state_dict(), weights, strict=True)))
    lesson.check("this loop is nn.RNN", deviation(states, small(pulse)[0].flatten()) < 1e-6,
                 f"{len(pulse)} states, the last one {states[-1]:.4f}")  # fmt: skip
    share = states[-1] / states[0]
    lesson.check("every step without news halves the state, or more", share <= 0.5**5,
                 f"after 5 steps {share:.4f} of it is left; 0.5^5 is {0.5**5:.4f}")  # fmt: skip
    x, start = torch.randn(T, B, C), torch.randn(1, B, H)
    network = nn.RNN(C, H)
    shared = [weight.detach() for weight in network.parameters()]
    copies = [[weight.clone().requires_grad_() for weight in shared] for _ in range(T)]
    state: State = (start[0],)
    for t in range(T):
        state = tanh_step(x[t], state, copies[t])  # a weight of its own for each step, equal to all others
    state[0].sum().backward()
    network(x, start)[1].sum().backward()
    summed = torch.stack([w_hh.grad for _, w_hh, *_ in copies if w_hh.grad is not None]).sum(dim=0)
    whole = network.get_parameter("weight_hh_l0").grad
    assert whole is not None
    lesson.check("the gradient of a shared weight is the sum over steps", deviation(summed, whole) < 1e-5,
                 f"of {T} copies of weight_hh")  # fmt: skip
    forwards, backwards = (network(order, start)[1] for order in (x, x.flip(0)))
    apart = (forwards - backwards).abs().max().item()
    lesson.check("the order of the steps counts", apart > 1e-3, f"read backwards, the last state is {apart:.2f} away")
    numbers = sum(weight.numel() for weight in network.parameters())
    long = network(torch.randn(1000, 1, C))[0]
    lesson.check("the number of weights does not depend on the length", len(long) == 1000,
                 f"{numbers} numbers read {T} steps or {len(long):,}")  # fmt: skip
    lesson.shows(
        f"{numbers} numbers read a sequence of any length, in order, and the state is all that they keep of it. Of a "
        f"pulse {share:.3f} is left after five steps: what becomes of a memory, and of a gradient, over many steps is "
        "the question that LSTM and GRU were built to answer. The price: step 2 cannot begin before step 1 is done."
    )


# The cells

EQUATIONS = {
    "RNN": "h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu in the place of tanh.",
    "LSTM": "i, f, o = sigmoid(their rows of W_ih x + b_ih + W_hh h + b_hh), g = tanh(its rows). The state has two parts: "
    "c' = f * c + i * g is the memory, forgotten by f and written by i; h' = o * tanh(c') is what others see of it.",
    "GRU": "r, z = sigmoid(their rows), n = tanh(W_in x + b_in + r * (W_hn h + b_hn)). "
    "h' = (1 - z) * n + z * h: z keeps, the rest is new. No second state, no gate before the output.",
}
LSTM_DRAWING = """\
 c  ───────── * f ─────────── + i * g ─────────────→  c'    the road of the memory
                                          │
                                        tanh
                                          │
 h, x  ──→  i, f, g, o                   * o ──────→  h'    what the step shows"""
GATE_ORDERS = (("PyTorch, cuDNN", "i f g o", "r z n"), ("Keras", "i f g o", "z r n"), ("ONNX", "i o f g", "z r n"))


def code_of(step: Step) -> str:
    """The lines of a step below its docstring: what is printed is what runs."""
    lines = inspect.getsource(step).splitlines()
    first = next(i for i, line in enumerate(lines) if "w_ih, w_hh" in line)
    return textwrap.dedent("\n".join(lines[first:]))


def reorder_gates(weights: Weights, given: str, wanted: str) -> list[torch.Tensor]:
    """The same weights with the blocks of their rows in another order, such as from "iofg" to "ifgo"."""
    places = [given.index(gate) for gate in wanted]
    return [torch.cat([weight.chunk(len(given))[place] for place in places]) for weight in weights]


def copy_gates_unchanged(weights: Weights) -> list[torch.Tensor]:
    """The mistake: every shape fits, whatever the order of the gates, so nothing complains."""
    return [weight.clone() for weight in weights]


def gru_step_of_the_paper(x: torch.Tensor, state: State, weights: Weights) -> State:
    """Cho et al. 2014, equation 8: r resets the state before the product. With PyTorch's weights this is a mistake."""
    w_ih, w_hh, b_ih, b_hh = weights
    (h,) = state
    r_x, z_x, n_x = nn.functional.linear(x, w_ih, b_ih).chunk(3, dim=1)
    r_h, z_h, _ = nn.functional.linear(h, w_hh, b_hh).chunk(3, dim=1)
    r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
    n = (n_x + nn.functional.linear(r * h, w_hh.chunk(3)[2], b_hh.chunk(3)[2])).tanh()
    return ((1 - z) * n + z * h,)


def random_cell(gates: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor,
                                                                               list[torch.Tensor]]:  # fmt: skip
    """A step x, two states and weights, all random and of order 1."""
    shapes = ((gates * H, C), (gates * H, H), (gates * H,), (gates * H,))
    x, h, c = (torch.randn(B, width, dtype=dtype).to(device) for width in (C, H, H))
    return x, h, c, [torch.randn(shape, dtype=dtype).to(device) for shape in shapes]


def cell_agreement(kind: str, device: torch.device, dtype: torch.dtype) -> Agreement:
    """Our step against PyTorch's: new states, and the gradients of input, states and weights."""
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[kind[:4].rstrip(",")]
    x, h, c, weights = random_cell(gates, device, dtype)
    if kind == "LSTM":
        return agreement(lambda x, h, c, *w: lstm_step(x, (h, c), w), lambda x, h, c, *w: torch.lstm_cell(x, (h, c), *w),
                         x, h, c, *weights)  # fmt: skip
    step, oracle = {"RNN, tanh": (tanh_step, torch.rnn_tanh_cell), "RNN, relu": (relu_step, torch.rnn_relu_cell),
                    "GRU": (gru_step, torch.gru_cell)}[kind]  # fmt: skip
    return agreement(lambda x, h, *w: step(x, (h,), w), oracle, x, h, *weights)


def show_cells(lesson: Lesson) -> None:
    lesson.section(
        "Three cells from their equations",
        "A plain RNN rewrites its whole state at each step. LSTM and GRU add gates: numbers between 0 and 1, computed "
        "from input and state, that say how much to keep and how much to write. * is a product number by number, W x "
        "one of matrices. All gates of a cell lie stacked in one matrix, so a step costs two products.",
    )
    lesson.items(EQUATIONS)
    lesson.drawing(LSTM_DRAWING)
    lesson.text("The same as code (src/recurrent/cells.py), first the LSTM, then the GRU:")
    lesson.drawing(f"{code_of(lstm_step)}\n\n{code_of(gru_step)}")
    for dtype, tolerance in TOLERANCES.items():
        device = lesson.device if dtype == torch.float32 else CPU  # MPS has no float64
        found = [cell_agreement(kind, device, dtype) for kind in KINDS]
        name = str(dtype).removeprefix("torch.")
        lesson.check(f"all steps equal PyTorch's within {tolerance:.0e} in {name}",
                     all(each.within(tolerance) for each in found),
                     f"values to {max(each.value for each in found):.0e}, "
                     f"gradients to {max(each.gradient for each in found):.0e}")  # fmt: skip
    lesson.text("In which order the gates are stacked, each library decides for itself:")
    lesson.table([dict(zip(("library", "LSTM", "GRU"), row, strict=True)) for row in GATE_ORDERS])
    x, h, c, weights = random_cell(4, lesson.device, torch.float32)
    weights[2][H : 2 * H] = -100.0
    c.requires_grad_()
    (slope,) = torch.autograd.grad(torch.lstm_cell(x, (h, c), *weights)[1].sum(), c)
    lesson.check("rows H to 2H of an LSTM are its forget gate", slope.abs().max() < 1e-6,
                 "bias -100 there: c' no longer depends on c")  # fmt: skip
    x, h, _, gru_weights = random_cell(3, lesson.device, torch.float32)
    kept = [weight.clone() for weight in gru_weights]
    kept[2][H : 2 * H] = 100.0
    lesson.check("rows H to 2H of a GRU are its update gate", deviation(torch.gru_cell(x, h, *kept), h) < 1e-5,
                 "bias 100 there: h' is h")  # fmt: skip
    off = deviation(gru_step_of_the_paper(x, (h,), gru_weights)[0], torch.gru_cell(x, h, *gru_weights))
    lesson.check("a GRU that resets before the product is another one", off > 1e-3, f"{off:.2f} away, same weights")
    x, h, c, right = random_cell(4, lesson.device, torch.float32)
    from_onnx = reorder_gates(right, "ifgo", "iofg")
    truth, cured, wrong = (
        lstm_step(x, (h, c), weights)[0]
        for weights in (right, reorder_gates(from_onnx, "iofg", "ifgo"), copy_gates_unchanged(from_onnx))
    )
    lesson.check("gates copied in the wrong order raise no error", deviation(wrong, truth) > 1e-3,
                 f"ONNX's order in PyTorch's place: {deviation(wrong, truth):.2f} away")  # fmt: skip
    lesson.check("reordered they are right", torch.equal(cured, truth), "to the last bit")
    lesson.shows(
        f"each cell is a few lines. Two details decide whether weights of elsewhere fit: the order of the gates ("
        f"{deviation(wrong, truth):.2f} off without a word), and in the GRU whether r comes before or after the product "
        f"({off:.2f} off). Compare one step with numbers before you trust an import."
    )


# Counting


def count_parameters(gates: int, input_size: int, hidden_size: int, layers: int, directions: int) -> int:
    """G H (width + H + 2) for each layer and direction; a second layer reads D H numbers."""
    widths = [input_size] + [directions * hidden_size] * (layers - 1)
    return sum(directions * gates * hidden_size * (width + hidden_size + 2) for width in widths)


def merge_biases(weights: Weights) -> list[torch.Tensor]:
    """One bias in the place of two."""
    w_ih, w_hh, b_ih, b_hh = weights
    return [w_ih, w_hh, b_ih + b_hh, torch.zeros_like(b_hh)]


def show_counts(lesson: Lesson) -> None:
    lesson.section(
        "How many parameters",
        "A layer with G gates has two matrices, one for the input and one for the state, and two biases: G H (C + H + 2) "
        "numbers for each direction. G is 1 for an RNN, 3 for a GRU, 4 for an LSTM. From the second layer on the input "
        "is the state of the layer below, of both directions if there are two.",
    )
    shapes = ((1, 1), (2, 1), (1, 2), (2, 2))
    headings = ("1 layer", "2 layers", "1, both ways", "2, both ways")
    table: list[dict[str, object]] = []
    counted = 0
    gates_of = {"RNN, tanh": 1, "GRU": 3, "LSTM": 4}
    for kind, gates in gates_of.items():
        row: dict[str, object] = {"C = 32, H = 64": kind.partition(",")[0], "gates": gates}
        for (layers, directions), heading in zip(shapes, headings, strict=True):
            network = KINDS[kind][1](32, 64, layers, bidirectional=directions == 2)
            row[heading] = sum(weight.numel() for weight in network.parameters())
            counted += row[heading] == count_parameters(gates, 32, 64, layers, directions)
        table.append(row)
    lesson.table(table)
    lesson.check("the formula counts every one of them", counted == 12, f"{counted} of 12 networks")
    one = {kind: count_parameters(gates, 32, 64, 1, 1) for kind, gates in gates_of.items()}
    lesson.check("an LSTM has four times the numbers of an RNN, a GRU three",
                 one["LSTM"] == 4 * one["RNN, tanh"] and one["GRU"] == 3 * one["RNN, tanh"],
                 f"{one['LSTM']:,} and {one['GRU']:,} to {one['RNN, tanh']:,}")  # fmt: skip
    x, h, c, weights = random_cell(4, lesson.device, torch.float32)
    same = deviation(lstm_step(x, (h, c), merge_biases(weights))[0], lstm_step(x, (h, c), weights)[0])
    lesson.check("of an LSTM's two biases one would do", same < 1e-5, "they only ever meet as a sum")
    x, h, _, weights = random_cell(3, lesson.device, torch.float32)
    other = deviation(gru_step(x, (h,), merge_biases(weights))[0], gru_step(x, (h,), weights)[0])
    lesson.check("not of a GRU's: r gates the second one of n", other > 1e-3, f"merged, it is {other:.2f} away")
    lesson.shows(
        f"the count is fixed by C, H and G, and grows with the square of H: {table[2]['1 layer']:,} for this LSTM, "
        f"{count_parameters(4, 32, 128, 1, 1):,} with H = 128. Two biases are a habit of cuDNN. When you set a forget "
        "bias, set one of the two and clear the other, or you get their sum."
    )


def main(argv: list[str] | None = None) -> int:
    title = (
        "Recurrent networks: cells from their equations, what they remember, and a forecast held against strong rivals."
    )
    with Lesson(__file__, argv, title=title) as lesson:
        show_unrolling(lesson)
        show_cells(lesson)
        show_counts(lesson)
        show_networks(lesson)
        show_outputs(lesson)
        show_packing(lesson)
        show_reach(lesson)
        show_recall(lesson)
        show_truncation(lesson)
        show_forecasting(lesson)
        show_leaks(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
