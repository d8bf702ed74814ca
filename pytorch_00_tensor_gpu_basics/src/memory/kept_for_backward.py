"""What autograd keeps between forward and backward: predicted to the byte, made smaller, and computed again instead."""

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pytorch_00_tensor_gpu_basics.src.memory.ledger import Ledger, bytes_kept_for_backward
from shared.lesson import Lesson
from shared.snippets import evaluate
from shared.timing import compare, ratio
from shared.units import bytes_text, percent, significant

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

# Whether backward() needs what went into the activation (True) or what came out of it, which the next layer keeps too.
NEEDS_ITS_INPUT = {
    "nn.ReLU()": False,
    "nn.ReLU(inplace=True)": False,
    "nn.Tanh()": False,
    "nn.Sigmoid()": False,
    "nn.GELU()": True,
    "nn.SiLU()": True,
    "nn.LeakyReLU()": True,
}
CLASSES = 10
# Of one float32 tensor x. The names that autograd gives to what it keeps: self, the input; result, the output.
OPERATIONS = (
    "x + 1",
    "x.sum()",
    "x * x",
    "x.exp()",
    "x.relu()",
    "F.gelu(x)",
    "F.softmax(x, -1)",
    "F.layer_norm(x, x.shape[-1:])",
    "F.dropout(x)",
    "(x + 1).relu().exp()",
)


def make_mlp(sizes: Sequence[int], activation: str, dtype: torch.dtype, device: torch.device) -> nn.Sequential:
    """Linear layers from sizes[0] to sizes[-1], with an activation between any two."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, device=device, dtype=dtype), evaluate(activation, nn=nn)]
    return nn.Sequential(*layers[:-1])


def make_batch(sizes: Sequence[int], batch_size: int, dtype: torch.dtype, device: torch.device
               ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    return (torch.randn(batch_size, sizes[0], device=device).to(dtype),
            torch.randint(0, sizes[-1], (batch_size,), device=device))  # fmt: skip


def predict_kept_bytes(sizes: Sequence[int], batch_size: int, activation: str, dtype: torch.dtype) -> int:
    """What autograd keeps of cross_entropy(mlp(x), targets), x and targets included, the parameters not.

    Each Linear keeps its input: x, and then what comes out of each activation. An activation that needs its input
    keeps that as well. Adding a bias keeps nothing. Cross-entropy keeps the log-probabilities, the targets (int64) and
    one number, the sum of the weights of the classes.
    """
    hidden = sum(sizes[1:-1]) * (2 if NEEDS_ITS_INPUT[activation] else 1)
    numbers = batch_size * (sizes[0] + hidden + sizes[-1]) + 1
    return numbers * dtype.itemsize + batch_size * torch.int64.itemsize


def predict_kept_bytes_under_autocast(sizes: Sequence[int], batch_size: int) -> int:
    """The same for ReLU with float32 parameters under autocast: 2 bytes for most numbers, and copies of the weights.

    Linear casts its input and its weight, and keeps both copies; the first layer needs no gradient of x, and so no
    weight. Cross-entropy is computed in float32.
    """
    weights = sum(inputs * outputs for inputs, outputs in itertools.pairwise(sizes[1:]))
    halves = batch_size * sum(sizes[:-1]) + weights
    return 2 * halves + 4 * (batch_size * sizes[-1] + 1) + batch_size * torch.int64.itemsize


def show_what_autograd_keeps(lesson: Lesson) -> None:
    lesson.section(
        "What autograd keeps",
        "To compute gradients, backward() needs numbers of the forward pass, and autograd keeps them until then. In "
        "most trainings these activations, and not the parameters, are what fills a GPU. Each operation keeps what its "
        "own derivative needs: for exp(x) its result, for a sum nothing. (Autograd's names for what it keeps: self and "
        "input are what went in, other is the second factor, result is what came out.)",
    )
    x = torch.randn(64, 1024, device=lesson.device, requires_grad=True)
    per_number = {
        call: bytes_kept_for_backward(lambda: evaluate(call, x=x, F=F), []) / x.numel() for call in OPERATIONS
    }
    lesson.table([{"of a float32 x": call, "bytes per number": f"{kept:.3g}",
                   "what is kept": what_is_kept(evaluate(call, x=x, F=F))} for call, kept in per_number.items()])  # fmt: skip
    lesson.check(
        "adding a constant and summing keep nothing", per_number["x + 1"] == per_number["x.sum()"] == 0, "0 bytes"
    )
    chain = per_number["(x + 1).relu().exp()"]
    lesson.check(
        "relu and exp in a row keep a tensor each, both outputs", chain == 8, f"{chain:g} bytes, and x + 1 none"
    )
    mask = per_number["F.dropout(x)"]
    lesson.check("dropout keeps its mask", mask in (1, 4), f"{mask:g} byte{'s' if mask > 1 else ''} for each number")
    lesson.text(
        "So the memory of a network can be computed with pen and paper. For a stack of Linear layers: each keeps its "
        "input; ReLU keeps its output, which is the next layer's input, one tensor for both; GELU keeps its input "
        "besides; cross-entropy keeps the log-probabilities and the targets."
    )
    depths, widths, batches = lesson.pick(full=(1, 2, 5), quick=(1, 3)), (64, 300), (1, 32)
    dtypes = [torch.float32, torch.float16, torch.bfloat16]
    right = tried = 0
    for depth, width, batch_size, activation, dtype in itertools.product(
        depths, widths, batches, NEEDS_ITS_INPUT, dtypes
    ):
        sizes = (100, *[width] * depth, CLASSES)
        kept = measure_kept_bytes(sizes, batch_size, activation, dtype, lesson.device)
        right += kept == predict_kept_bytes(sizes, batch_size, activation, dtype)
        tried += 1
    lesson.check("the formula is right to the byte", right == tried,
                 f"{right} of {tried} networks, {len(NEEDS_ITS_INPUT)} activations, {len(dtypes)} dtypes")  # fmt: skip
    sizes = (784, 1024, 1024, 1024, CLASSES)
    parameters = 4 * sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(sizes))
    table = []
    for batch_size in (1, 64, 1024):
        for activation in ("nn.ReLU()", "nn.GELU()"):
            predicted = predict_kept_bytes(sizes, batch_size, activation, torch.float32)
            kept = measure_kept_bytes(sizes, batch_size, activation, torch.float32, lesson.device)
            lesson.record("kept for backward", kept, "B", batch_size=batch_size, activation=activation)
            table.append({"batch": batch_size, "activation": activation, "predicted, bytes": predicted,
                          "kept, bytes": kept, "times the parameters": kept / parameters})  # fmt: skip
    lesson.table(table)
    one, large = (predict_kept_bytes(sizes, batch_size, "nn.ReLU()", torch.float32) for batch_size in (1, 1024))
    gelu = predict_kept_bytes(sizes, 1, "nn.GELU()", torch.float32)
    lesson.check("what is kept grows with the batch, the parameters do not", large == 1024 * (one - 4) + 4,
                 f"{bytes_text(one)} for each sample")  # fmt: skip
    lesson.shows(
        f"with ReLU this network keeps {bytes_text(one)} for each sample and has {bytes_text(parameters)} of parameters, "
        f"so from {math.ceil(parameters / one):,} samples on the activations outweigh the parameters. That is why the "
        "batch size is the first thing to halve when memory runs out. GELU keeps "
        f"{significant(gelu / one)} times as much."
    )


def what_is_kept(result: torch.Tensor) -> str:
    """The tensors that the operations behind `result` keep, by autograd's own names, in the order of computation."""
    kept: list[str] = []
    node = result.grad_fn
    while node is not None:
        names = [
            name for name in dir(node) if name.startswith("_saved_") and isinstance(getattr(node, name), torch.Tensor)
        ]
        kept = [name.removeprefix("_saved_") for name in names] + kept
        node = node.next_functions[0][0] if node.next_functions else None  # these chains have no branches
    return ", ".join(kept) or "–"


def measure_kept_bytes(sizes: Sequence[int], batch_size: int, activation: str, dtype: torch.dtype,
                       device: torch.device) -> int:  # fmt: skip
    model, (x, targets) = make_mlp(sizes, activation, dtype, device), make_batch(sizes, batch_size, dtype, device)
    return bytes_kept_for_backward(lambda: F.cross_entropy(model(x), targets), model.parameters())


# Keeping less


def half_dtype(device: torch.device) -> torch.dtype:
    """The 16-bit type that every GPU of this kind computes in."""
    if device.type == "mps" or (device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)):
        return torch.float16
    return torch.bfloat16


def kept_and_peak(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor],
                  context: Callable[[], AbstractContextManager[Any]]) -> tuple[int, int]:  # fmt: skip
    """Bytes kept for backward after the loss was computed within `context()`, and the most that was alive on the way.

    Both count what the forward pass makes, and so not the batch.
    """
    x, targets = batch

    def forward() -> torch.Tensor:
        with context():
            return F.cross_entropy(model(x), targets)

    own = [*model.parameters(), x, targets]
    kept = bytes_kept_for_backward(forward, own)
    with Ledger(x.device) as ledger:
        forward()
    return kept, ledger.peak_bytes


def show_keeping_less(lesson: Lesson) -> None:
    lesson.section(
        "Keeping less",
        "Five ways to make the same network keep less: another activation, the activation in place, 16 bits for some "
        "numbers or for all, and no_grad where nobody will call backward(). The peak is the most that was alive at one "
        "time during the forward pass. Parameters and batch are not counted; they are the same each time.",
    )
    width, depth = lesson.pick(full=1024, cpu=256, quick=128), 6
    batch_size = lesson.pick(full=8192, cpu=2048, quick=512)
    sizes, half = (width,) * (depth + 1) + (CLASSES,), half_dtype(lesson.device)
    hidden_bytes = batch_size * width * 4
    models = {name: make_mlp(sizes, name, torch.float32, lesson.device) for name in
              ("nn.GELU()", "nn.ReLU()", "nn.ReLU(inplace=True)")}  # fmt: skip
    batch = make_batch(sizes, batch_size, torch.float32, lesson.device)
    relu, half_name = models["nn.ReLU()"], str(half).removeprefix("torch.")

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(lesson.device.type, half)

    x, targets = batch
    ways: dict[str, tuple[int, int]] = {
        "GELU": kept_and_peak(models["nn.GELU()"], batch, nullcontext),
        "ReLU": kept_and_peak(relu, batch, nullcontext),
        "ReLU in place": kept_and_peak(models["nn.ReLU(inplace=True)"], batch, nullcontext),
        f"ReLU, autocast to {half_name}": kept_and_peak(relu, batch, autocast),
        f"ReLU, all in {half_name}": kept_and_peak(make_mlp(sizes, "nn.ReLU()", half, lesson.device), (x.to(half), targets),
                                              nullcontext),
        "ReLU, no_grad": kept_and_peak(relu, batch, torch.no_grad),
    }  # fmt: skip
    for way, (kept, peak) in ways.items():
        lesson.record("kept for backward", kept, "B", way=way)
        lesson.record("forward peak", peak, "B", way=way)
    lesson.table([{"way": way, "kept for backward": bytes_text(kept), "peak of the forward pass": bytes_text(peak)}
                  for way, (kept, peak) in ways.items()])  # fmt: skip
    gelu, plain, in_place, cast, halved, nothing = ways.values()
    lesson.check("GELU keeps one tensor more for each hidden layer", gelu[0] - plain[0] == depth * hidden_bytes,
                 f"{depth} x {bytes_text(hidden_bytes)}")  # fmt: skip
    lesson.check(
        "in-place ReLU keeps exactly as much", in_place[0] == plain[0], "its output was kept before, its input not"
    )
    layers_bytes = depth * hidden_bytes
    lesson.check("ReLU needs a second tensor while it runs, in place none",
                 plain[1] - layers_bytes == hidden_bytes > in_place[1] - layers_bytes,
                 f"peak {bytes_text(plain[1])}, in place {bytes_text(in_place[1])}")  # fmt: skip
    one, other = (gradient_of_first_layer(models[name], relu, batch) for name in ("nn.ReLU()", "nn.ReLU(inplace=True)"))
    difference, scale = (one - other).abs().max().item(), one.abs().max().item()
    lesson.check("and changes no gradient", difference <= 1e-6 * scale, f"largest difference {difference:.1e}")
    lesson.check(
        "numbers of 2 bytes halve what is kept", 2 * halved[0] == plain[0], f"{halved[0]:,} of {plain[0]:,} bytes"
    )
    # x and the targets are the batch's, not the forward pass's; the 2-byte copy of x is.
    expected = predict_kept_bytes_under_autocast(sizes, batch_size) - targets.nbytes
    if lesson.device.type != "mps":  # its Linear is one operation, which keeps all of its inputs
        lesson.check("autocast keeps 2-byte copies of the weights as well", cast[0] == expected,
                     f"{bytes_text(cast[0] - halved[0])} more than all in {half_name}")  # fmt: skip
    lesson.check("under no_grad nothing is kept", nothing[0] == 0, "0 bytes")
    lesson.check("and the peak is two activations, however deep the network", nothing[1] == 2 * hidden_bytes,
                 f"{bytes_text(nothing[1])} instead of {bytes_text(plain[1])}")  # fmt: skip
    small = [predict_kept_bytes_under_autocast(sizes, 1), predict_kept_bytes(sizes, 1, "nn.ReLU()", torch.float32)]
    lesson.shows(
        f"autocast keeps {percent(cast[0] / plain[0])} of what float32 keeps here; with a batch of 1 it would keep "
        f"{significant(small[0] / small[1])} times as much, for the copies of the weights do not shrink with the batch. "
        "Evaluation without no_grad costs as much as training; it is the most common waste, and the easiest to end."
    )


def gradient_of_first_layer(model: nn.Module, parameters_of: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]
                            ) -> torch.Tensor:  # fmt: skip
    """Computed by `model` with the parameters of the other, so that two kinds of activation can be compared."""
    model.load_state_dict(parameters_of.state_dict())
    x, targets = batch
    first = next(model.parameters())
    return torch.autograd.grad(F.cross_entropy(model(x), targets), first)[0]


# Checkpointing


class Block(nn.Module):
    """Linear and ReLU; counts how often it is computed."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, device=device)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return F.relu(self.linear(x))


def run(blocks: Sequence[nn.Module], x: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        x = block(x)
    return x


def run_checkpointed(blocks: Sequence[nn.Module], segments: int, x: torch.Tensor) -> torch.Tensor:
    """Of each segment only the input is kept; backward() computes the rest again, one segment at a time."""
    length = math.ceil(len(blocks) / segments)
    for start in range(0, len(blocks), length):
        x = checkpoint(run, blocks[start : start + length], x, use_reentrant=False)
    return x


def predict_activations(blocks: int, segments: int) -> tuple[int, int]:
    """How many activations of one block are alive after forward, and at most in backward, with equal segments.

    Forward keeps the input of each segment. In backward the last segment comes first: its outputs, computed again,
    and one gradient join all those inputs. Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
    """
    return segments, segments + blocks // segments + 1


def activations_alive(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[int, int]:
    """The same, measured in bytes; x is among them, what has another size than x is not."""
    with Ledger(x.device, only_size=x.nbytes) as ledger:
        copy = x.clone()
        loss = forward(copy).sum()
        kept = ledger.live_bytes
        loss.backward()
    return kept, ledger.peak_bytes


def show_checkpointing(lesson: Lesson) -> None:
    n = lesson.pick(full=64, quick=16)
    lesson.section(
        "Keeping nothing: checkpointing",
        f"A chain of {n} blocks keeps {n} activations, and its input. Checkpointing cuts it into segments, keeps the "
        "input of each, and computes the inside again when backward() arrives there. Few segments are long ones, and "
        "while one is computed again all of it is alive; many segments have many inputs. In between lies the best "
        "number.",
    )
    width, batch_size = lesson.pick(full=1024, cpu=128, quick=32), lesson.pick(full=4096, cpu=1024, quick=64)
    blocks = [Block(width, lesson.device) for _ in range(n)]
    chain = nn.ModuleList(blocks)
    x = torch.randn(batch_size, width, device=lesson.device)
    counts = [2**power for power in range(n.bit_length())]
    ways: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {0: lambda start: run(blocks, start)}
    ways |= {
        segments: lambda start, segments=segments: run_checkpointed(blocks, segments, start) for segments in counts
    }
    measured, calls, gradients = {}, {}, {}
    for segments, way in ways.items():
        chain.zero_grad()
        before = sum(block.calls for block in blocks)
        measured[segments] = activations_alive(way, x)
        calls[segments] = sum(block.calls for block in blocks) - before
        gradients[segments] = torch.cat(
            [parameter.grad.flatten() for parameter in chain.parameters() if parameter.grad is not None]
        )
    table = []
    for segments, (kept, peak) in measured.items():
        lesson.record("checkpointing peak", peak, "B", segments=segments, blocks=n)
        table.append({"segments": segments or "none", "kept after forward": kept // x.nbytes,
                      "alive at most": peak // x.nbytes, "at most, bytes": bytes_text(peak),
                      "blocks computed": calls[segments]})  # fmt: skip
    peaks = {segments: measured[segments][1] for segments in counts}
    best = min(peaks, key=peaks.__getitem__)
    lesson.table(table, best=list(measured).index(best))
    right = sum(measured[k] == tuple(x.nbytes * count for count in predict_activations(n, k)) for k in counts)
    lesson.check("the peak is k + n/k + 1 activations for k segments", right == len(counts),
                 f"to the byte for {right} of {len(counts)} numbers of segments")  # fmt: skip
    lesson.check("it is lowest at k = √n", best == math.isqrt(n),
                 f"{peaks[best] // x.nbytes} activations at k = {best}, {measured[0][1] // x.nbytes} without")  # fmt: skip
    lesson.check("each block is computed exactly twice", all(calls[k] == 2 * n for k in counts) and calls[0] == n,
                 f"{2 * n} instead of {n} calls")  # fmt: skip
    error = max((gradients[k] - gradients[0]).abs().max().item() for k in counts)
    scale = gradients[0].abs().max().item()
    lesson.check("the gradients are the same", error <= 1e-5 * scale, f"largest difference {error:.1e} of {scale:.1e}")
    seed = lesson.options.seed
    drawn = [dropout_gradient(x, seed, uses_checkpoint) for uses_checkpoint in (False, True)]
    lesson.check("dropout draws the same mask again", torch.equal(*drawn), "the generator's state is kept and put back")
    timings = compare({"kept": lambda: ways[0](x).sum().backward(), "checkpointed": lambda: ways[best](x).sum().backward()},
                      lesson.device, rounds=5, budget_s=lesson.pick(full=2.0, quick=0.3))  # fmt: skip
    slower = ratio(timings["checkpointed"], timings["kept"])
    for name, timing in timings.items():
        lesson.record("forward and backward", timing.median_s * 1e3, "ms", timing, way=name)

    def draw(axis: Any) -> None:
        axis.plot(counts, [peaks[k] / x.nbytes for k in counts], label="alive at most, in backward")
        axis.plot(counts, [measured[k][0] / x.nbytes for k in counts], label="kept after forward")
        axis.axhline(measured[0][1] / x.nbytes, color="black", linewidth=1, label="without checkpointing")
        axis.annotate(
            f"√{n} = {best}", (best, peaks[best] / x.nbytes), (0, 10), textcoords="offset points", ha="center"
        )
        axis.set(xscale="log", xticks=counts, xticklabels=counts, ylim=(0, None), xlabel="segments",
                 ylabel=f"activations of {bytes_text(x.nbytes)}", title=f"Checkpointing a chain of {n} blocks")  # fmt: skip
        axis.minorticks_off()
        axis.legend()

    lesson.figure("checkpointing", draw)
    because = ", for in blocks this small most of the time is Python's" if slower.median > 1.7 else ""
    lesson.shows(
        f"{best} segments hold {significant(measured[0][1] / peaks[best])} times less, and every block is computed once "
        "more. Backward costs about twice a forward pass, so a step grows from 3 parts to 4: expect 1.33 times the "
        f"time. Measured here: {slower}{because}. In PyTorch: checkpoint(block, x, use_reentrant=False) around each block of a "
        "transformer is the usual choice. The picture is checkpointing.png."
    )


def dropout_gradient(x: torch.Tensor, seed: int, uses_checkpoint: bool) -> torch.Tensor:
    """Zero where the mask was, which shows whether the backward pass has used the mask of the forward pass."""
    start = x[:1].clone().requires_grad_()
    torch.manual_seed(seed)
    result = checkpoint(F.dropout, start, use_reentrant=False) if uses_checkpoint else F.dropout(start)
    return torch.autograd.grad(result.sum(), start)[0]
