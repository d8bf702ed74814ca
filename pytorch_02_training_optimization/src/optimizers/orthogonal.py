"""Chapters of optimizer_comparison: what Muon does to a matrix, and which parameters are none of its business."""

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_02_training_optimization.src.letters.rows import load_letters
from pytorch_02_training_optimization.src.optimizers.letters import scores, start_weights
from pytorch_02_training_optimization.src.optimizers.muon import COEFFICIENTS, Muon, orthogonalize
from pytorch_02_training_optimization.src.optimizers.rules import Adam
from shared.dispatch import Watcher, name_of
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.timing import measure
from shared.units import percent, significant

import torch
import torch.nn.functional as F


def letters_gradient(seed: int) -> torch.Tensor:
    """The gradient (64, 256) of the letter reader's first matrix at its start, float64 on the CPU."""
    letters = load_letters(256)
    parameters = start_weights(seed, 1, 1, torch.device("cpu"))
    logits = scores(parameters, letters.x.unsqueeze(0))
    gradient = torch.autograd.grad(F.cross_entropy(logits[0], letters.y), parameters[0])[0]
    return gradient[0].double()


def polynomial(s: torch.Tensor, steps: int) -> torch.Tensor:
    """What Newton–Schulz makes of singular values `s`, without any matrix."""
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return s


def orthogonal_exactly(matrix: torch.Tensor) -> torch.Tensor:
    """U Vᵀ from the singular value decomposition: what Newton–Schulz approaches."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.flatten() @ b.flatten() / (a.norm() * b.norm())).item()


def show_orthogonal(lesson: Lesson) -> None:
    lesson.section(
        "Muon: a step made orthogonal",
        "The gradient of a matrix is dominated by a few directions: some singular values are large, most are tiny, and "
        "SGD and Adam move mostly along the large ones. Muon keeps the directions U and V of G = U S V' and makes every "
        "singular value about 1. Five Newton-Schulz steps do that with products alone. Singular values of a real "
        "gradient, the letter reader's first matrix:",
    )
    gradient = letters_gradient(lesson.options.seed)
    before = torch.linalg.svdvals(gradient / gradient.norm())
    table, after = [], before
    for steps in (0, 1, 3, 5):
        after = torch.linalg.svdvals(orthogonalize(gradient[None], steps)[0])
        table.append({"Newton-Schulz steps": steps, "largest": after.max().item(), "median": after.median().item(),
                      "smallest": after.min().item(),
                      "between 0.65 and 1.25": f"{int(((after > 0.65) & (after < 1.25)).sum())} of {len(after)}"})  # fmt: skip
    lesson.table(table)
    predicted = polynomial(before, 5).sort(descending=True).values
    off = (predicted - after).abs().max().item()
    lesson.check("the products change singular values alone, by a polynomial", off < 1e-9, f"predicted to {off:.0e}")
    settled = polynomial(torch.linspace(0.005, 1, 10_000, dtype=torch.float64), 5)
    lesson.check("5 steps bring any from 0.005 to 1 between 0.65 and 1.25", settled.min() > 0.65 and settled.max() < 1.25,
                 f"10,000 tried: {settled.min():.2f} to {settled.max():.2f}")  # fmt: skip
    exact, rough = orthogonal_exactly(gradient), orthogonalize(gradient[None])[0]
    like, unlike = cosine(rough, exact), cosine(gradient, exact)
    lesson.check("the result points to the orthogonal matrix", like > 0.9 and like > unlike,
                 f"cosine {like:.3f}, the gradient itself {unlike:.3f}")  # fmt: skip
    scale = (orthogonalize(1000 * gradient[None])[0] - rough).abs().max().item()
    lesson.check("the gradient's size is gone", scale < 1e-9, f"1000 times the gradient: {scale:.0e} apart")
    lesson.figure("newton_schulz", lambda curve, values: draw_newton_schulz(curve, values, before), columns=2)
    lesson.shows(
        f"one direction held {percent((before[0] ** 2).item())} of this gradient's square; after Muon it holds "
        f"{percent((after.max() ** 2 / (after**2).sum()).item())}, and {len(after)} directions learn at nearly one pace. "
        "The coefficients overshoot and never settle at 1: they were chosen to lift small values quickly, because 0.7 or 1.2 "
        "serves as well as 1."
    )


def draw_newton_schulz(curve: Any, values: Any, before: torch.Tensor) -> None:
    s = torch.logspace(-3, 0, 500, dtype=torch.float64)
    for steps, style in ((1, ":"), (3, "--"), (5, "-")):
        curve.plot(s, polynomial(s, steps), style, marker="", label=f"{steps} step{'s' if steps > 1 else ''}")
    curve.axhspan(0.65, 1.25, color="#b0b0b0", alpha=0.35)
    curve.set(xscale="log", xlabel="singular value before (norm of the matrix = 1)", ylabel="after", ylim=(0, 1.3),
              title="The polynomial, repeated")  # fmt: skip
    curve.legend(fontsize=9, loc="upper left")
    number = torch.arange(1, len(before) + 1)
    values.plot(number, before, "o", markersize=3.5, linestyle="", label="the gradient, norm 1")
    values.plot(number, polynomial(before, 5), "x", markersize=4.5, linestyle="", label="after 5 steps")
    values.set(yscale="log", xlabel="number of the singular value", ylabel="singular value",
               title="A letter reader's gradient")  # fmt: skip
    values.legend(fontsize=9)


def products_of(rows: int, columns: int, steps: int = 5) -> int:
    """Multiplications and additions of Newton–Schulz for one matrix: per step x xᵀ, its square, and that times x."""
    short, long = min(rows, columns), max(rows, columns)
    return steps * (2 * short * short * long + 2 * short**3 + 2 * short * short * long)


class ProductCounter(Watcher):
    """Adds up the operations of all batched products inside a `with` block."""

    operations = 0

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        if name_of(operation).startswith(("bmm", "baddbmm")):
            *_, left, right = (arg for arg in args if isinstance(arg, torch.Tensor))
            self.operations += 2 * left.numel() * right.shape[-1]


def count_products(shape: tuple[int, int]) -> int:
    """The same as `products_of`, from what orthogonalize really multiplies."""
    with ProductCounter() as counter:
        orthogonalize(torch.ones(1, *shape))
    return counter.operations


def share_of_step(rows: int, columns: int, samples: int) -> float:
    """Newton–Schulz against forward and backward through the same matrix, 6 operations per weight and sample."""
    return products_of(rows, columns) / (6 * rows * columns * samples)


def show_precision(lesson: Lesson) -> None:
    lesson.section(
        "What Muon costs, and in which number format",
        "An orthogonal step is five times three products of matrices, for every matrix at every step, whatever the batch "
        "size. A training step takes 6 operations per weight and sample (a token is one), so the larger the batch, the "
        "less it matters. "
        "torch.optim.Muon always computes in bfloat16, which a GPU multiplies many times faster than float32 and many "
        "CPUs more slowly. muon.py takes float32 wherever there is no CUDA, unless ns_dtype "
        "says otherwise.",
    )
    lesson.table(
        [{"matrix": f"{rows} x {columns}", "Newton-Schulz (GFLOP)": products_of(rows, columns) / 1e9,
          **{f"share of a step of {samples:,}": percent(share_of_step(rows, columns, samples))
             for samples in (4096, 524_288)}}
         for rows, columns in ((64, 256), (768, 768), (768, 3072), (4096, 4096))]
    )  # fmt: skip
    n = lesson.pick(full=1024, cpu=256, quick=128)
    generator = torch.Generator().manual_seed(lesson.options.seed)
    matrix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    right = orthogonalize(matrix[None])[0]
    errors, times = {}, {}
    on_device = matrix.float().to(lesson.device)[None]
    for dtype in (torch.float32, torch.bfloat16):
        found = orthogonalize(on_device, dtype=dtype)[0].cpu().double()
        errors[dtype] = ((found - right).norm() / right.norm()).item()
        timing = measure(
            lambda: orthogonalize(on_device, dtype=dtype), lesson.device, budget_s=lesson.pick(full=0.3, quick=0.05)
        )
        name = str(dtype).removeprefix("torch.")
        times[dtype] = lesson.record("orthogonalize", timing.median_s * 1e3, "ms", timing, n=n, dtype=name)
    lesson.table([{"dtype": str(dtype).removeprefix("torch."), f"time for {n} x {n} (ms)": times[dtype],
                   "of float32's": f"{times[dtype] / times[torch.float32]:.2f}", "error against float64": f"{errors[dtype]:.0e}"}
                  for dtype in errors])  # fmt: skip
    shapes = (64, 64), (64, 256), (256, 64)
    counted = {shape: count_products(shape) for shape in shapes}
    lesson.check("the formula counts what is multiplied", all(counted[shape] == products_of(*shape) for shape in shapes),
                 f"{counted[64, 256]:,} operations for 64 x 256, and for 256 x 64")  # fmt: skip
    lesson.check(
        "for a square of n the share is 5 n / samples",
        all(share_of_step(k, k, 4096) == 5 * k / 4096 for k in (64, 768, 4096)),
        "three squares, exactly",
    )
    lesson.check("bfloat16 costs accuracy, within Muon's own tolerance",
                 errors[torch.float32] < 1e-4 and 1e-3 < errors[torch.bfloat16] < 0.1,
                 f"{percent(errors[torch.bfloat16])} off; the values 0.7 to 1.2 are 30 % off by design")  # fmt: skip
    slower = times[torch.bfloat16] / times[torch.float32]
    verdict = (
        "about the same"
        if 0.85 < slower < 1.15
        else f"{significant(max(slower, 1 / slower), 2)} times as {'long' if slower > 1 else 'fast'}"
    )
    lesson.shows(
        f"on this {lesson.device.type} float32 takes {significant(times[torch.float32])} ms and bfloat16 "
        f"{significant(times[torch.bfloat16])} ms, {verdict}. An error of {percent(errors[torch.bfloat16])} does not "
        "hurt a step whose length is a guess anyway, so let ns_dtype be what your device multiplies faster."
    )


def show_hidden_only(lesson: Lesson) -> None:
    lesson.section(
        "Muon for hidden matrices only",
        "Muon belongs on matrices that map a vector to a vector. A bias has no singular directions. An embedding is a "
        "table: each row belongs to one token and is looked up alone. Orthogonal steps tie the rows together: with d "
        "columns only d directions exist, and all tokens of a batch share them. How far one token's row of 64 moves, "
        "with the same gradient, as other tokens join the batch:",
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    vocabulary, width = lesson.pick(full=4096, cpu=1024, quick=1024), 64
    gradient = torch.randn(vocabulary, width, generator=generator)
    muon_rows, adam_rows = {}, {}
    for tokens in (1, 16, 64, 256, 1024):
        table = torch.zeros_like(gradient)
        table[:tokens] = gradient[:tokens]
        muon_rows[tokens] = orthogonalize(table[None])[0, 0].norm().item()
        moved = torch.zeros_like(table)
        moved.grad = table
        Adam([moved], lr=1.0).step()
        adam_rows[tokens] = moved[0].norm().item()
    lesson.table([{"tokens in the batch": tokens, "Muon: this row moves (lr)": muon_rows[tokens],
                   "Adam's first step: it moves (lr)": adam_rows[tokens]} for tokens in muon_rows])  # fmt: skip
    lesson.check("Adam: a token's step is its own affair", len(set(adam_rows.values())) == 1,
                 f"{adam_rows[1]:.3g} lr each time, which is sqrt({width})")  # fmt: skip
    shrinks = muon_rows[64] / muon_rows[1024]
    lesson.check("Muon: 16 times the tokens, about a quarter of the step", 2.5 < shrinks < 6,
                 f"{shrinks:.1f} times shorter from 64 to 1024 tokens")  # fmt: skip
    bias = torch.randn(1, 64, generator=generator)
    same = cosine(orthogonalize(bias[None])[0], bias)
    lesson.check("a bias is only rescaled, its direction stays", same > 0.99999, f"cosine {same:.6f}")
    message = complaint(lambda: Muon([torch.zeros(64, requires_grad=True)]))
    lesson.check("so muon.py refuses it, and names the cure", "AdamW" in message, message)
    filters = torch.randn(16, 8, 3, 3, generator=generator)
    steps = [one_step_of_muon(weight) for weight in (filters, filters.flatten(1))]
    lesson.check("a filter is a matrix (out, in x kernel)", torch.equal(steps[0].flatten(1), steps[1]),
                 f"{tuple(filters.shape)} moves as {tuple(steps[1].shape)}, the same bits")  # fmt: skip
    lesson.drawing(
        "hidden = [w for w in model.body.parameters() if w.ndim >= 2]  # filters and matrices\n"
        "others = [w for w in model.parameters() if all(w is not h for h in hidden)]\n"
        'optimizers = [Muon(hidden, lr=3e-3, adjust_lr_fn="match_rms_adamw"),\n'
        "              torch.optim.AdamW(others, lr=3e-3)]"
    )
    lesson.shows(
        f"in a batch of 1024 tokens each row moves {significant(muon_rows[1024])} lr, alone it would move "
        f"{significant(muon_rows[1])}: what a token learns would depend on its company. Embeddings, biases, norms and, by "
        "the field's habit, the output layer therefore go to AdamW; match_rms_adamw scales Muon's step so that both can "
        "share one learning rate."
    )


def one_step_of_muon(weight: torch.Tensor) -> torch.Tensor:
    """How far a weight moves at its first step, when its gradient is the weight itself."""
    parameter = torch.zeros_like(weight, requires_grad=True)
    parameter.grad = weight.clone()
    Muon([parameter], lr=1.0, weight_decay=0.0).step()
    return parameter.detach()
