"""Several tensors in one contraction: the order decides its cost, counted, measured and searched; and attention."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pytorch_00_tensor_gpu_basics.src.benchmarks.card import in_unit, raised_to
from pytorch_00_tensor_gpu_basics.src.mathematics.observed import flops_seen, observe
from pytorch_00_tensor_gpu_basics.src.mathematics.orders import (
    Network,
    Order,
    all_orders,
    best_order,
    chain_orders,
    contract,
    count_flops,
    largest_intermediate,
    left_to_right,
    numpys_order,
    written,
)
from shared.drawing import beside, grid
from shared.hardware import matmul_peak
from shared.lesson import Lesson
from shared.timing import Timing, compare, ratio
from shared.units import bytes_text, percent, seconds_text

import torch
import torch.nn.functional as F


def show_contractions(lesson: Lesson) -> None:
    show_two_orders(lesson)
    show_best_order(lesson)
    show_bilinear(lesson)
    show_attention(lesson)


# Two orders


def show_two_orders(lesson: Lesson) -> None:
    hidden, rank, tokens = lesson.pick(full=(4096, 16, 512), cpu=(1024, 8, 128), quick=(512, 4, 64))
    lesson.section(
        "Three matrices, two orders",
        "A product of three gives the same whichever pair comes first, but it does not cost the same. Fine-tuning with "
        f"LoRA adds to a large weight the product of two thin ones: here A is ({hidden:,}, {rank}), B ({rank}, "
        f"{hidden:,}), and {tokens} tokens x come as ({tokens}, {hidden:,}). Are they multiplied with A and then with "
        "B, or with AB?",
    )
    network = Network.of("th,hr,ro->to", t=tokens, h=hidden, r=rank, o=hidden)
    orders: list[Order] = [((0, 1), 2), (0, (1, 2))]
    names = ("x", "A", "B")
    tensors = network.tensors(lesson.device)
    timings = compare({written(order, names): partial(contract, network, order, tensors) for order in orders},
                      lesson.device, budget_s=lesson.pick(full=0.8, quick=0.2))  # fmt: skip
    flops = [count_flops(network, order) for order in orders]
    lesson.table(rate_rows(lesson, network, orders, names, timings))
    x, a, b = tensors
    formula = [2 * tokens * hidden * rank * 2, 2 * hidden * hidden * rank + 2 * tokens * hidden * hidden]
    lesson.check("counted: 4thr, and 2h²r + 2th²", flops == formula, f"{flops[0]:,} and {flops[1]:,}")
    seen = [flops_seen(observe(lambda: contract(network, order, tensors))) for order in orders]
    lesson.check("PyTorch does as many as we counted", seen == flops, "by the shapes of its products")
    far = (contract(network, orders[0], tensors) - contract(network, orders[1], tensors)).abs().max().item()
    lesson.check("both orders give the same numbers", far < 1e-2, f"largest difference {far:.1e}, numbers of about 1")
    lesson.check("a @ b @ c goes from left to right", flops_seen(observe(lambda: x @ a @ b)) == flops[0]
                 and flops_seen(observe(lambda: x @ (a @ b))) == flops[1], "brackets change it")  # fmt: skip
    gain = ratio(*(timings[written(order, names)] for order in reversed(orders)))
    if enough_work(lesson):
        calm = calm_ratio(*(timings[written(order, names)] for order in reversed(orders)))
        lesson.check("fewer operations took less time", calm > 1.2, f"x (A B) took {calm:.1f}x, the best of each")
    counted = flops[1] / flops[0]
    lesson.shows(
        f"{counted:.0f} times the operations for a pair of brackets, and {bytes_text(4 * hidden * hidden)} "
        f"for AB instead of {bytes_text(4 * tokens * rank)} for xA. In time it was {gain.median:.1f}x"
        + (", less than the count, since thin products wait for memory and for the call. " if gain.median < counted / 1.5
           else ", much as counted. ")
        + "Multiply so that thin axes stay thin; merge AB into the large weight only when training is over."
    )  # fmt: skip


def enough_work(lesson: Lesson) -> bool:
    """Whether times say anything about operations: the tiny products of a quick run on a GPU are calls and no work."""
    return lesson.device.type == "cpu" or not lesson.quick


def calm_ratio(slower: Timing, faster: Timing) -> float:
    """Of the shortest samples: what the orders cost while no other program held the cores."""
    return slower.best_s / faster.best_s


def rate_rows(lesson: Lesson, network: Network, orders: Sequence[Order], names: Sequence[str],
              timings: Mapping[str, Timing]) -> list[dict[str, object]]:  # fmt: skip
    """A row for each order: operations, largest intermediate, time, and the rate beside the device's limit."""
    divisor, unit = in_unit(lesson, "FLOP/s")
    peak = matmul_peak(lesson.device, torch.float32)
    rates = {order: count_flops(network, order) / timings[written(order, names)].median_s for order in orders}
    peak = raised_to(peak, max(rates.values()), "the best product of this table")
    rows: list[dict[str, object]] = []
    for order, rate in rates.items():
        name = written(order, names)
        lesson.record("contraction", rate / divisor, unit, timings[name], peak, order=name, equation=network.equation)
        rows.append({"order": name, "operations": count_flops(network, order),
                     "intermediate": bytes_text(4 * largest_intermediate(network, order)),
                     "time": seconds_text(timings[name].median_s), unit: rate / divisor,
                     "share of the limit": percent(rate / peak.value if peak else None)})  # fmt: skip
    return rows


# All orders


def show_best_order(lesson: Lesson) -> None:
    hidden, rank, columns = lesson.pick(full=(4096, 32, 256), cpu=(1024, 16, 64), quick=(256, 8, 16))
    network = Network.of("or,rh,hs,si,ib->ob", o=hidden, r=rank, h=hidden, s=rank, i=hidden, b=columns)
    names = ("B", "A", "D", "C", "x")
    orders = list(chain_orders(0, 4))
    lesson.section(
        "The best of all orders",
        f"Two such thin layers in a row, on {columns} columns: B A D C x, with shapes ({hidden:,}, {rank}), ({rank}, "
        f"{hidden:,}) twice over and ({hidden:,}, {columns}). Five matrices can be bracketed in {len(orders)} ways. "
        "The cheapest need not be found by trying: the best way for a group of tensors stays the best whatever comes "
        "after, so a table of all groups gives it.",
    )
    tensors = network.tensors(lesson.device)
    best, plain = best_order(network), left_to_right(5)
    functions = {written(order, names): partial(contract, network, order, tensors) for order in orders}
    timings = compare(functions, lesson.device, rounds=5, budget_s=lesson.pick(full=2.0, cpu=3.0, quick=0.4))
    ranked = sorted(orders, key=lambda order: count_flops(network, order))
    shown = [order for i, order in enumerate(ranked) if i in (0, 1, len(ranked) - 1) or order == plain]
    lesson.text(f"Of the {len(orders)}: the two cheapest, left to right, and the dearest.")
    lesson.table(rate_rows(lesson, network, shown, names, timings), best=0)
    flops = {order: count_flops(network, order) for order in orders}
    every = [count_flops(network, order) for order in all_orders(range(5))]
    lesson.check("our table of groups finds the cheapest of all orders", flops[best] == min(every),
                 f"{written(best, names)}, of {len(every)}")  # fmt: skip
    lesson.check("NumPy's einsum_path finds one as cheap", count_flops(network, numpys_order(network)) == flops[best],
                 f"{flops[best]:,} operations")  # fmt: skip
    results = [contract(network, order, tensors) for order in (best, plain, ranked[-1])]
    far = max((result - results[0]).abs().max().item() for result in results)
    lesson.check("cheapest, plain and dearest give the same", far < 1e-2, f"largest difference {far:.1e}")
    show_what_einsum_does(lesson, network, tensors, flops[best], flops[plain])
    dearest = ranked[-1]
    gain = ratio(timings[written(dearest, names)], timings[written(best, names)])
    if enough_work(lesson):
        calm = calm_ratio(timings[written(dearest, names)], timings[written(best, names)])
        lesson.check("the dearest took at least twice as long", calm > 2, f"{calm:.0f}x, the best of each")
    points = {written(order, names): (flops[order], timings[written(order, names)].median_s) for order in orders}
    peak = matmul_peak(lesson.device, torch.float32)
    peak = raised_to(peak, max(count / seconds for count, seconds in points.values()), "the best of these orders")
    marks = {
        written(best, names): "cheapest",
        written(plain, names): "left to right",
        written(dearest, names): "dearest",
    }
    lesson.figure("contraction_orders", lambda axis: draw_orders(axis, points, marks, peak.value if peak else None))
    lesson.shows(
        f"between the cheapest and the dearest lie {flops[dearest] / flops[best]:.0f}x in operations and "
        f"{gain.median:.0f}x in time; left to right takes {flops[plain] / flops[best]:.0f}x the operations. For ten "
        f"tensors there are {math.prod(range(1, 18, 2)):,} orders, and our table needs about 3^10 = {3**10:,} steps. "
        "Quantum simulations and probabilistic models live on this search."
    )


def show_what_einsum_does(lesson: Lesson, network: Network, tensors: Sequence[torch.Tensor], best_flops: int,
                          plain_flops: int) -> None:  # fmt: skip
    """torch.einsum looks for a good order only where the package opt_einsum is installed."""
    searching = torch.backends.opt_einsum
    seen = flops_seen(observe(lambda: torch.einsum(network.equation, *tensors)))
    if not searching.is_available():
        lesson.check(
            "torch.einsum goes from left to right", seen == plain_flops, f"{seen:,} operations, counted in its calls"
        )
        lesson.skip("What torch.einsum does with opt_einsum: it then looks for the cheapest order by itself.",
                    "the package: pip install opt_einsum")  # fmt: skip
        return
    with searching.flags(enabled=False):
        without = flops_seen(observe(lambda: torch.einsum(network.equation, *tensors)))
    lesson.check("opt_einsum makes torch.einsum take a cheapest order", seen == best_flops, f"{seen:,} operations")
    lesson.check("without it torch.einsum goes from left to right", without == plain_flops, f"{without:,} operations")


def draw_orders(
    axis: Any, points: Mapping[str, tuple[int, float]], marks: Mapping[str, str], peak: float | None
) -> None:
    """A dot for each order; the line is what the device's limit would allow."""
    counts = [flops for flops, _ in points.values()]
    axis.plot(counts, [seconds * 1e3 for _, seconds in points.values()], "o", linestyle="none")
    cheap, dear = min(counts), max(counts)
    for name, (flops, seconds) in points.items():
        if name in marks:
            at_end = flops > math.sqrt(cheap * dear)
            # Above all dots, which lie anywhere; a line leads down to the one that is meant.
            lead = {"arrowstyle": "-", "linewidth": 0.8, "shrinkB": 4, "relpos": (float(at_end), 0)}
            axis.annotate(f"{marks[name]}\n{name}", (flops, seconds * 1e3), (flops, 1.02), fontsize=10, va="bottom",
                          ha="right" if at_end else "left", textcoords=axis.get_xaxis_transform(), arrowprops=lead)  # fmt: skip
    if peak:
        ends = [cheap, dear]
        axis.plot(ends, [flops / peak * 1e3 for flops in ends], color="black", marker="", linestyle="-", linewidth=1,
                  label="at the limit of this device")  # fmt: skip
        axis.legend(loc="lower right")
    axis.margins(y=0.15)
    axis.set(xscale="log", yscale="log", xlabel="operations of all steps", ylabel="time (ms)")
    axis.set_title(f"B A D C x in {len(points)} orders: the same numbers", pad=44)


# Three tensors at once


def bilinear_all_at_once(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mistake: everything broadcast together, (B, O, I, J) numbers, and then summed. (B, I), (O, I, J), (B, J)."""
    return (x[:, None, :, None] * weight * y[:, None, None, :]).sum((2, 3))


def show_bilinear(lesson: Lesson) -> None:
    batch, out, left, right = lesson.pick(full=(128, 64, 128, 96), cpu=(64, 32, 64, 48), quick=(16, 8, 32, 24))
    lesson.section(
        "Three tensors at once: the bilinear form",
        "out[b, o] = sum over i and j of x[b, i] W[o, i, j] y[b, j] scores how two vectors fit, in knowledge graphs and "
        "in attention with a weight between. No single product does it. Broadcast everything together and it runs, "
        "through a tensor with all four axes; einsum takes two at a time.",
    )
    network = Network.of("bi,oij,bj->bo", b=batch, o=out, i=left, j=right)
    tensors = network.tensors(lesson.device)
    x, weight, y = tensors
    names = ("x", "W", "y")
    ways: dict[str, Any] = {f"einsum {written(order, names)}": partial(contract, network, order, tensors)
                            for order in all_orders(range(3))}  # fmt: skip
    ways["F.bilinear"] = lambda: F.bilinear(x, y, weight)
    ways["all at once"] = lambda: bilinear_all_at_once(x, weight, y)
    timings = compare(ways, lesson.device, rounds=5, budget_s=lesson.pick(full=1.2, quick=0.2))
    largest = {way: max(op.new_bytes for op in observe(function)) for way, function in ways.items()}
    results = {way: function() for way, function in ways.items()}
    for way, timing in timings.items():
        lesson.record("bilinear", timing.median_s * 1e3, "ms", timing, way=way)
    lesson.table(
        [
            {
                "way": way,
                "largest new tensor": bytes_text(largest[way]) if way != "F.bilinear" else "not seen: one call",
                "time": seconds_text(timings[way].median_s),
            }
            for way in ways
        ],
        best=min(range(len(ways)), key=lambda i: list(timings.values())[i].median_s),
    )
    lesson.text(
        "In each order all four axes meet in one step, so the operations are nearly the same. What is left to choose is "
        "the size of the tensor in between: (b, o, i), (b, o, j) or (b, i, j)."
    )
    counts = [count_flops(network, order) for order in all_orders(range(3))]
    lesson.check("five ways, one result", all(torch.allclose(result, results["F.bilinear"], atol=1e-2)
                 for result in results.values()), f"shape {tuple(results['F.bilinear'].shape)}")  # fmt: skip
    four = 4 * batch * out * left * right
    lesson.check("all at once needs all four axes in memory", largest["all at once"] == four, f"{four:,} bytes")
    three = four // min(batch, out, left, right)
    pairwise = max(count for way, count in largest.items() if way.startswith("einsum"))
    lesson.check("two at a time, three axes are enough", pairwise <= three, f"{pairwise:,} bytes at most")
    lesson.check("the three orders cost about the same", max(counts) < 1.1 * min(counts),
                 f"{min(counts):,} to {max(counts):,} operations")  # fmt: skip
    smallest = min(largest_intermediate(network, order) for order in all_orders(range(3)))
    lesson.shows(
        f"{bytes_text(four)} or {bytes_text(4 * smallest)} on the way to the same {tuple(results['F.bilinear'].shape)} "
        "numbers. With every product of three or more, ask two questions: which order has the fewest operations, and "
        "what is the largest tensor on the way."
    )


# Attention


def attention_in_two_lines(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1) with heads: (B, T, H, D) each, and so is the result.

    `mask` is true where query t may look at key s; shape (T, S), or anything that broadcasts to (B, H, T, S).
    """
    weights = (torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, v)


def show_attention(lesson: Lesson) -> None:
    lesson.section(
        "Attention in two lines",
        "Attention is two contractions with a softmax between: every query with every key over the features d, then "
        "the weights with the values over the keys s. Legend: b batch, t query, s key, h head, d feature. Heads and "
        "batch are letters that come through; nothing has to be transposed, reshaped or put back.",
    )
    lesson.drawing(
        'weights = einsum("bthd,bshd->bhts", q, k) / sqrt(d)    then the mask and the softmax over s\n'
        'out     = einsum("bhts,bshd->bthd", weights, v)'
    )
    small = torch.tensor([[0.0, 1, 0, 2], [1, 0, 1, 0], [0, 2, 0, 1], [1, 1, 0, 0]])
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    weights = small.masked_fill(~causal, -math.inf).softmax(-1)
    lesson.drawing(
        beside(
            grid(small, "scores (t, s), masked in brackets", ~causal),
            "→",
            grid(weights, "weights: rows sum to 1", ~causal),
        )
    )
    batch, heads, tokens, features = lesson.pick(full=(8, 16, 1024, 64), cpu=(2, 8, 256, 64), quick=(2, 4, 64, 32))
    q, k, v = (torch.randn(batch, tokens, heads, features, device=lesson.device) for _ in range(3))
    mask = torch.ones(tokens, tokens, dtype=torch.bool, device=lesson.device).tril()
    ours = attention_in_two_lines(q, k, v, mask)

    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))  # what the library wants: (B, H, T, D)

    def library() -> torch.Tensor:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True).transpose(1, 2)

    far = (ours - library()).abs().max().item()
    lesson.check("equal to F.scaled_dot_product_attention, causal", far < 2e-3, f"largest difference {far:.1e}")
    padding = torch.rand(batch, 1, 1, tokens, device=lesson.device) > 0.3
    padding[..., 0] = True  # a row without any key would be 0 / 0
    theirs = F.scaled_dot_product_attention(queries, keys, values, attn_mask=padding).transpose(1, 2)
    far = (attention_in_two_lines(q, k, v, padding) - theirs).abs().max().item()
    lesson.check("and with a padding mask for each sequence", far < 2e-3, f"largest difference {far:.1e}")
    changed = k.clone()
    changed[:, -1] += 10.0
    same = torch.equal(attention_in_two_lines(q, changed, v, mask)[:, :-1], ours[:, :-1])
    lesson.check(
        "a later key changes no earlier output", same, f"key {tokens - 1} changed, outputs 0 to {tokens - 2} equal"
    )
    flops = 4 * batch * heads * tokens**2 * features
    seen = observe(lambda: attention_in_two_lines(q, k, v, mask))
    lesson.check("it takes 4 b h t² d operations", flops_seen(seen) == flops, f"{flops:,}")
    scores = 4 * batch * heads * tokens**2
    lesson.check("the scores are the largest tensor", max(op.new_bytes for op in seen) == scores,
                 f"{scores:,} bytes; q has {q.nbytes:,}")  # fmt: skip
    timings = compare({"two einsums": lambda: attention_in_two_lines(q, k, v, mask), "library": library}, lesson.device,
                      rounds=5, budget_s=lesson.pick(full=1.0, quick=0.2))  # fmt: skip
    divisor, unit = in_unit(lesson, "FLOP/s")
    peak = matmul_peak(lesson.device, torch.float32)
    rates = {way: flops / timing.median_s for way, timing in timings.items()}
    peak = raised_to(peak, max(rates.values()), "attention")
    for way, rate in rates.items():
        lesson.record("attention", rate / divisor, unit, timings[way], peak, way=way, tokens=tokens, heads=heads)
    lesson.table(
        [
            {"way": way, "time": seconds_text(timings[way].median_s), unit: rate / divisor,
             "share of the limit": percent(rate / peak.value if peak else None)}
            for way, rate in rates.items()
        ]
    )  # fmt: skip
    gain = ratio(timings["two einsums"], timings["library"])
    lesson.shows(
        f"two lines, right to {far:.0e}, and the library took {percent(1 / gain.median)} of their time. It leaves "
        "out half of the work where the mask is causal, and never stores the scores, which grow with t²: at 100,000 "
        f"tokens they would take {bytes_text(4 * 1e10)} for each head. How it does that is the subject of project 04."
    )
