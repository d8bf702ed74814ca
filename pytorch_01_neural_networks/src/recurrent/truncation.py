"""Long streams: backpropagation truncated by detach(), what forgetting it costs, and clipping a gradient."""

from collections.abc import Iterator
from typing import Any

from shared.agreement import deviation
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import percent, significant

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, mse_loss
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

C, H = 3, 8


def show_truncation(lesson: Lesson) -> None:
    show_detach(lesson)
    show_clipping(lesson)


# Truncated backpropagation through time


def count_nodes(loss: torch.Tensor) -> int:
    """Operations in the graph behind `loss`: what backward() would walk through, and what memory keeps."""
    seen: set[Any] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return len(seen)


class Stream(nn.Module):
    """Predicts a number at each step; `forward` takes and returns the state, so a stream can be read in chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(C, H), nn.Linear(H, 1)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = []
        for now in x:  # (T, B, C)
            state = self.cell(now, state)
            outputs.append(self.head(state))
        return torch.stack(outputs), state


def losses_detached(model: Stream, x: torch.Tensor, y: torch.Tensor, chunk: int) -> Iterator[torch.Tensor]:
    """Right: the state goes on as a number, the graph ends at each chunk. Yields the loss of each chunk."""
    state = x.new_zeros(x.shape[1], H)
    for part, target in zip(x.split(chunk), y.split(chunk), strict=True):
        output, state = model(part, state.detach())
        yield mse_loss(output, target)


def losses_with_forgotten_detach(model: Stream, x: torch.Tensor, y: torch.Tensor, chunk: int) -> Iterator[torch.Tensor]:
    """The mistake: the state drags the graph of all chunks before along."""
    state = x.new_zeros(x.shape[1], H)
    for part, target in zip(x.split(chunk), y.split(chunk), strict=True):
        output, state = model(part, state)
        yield mse_loss(output, target)


def train_on(losses: Iterator[torch.Tensor], model: Stream, retain_graph: bool = False) -> None:
    """One step of gradient descent for each chunk."""
    for loss in losses:
        loss.backward(retain_graph=retain_graph)
        with torch.no_grad():
            for weight in model.parameters():
                assert weight.grad is not None
                weight.sub_(weight.grad, alpha=0.01)
                weight.grad = None


def gradient_in_chunks(model: Stream, x: torch.Tensor, y: torch.Tensor, chunk: int) -> torch.Tensor:
    """The gradient of the mean loss in all weights, in one row, with the state detached every `chunk` steps."""
    chunks = len(x) // chunk
    total = sum((loss / chunks for loss in losses_detached(model, x, y, chunk)), torch.zeros((), device=x.device))
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(total, list(model.parameters()))])


def remembering_stream(device: torch.device) -> Stream:
    """Its update gate begins near 0.95, so the state, and the gradient, last for some 20 steps."""
    model = Stream()
    with torch.no_grad():
        model.cell.bias_ih[H : 2 * H] = 3.0
    return model.to(device)


def show_detach(lesson: Lesson) -> None:
    lesson.section(
        "Truncated backpropagation through time",
        "A stream has no end, memory has one. So you read it in chunks: the state goes on from chunk to chunk, and "
        "detach() cuts the graph between them. The numbers stay what they were; the gradient sees one chunk. Without "
        "detach() every chunk hangs on all chunks before.",
    )
    steps, chunk = lesson.pick(full=400, quick=100), 10
    model = remembering_stream(lesson.device)
    x = torch.randn(steps, 4, C, device=lesson.device)
    y = x[..., :1].cumsum(0) / torch.arange(1, steps + 1, device=lesson.device).view(-1, 1, 1)  # the mean so far
    right = [count_nodes(loss) for loss in losses_detached(model, x, y, chunk)]
    grown = [count_nodes(loss) for loss in losses_with_forgotten_detach(model, x, y, chunk)]
    count = len(right)
    shown = sorted({0, 1, 2, 4, 9, count - 1})
    lesson.table(
        [{"chunk": i + 1, "steps read": (i + 1) * chunk, "nodes behind the loss, detached": right[i],
          "detach() forgotten": grown[i]} for i in shown if i < count]
    )  # fmt: skip
    lesson.check("with detach() the graph of each chunk is as large", len(set(right)) == 1, f"{right[0]} nodes each")
    lesson.check("without it the graph grows with every chunk", grown[-1] > 0.8 * count * grown[0],
                 f"{grown[-1]:,} nodes after {count}: {grown[-1] / grown[0]:.0f} times the first")  # fmt: skip
    refused = complaint(lambda: train_on(losses_with_forgotten_detach(model, x, y, chunk), model))
    retained = complaint(lambda: train_on(losses_with_forgotten_detach(model, x, y, chunk), model, retain_graph=True))
    lesson.items({"it says": refused, "then, with retain_graph=True": retained})
    lesson.check("training without detach() is refused", "second time" in refused, "at the second chunk")
    lesson.check("retain_graph=True does not cure it", "modified by an inplace operation" in retained,
                 "the step has changed the old weights")  # fmt: skip
    lesson.check("with detach() it trains", complaint(lambda: train_on(losses_detached(model, x, y, chunk), model)) == "",
                 f"{count} steps")  # fmt: skip
    model = remembering_stream(lesson.device)
    with torch.no_grad():
        whole = mse_loss(model(x, x.new_zeros(4, H))[0], y)
        parts = torch.stack(list(losses_detached(model, x, y, chunk))).mean()
    lesson.check(
        "the numbers do not depend on the chunks", deviation(parts, whole) < 1e-5, f"loss {whole:.4f} both ways"
    )
    piece, target = x[:100], y[:100]
    full = gradient_in_chunks(model, piece, target, 100)
    table = []
    for length in (5, 10, 20, 50, 100):
        part = gradient_in_chunks(model, piece, target, length)
        likeness = cosine_similarity(part, full, dim=0).item()
        table.append({"chunk": length, "cosine to the full gradient": f"{likeness:.3f}",
                      "its length, of the full one's": percent((part.norm() / full.norm()).item())})  # fmt: skip
        lesson.record("cosine to the full gradient", likeness, "cosine", chunk=length)
    lesson.text("What the truncation loses: 100 steps of the stream, the state detached after every chunk.")
    lesson.table(table)
    first = x[:20].detach().requires_grad_()
    *_, last = losses_detached(model, first, y[:20], 10)
    (slope,) = torch.autograd.grad(last, first)
    lesson.check("beyond its chunk a loss has no gradient at all",
                 not slope[:10].any() and bool(slope[10:].flatten(1).any(dim=1).all()),
                 "exactly 0 in steps 1 to 10, not 0 in 11 to 20")  # fmt: skip
    lesson.shows(
        f"detach() kept the graph at {right[0]} nodes where it had grown to {grown[-1]:,}. What lies further back than one "
        f"chunk can still be used, if the state carries it, but never be learned from. Here chunks of {table[0]['chunk']} point "
        f"the gradient {table[0]['cosine to the full gradient']} along the full one, chunks of {table[3]['chunk']} "
        f"{table[3]['cosine to the full gradient']}: choose them as long as memory allows."
    )


# Clipping


def clip_by_norm(gradients: list[torch.Tensor], limit: float) -> torch.Tensor:
    """Scales all gradients by one factor so that their common norm is at most `limit`; returns the norm before.

    Pascanu, Mikolov and Bengio 2013, algorithm 1.
    """
    norm: torch.Tensor = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    for gradient in gradients:
        gradient *= (limit / (norm + 1e-6)).clamp(max=1)
    return norm


def clip_after_the_step(w: torch.Tensor, gradient: torch.Tensor, lr: float, limit: float) -> torch.Tensor:
    """The mistake: by the time the gradient is clipped, the weight has moved."""
    stepped = w - lr * gradient
    clip_by_norm([gradient], limit)
    return stepped


def descend(w: float, steps: int, updates: int, lr: float, limit: float | None) -> list[tuple[float, float, float]]:
    """One weight, h' = w h for `steps` steps from h = 1, wanted: 1 at the end. (w, loss, gradient) before each update."""
    weight, path = torch.tensor([w], dtype=torch.float64), []
    for _ in range(updates):
        weight.requires_grad_()
        loss = (weight**steps - 1).square().sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        path.append((weight.item(), loss.item(), gradient.item()))
        if limit is not None:
            clip_by_norm([gradient], limit)
        weight = weight.detach() - lr * gradient
    return path


def show_clipping(lesson: Lesson) -> None:
    lesson.section(
        "Clipping an exploding gradient",
        "A factor above 1 does the opposite of vanishing: 1.1 to the power 50 is 117. Then one step of the optimizer throws "
        "the weights far away. Clipping scales the whole gradient down when its norm is above a limit: the direction stays, "
        "the step has an end. The smallest case is one weight, h' = w h for 50 steps, which shall end at 1.",
    )
    lr, limit = 0.01, 1.0
    free, clipped = (descend(1.1, 50, 21, lr, of) for of in (None, limit))
    lesson.table(
        [{"update": i, "w": f"{free[i][0]:.4g}", "loss": f"{free[i][1]:.3g}", "gradient": f"{free[i][2]:.3g}",
          "w, clipped": f"{clipped[i][0]:.4f}", "loss, clipped": f"{clipped[i][1]:.3g}"} for i in (0, 1, 2, 5, 10, 20)]
    )  # fmt: skip
    lesson.check("one step without clipping and all is lost", not free[1][1] < 1e30,
                 f"w = {free[1][0]:,.0f}, loss {free[1][1]:.0e}")  # fmt: skip
    lesson.check("with clipping the loss comes down", clipped[-1][1] < clipped[0][1] / 1000,
                 f"{clipped[0][1]:,.0f} to {clipped[-1][1]:.2g} in 20 steps")  # fmt: skip
    start = torch.tensor([free[0][0]], dtype=torch.float64)
    late = clip_after_the_step(start, torch.tensor([free[0][2]], dtype=torch.float64), lr, limit).item()
    lesson.check("clipped after the step is not clipped", late == free[1][0], "the same w as without")
    model = nn.LSTM(C, H).to(lesson.device)
    (100 * model(torch.randn(20, 4, C, device=lesson.device))[0].sum()).backward()
    before = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    own = [gradient.clone() for gradient in before]
    norm, theirs = clip_by_norm(own, limit), clip_grad_norm_(model.parameters(), limit)
    after = [weight.grad for weight in model.parameters() if weight.grad is not None]
    apart = max(deviation(a, b) for a, b in zip(own, after, strict=True))
    lesson.check("our clipping is clip_grad_norm_", apart < 1e-5 and abs(norm / theirs - 1) < 1e-4,
                 f"both return the norm before: {significant(theirs.item())}")  # fmt: skip
    for weight, gradient in zip(model.parameters(), before, strict=True):
        weight.grad = gradient.clone()
    clip_grad_value_(model.parameters(), 0.01)
    rows = [torch.cat([gradient.flatten() for gradient in gradients]) for gradients in
            (before, own, [weight.grad for weight in model.parameters() if weight.grad is not None])]  # fmt: skip
    by_norm, by_value = (cosine_similarity(row, rows[0], dim=0).item() for row in rows[1:])
    lesson.check("clipping by norm keeps the direction, by value turns it", by_norm > 0.9999 and by_value < 0.99,
                 f"cosine {by_norm:.4f} and {by_value:.2f}")  # fmt: skip
    lesson.shows(
        f"the gradient was {free[0][2]:.1e} where the way to go was 0.1; clipped to {limit:g} it took steps of {lr * limit:g}. "
        "Clip after backward() and before step(), once over all parameters, and log the norm that clip_grad_norm_ "
        "returns: it tells you whether your limit is ever reached. Against vanishing it does nothing."
    )
