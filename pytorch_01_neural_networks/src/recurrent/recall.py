"""Remember a symbol over a gap: what the gradients of reach.py mean for learning."""

from collections.abc import Callable
from typing import Any

from pytorch_01_neural_networks.src.recurrent.reach import remember_for
from shared.lesson import Lesson
from shared.units import percent

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

SYMBOLS, HIDDEN, BATCH = 4, 24, 64
MOST_STEPS = 200  # told the gap, the networks mostly need 40 to 150 of them
LEARNED = 0.02  # mean loss of a batch at which training stops


def draw_batch(batch_size: int, gap: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """x (B, gap + 1, SYMBOLS + 1): a symbol, then `gap` steps of noise in the last channel; y (B,): the symbol."""
    y = torch.randint(SYMBOLS, (batch_size,))
    x = torch.zeros(batch_size, gap + 1, SYMBOLS + 1)
    x[:, 0, :SYMBOLS] = one_hot(y, SYMBOLS).float()
    x[:, 1:, SYMBOLS] = torch.randn(batch_size, gap)
    return x.to(device), y.to(device)


class Recaller(nn.Module):
    """Reads the sequence and names its first symbol from the last state."""

    def __init__(self, recurrent: Any) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(recurrent.hidden_size, SYMBOLS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.recurrent(x)[0][:, -1])
        return scores


def lstm_told(width: int, hidden: int, gap: int) -> nn.LSTM:
    network = nn.LSTM(width, hidden, batch_first=True)
    remember_for(network, gap)
    return network


def gru_told(width: int, hidden: int, gap: int) -> nn.GRU:
    network = nn.GRU(width, hidden, batch_first=True)
    remember_for(network, gap)
    return network


NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "RNN": lambda width, hidden, gap: nn.RNN(width, hidden, batch_first=True),
    "LSTM": lambda width, hidden, gap: nn.LSTM(width, hidden, batch_first=True),
    "LSTM, told the gap": lstm_told,
    "GRU": lambda width, hidden, gap: nn.GRU(width, hidden, batch_first=True),
    "GRU, told the gap": gru_told,
}


def train_to_recall(model: nn.Module, gap: int, device: torch.device) -> int:
    """Trains on fresh batches until the loss is below LEARNED; returns the steps it took, at most MOST_STEPS."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(MOST_STEPS):
        x, y = draw_batch(BATCH, gap, device)
        loss = cross_entropy(model(x), y)
        if loss.item() < LEARNED:
            return step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return MOST_STEPS


@torch.no_grad()
def recall_accuracy(model: nn.Module, gap: int, device: torch.device) -> float:
    x, y = draw_batch(1000, gap, device)
    return float((model(x).argmax(dim=1) == y).float().mean())


def show_recall(lesson: Lesson) -> None:
    gaps, trainings = lesson.pick(full=([4, 16, 48], 3), quick=([4, 32], 1))
    times = "the median of three trainings" if trainings > 1 else "one training"
    lesson.section(
        "Remembering a symbol over a gap",
        f"A task that is nothing but memory: one of {SYMBOLS} symbols is shown, then comes noise, and after the gap the network "
        f"must name the symbol. Each network has {HIDDEN} numbers of state and at most {MOST_STEPS} steps of Adam, with "
        f"{BATCH} fresh sequences in each; guessing gives {percent(1 / SYMBOLS)}. Told the gap means: gate biases of log(gap), "
        f"so that the network begins as one that keeps. The table has {times}. Adam is torch.optim's, as in real training; "
        "how it works is another lesson.",
    )
    accuracy: dict[tuple[str, int], float] = {}
    table = []
    for name, make in lesson.progress(NETWORKS.items(), "networks", total=len(NETWORKS)):
        row: dict[str, object] = {"network": name}
        for gap in gaps:
            runs = []
            for _ in range(trainings):
                model = Recaller(make(SYMBOLS + 1, HIDDEN, gap)).to(lesson.device)
                steps = train_to_recall(model, gap, lesson.device)
                runs.append((recall_accuracy(model, gap, lesson.device), steps))
            accuracy[name, gap], steps = sorted(runs)[trainings // 2]
            lesson.record("recall", accuracy[name, gap], "share", network=name, gap=gap)
            row[f"gap {gap}"] = (
                f"{percent(accuracy[name, gap])}, {f'{steps} steps' if steps < MOST_STEPS else 'not learned'}"
            )
        table.append(row)
    lesson.table(table)
    short, long = gaps[0], gaps[-1]
    lesson.check(f"over {short} steps every network remembers", min(accuracy[name, short] for name in NETWORKS) > 0.9,
                 f"at least {percent(min(accuracy[name, short] for name in NETWORKS))}")  # fmt: skip
    default, told = accuracy["LSTM", long], [accuracy[f"{kind}, told the gap", long] for kind in ("LSTM", "GRU")]
    lesson.check(
        f"over {long} steps the LSTM as PyTorch makes it does not", default < 0.6, f"{percent(default)}: it guesses"
    )
    lesson.check("LSTM and GRU that are told the gap do", min(told) > 0.9, " and ".join(map(percent, told)))
    lesson.figure("recall", lambda axis: draw_recall(axis, accuracy, gaps))
    lesson.shows(
        f"gates alone do not remember: over {long} steps the LSTM of the library names {percent(default)}, the same network with "
        f"other biases {percent(told[0])}. (The plain RNN names {percent(accuracy['RNN', long])}, the GRU of the library "
        f"{percent(accuracy['GRU', long])}; with these two luck decides.) When a network must carry something far, set the "
        "forget bias to the logarithm of how far, before you reach for a larger one."
    )


def draw_recall(axis: Any, accuracy: dict[tuple[str, int], float], gaps: list[int]) -> None:
    width = 0.8 / len(NETWORKS)
    for i, (name, hatch) in enumerate(zip(NETWORKS, ("", "//", "..", "xx", "--"), strict=True)):
        places = [place + (i - 2) * width for place in range(len(gaps))]
        axis.bar(places, [100 * accuracy[name, gap] for gap in gaps], width, label=name, hatch=hatch, edgecolor="white")
    axis.axhline(100 / SYMBOLS, color="black", linewidth=1, linestyle="--", marker="", label="guessing")
    axis.set(xlabel="gap, steps between symbol and question", ylabel="symbols named, %", ylim=(0, 135),
             xticks=range(len(gaps)), xticklabels=gaps, yticks=range(0, 101, 20),
             title="Memory over a gap: the bias of the gates decides")  # fmt: skip
    axis.grid(visible=False, axis="x")
    axis.legend(loc="upper center", ncols=3, fontsize=9)
