"""What each number format can hold, where it breaks, which one comes out of an operation, and which to choose.

All of it runs on the CPU: a format means the same on every device.
"""

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from shared.device import memory
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate
from shared.units import significant

import numpy as np
import torch

FLOATS = {
    name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
}
SAME_WIDTH_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
PARAMETERS = 7_000_000_000  # of a language model that people run at home


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def show_number_formats(lesson: Lesson) -> None:
    show_range_and_steps(lesson)
    show_a_tenth(lesson)
    show_where_floats_break(lesson)
    show_whole_numbers(lesson)
    show_promotion(lesson)
    show_choice(lesson)


# Range and steps


def bits_of(value: float, dtype: torch.dtype) -> str:
    """Sign, exponent and fraction of `value` as stored in `dtype`, such as "0 01111 1000000000" for 1.5 in float16."""
    total, fraction = torch.finfo(dtype).bits, -int(math.log2(torch.finfo(dtype).eps))
    pattern = torch.tensor(value, dtype=torch.float64).to(dtype).view(SAME_WIDTH_INTEGER[dtype.itemsize]).item()
    digits = f"{pattern % 2**total:0{total}b}"  # the remainder makes the negative integers of two's complement positive
    return f"{digits[0]} {digits[1:-fraction]} {digits[-fraction:]}"


def spacing(value: float, dtype: torch.dtype) -> float:
    """From `value` > 0 to the next larger number of `dtype`: eps at 1, doubled with each power of two.

    Below the smallest normal number the steps stay as they are; those numbers are called subnormal.
    """
    power_of_two = 2.0 ** (math.frexp(value)[1] - 1)
    return torch.finfo(dtype).eps * max(power_of_two, torch.finfo(dtype).smallest_normal)


def next_above(value: float, dtype: torch.dtype) -> float:
    """The next larger number of `dtype`, found and not computed; float8 has so few that all of them are looked at."""
    if dtype.itemsize == 1:
        every_number = torch.arange(-128, 128, dtype=torch.int8).view(dtype).double()
        return every_number[every_number > value].min().item()
    x = torch.tensor(value, dtype=dtype)
    return torch.nextafter(x, torch.full_like(x, math.inf)).item()


def powers_of_two(dtype: torch.dtype) -> Iterator[float]:
    """All that `dtype` has, from its smallest positive number to the largest."""
    info = torch.finfo(dtype)
    first, last = int(math.log2(info.smallest_normal * info.eps)), math.frexp(info.max)[1] - 1
    return (2.0**exponent for exponent in range(first, last + 1))


def short(value: float) -> str:
    return f"{value:.2e}" if not 1e-3 < abs(value) < 1e6 else significant(value)


def show_range_and_steps(lesson: Lesson) -> None:
    lesson.section(
        "Six formats for numbers with a point",
        "A floating-point number is a sign, a power of two (the exponent) and a fraction. More exponent bits reach "
        "further, more fraction bits make finer steps, and the sum is fixed. On the way from one power of two to the "
        "next the steps are equal; then they double. Precision is relative: large numbers have large gaps.",
    )
    table = []
    for name, dtype in FLOATS.items():
        info = torch.finfo(dtype)
        table.append({"format": name, "bytes": dtype.itemsize, "largest": short(info.max),
                      "smallest > 0": short(info.smallest_normal * info.eps), "step at 1": short(info.eps),
                      "decimal digits": f"{-math.log10(info.eps / 2):.1f}"})  # fmt: skip
    lesson.table(table)
    lesson.text("0.1 in sign, exponent and fraction (float64 has room for 11 and 52 bits):")
    narrow = [name for name in FLOATS if name != "float64"]
    lesson.drawing("\n".join(f"{name:<15}{bits_of(0.1, FLOATS[name])}" for name in narrow))
    for value in (0.1, 3e38):
        heads = [bits_of(value, dtype).split()[:2] for dtype in (torch.float32, torch.bfloat16)]
        lesson.check(f"{value:g}: sign and exponent of float32 and bfloat16 agree", heads[0] == heads[1],
                     " ".join(heads[1]))  # fmt: skip
    points = [(value, dtype) for dtype in FLOATS.values() for value in powers_of_two(dtype)]
    right = sum(next_above(value, dtype) - value == spacing(value, dtype) for value, dtype in points)
    lesson.check("the step is eps x the power of two below the number", right == len(points),
                 f"{right:,} of {len(points):,} gaps in {len(FLOATS)} formats")  # fmt: skip
    lesson.figure("number_spacing", draw_spacing)
    half, brain, single = (torch.finfo(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32))
    lesson.shows(
        f"with 16 bits, float16 has {brain.eps / half.eps:.0f} times finer steps and ends at {half.max:,.0f}; bfloat16 "
        f"reaches {brain.max:.2g}, as float32 does ({single.max:.2g}), with steps {brain.eps / single.eps:,.0f} times "
        "as wide. Gradients need the range more than the digits, which is why training prefers bfloat16. The picture "
        "number_spacing.png has all six."
    )


def draw_spacing(axis: Any) -> None:
    """A line begins at the format's smallest number and ends in a dot at its largest, or leaves the picture."""
    left, right = 2.0**-34, 2.0**24
    for name, dtype in FLOATS.items():
        largest = torch.finfo(dtype).max
        sizes = [*(value for value in powers_of_two(dtype) if left <= value < right), min(largest, right)]
        steps = [spacing(value, dtype) for value in sizes]
        (line,) = axis.plot(sizes, steps, drawstyle="steps-post", marker="", linewidth=1.8)
        style = {"textcoords": "offset points", "va": "center", "color": line.get_color(),
                 "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}}  # fmt: skip
        if largest < right:
            axis.plot(largest, steps[-1], "o", color=line.get_color())
            axis.annotate(f"{largest:,.0f}", (largest, steps[-1]), (8, 0), **style)
            axis.annotate(name, (sizes[0], steps[0]), (-6, 0), ha="right", **style)
        else:
            axis.annotate(f"{name}\nto {largest:.1e}", (right, steps[-1]), (6, 0), annotation_clip=False, **style)
    axis.axhline(0.02, color="black", linewidth=1)
    axis.annotate("above: + 0.01 changes nothing", (left, 0.02), (4, 4), textcoords="offset points", fontsize=9)
    axis.set(xscale="log", yscale="log", xlim=(left, right), ylim=(1e-13, 1e6), xlabel="size of the number",
             ylabel="step to the next larger number", title="How far apart the numbers of each format are")  # fmt: skip


# One tenth


def add(a: float, b: float, dtype: torch.dtype) -> torch.Tensor:
    """a + b as `dtype` has it: both rounded, added, the sum rounded.

    There is no addition in float8: as a GPU does, it is made in a wider format and rounded at the end.
    """
    x, y = (torch.tensor(value, dtype=torch.float64).to(dtype) for value in (a, b))
    return (x.float() + y.float()).to(dtype) if dtype.itemsize == 1 else x + y


def exactly(value: float) -> str:
    """All decimal digits of `value`: a finite number of them, since it is a whole number over a power of two."""
    whole, _, digits = format(Decimal(value), "f").partition(".")
    groups = [digits[i : i + 5] for i in range(0, len(digits), 5)]
    return f"{whole}.{' '.join(groups)}" if digits else whole


def equal_to_the_last_bit(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The mistake: == on computed numbers asks whether two rounding errors happen to be the same."""
    return bool(a == b)


def show_a_tenth(lesson: Lesson) -> None:
    numerator, denominator = torch.tensor(0.1).item().as_integer_ratio()
    lesson.section(
        "0.1 + 0.2",
        "A number in binary is a whole number over a power of two, and one tenth is none. What is stored for 0.1 is a "
        f"neighbour: {numerator:,} / 2^{int(math.log2(denominator))} in float32. Here is the sum of the neighbours of "
        "0.1 and 0.2 in each format, with all its digits. (PyTorch cannot add in float8, so those two are summed in "
        "float32 and then rounded.)",
    )
    sums = {name: add(0.1, 0.2, dtype) for name, dtype in FLOATS.items()}
    wanted = {name: torch.tensor(0.3, dtype=torch.float64).to(dtype) for name, dtype in FLOATS.items()}
    equal = {name: equal_to_the_last_bit(sums[name].double(), wanted[name].double()) for name in FLOATS}
    lesson.items(
        {name: f"{exactly(x.item())}, {'the same as' if equal[name] else 'not'} its 0.3" for name, x in sums.items()}
    )
    lesson.check("0.1 + 0.2 == 0.3 holds in float32 and fails in float64", equal["float32"] and not equal["float64"],
                 f"{sum(equal.values())} of {len(equal)} formats agree")  # fmt: skip
    tiny = torch.ones(1).to(torch.float8_e4m3fn)
    refusal = complaint(lambda: tiny + tiny)
    lesson.check(
        "float8 is for storing: PyTorch refuses to add it", "not implemented" in refusal, refusal.partition(":")[0]
    )
    errors = {name: abs(sums[name].item() - 0.3) / 0.3 / torch.finfo(dtype).eps for name, dtype in FLOATS.items()}
    lesson.check("every sum is within one relative step of 0.3", max(errors.values()) < 1,
                 f"worst {max(errors, key=errors.__getitem__)}: {max(errors.values()):.2f} steps")  # fmt: skip
    lesson.shows(
        "== is true where two roundings happen to meet, and more digits do not help: compare with "
        "torch.isclose or torch.testing.assert_close, which allow for the steps of the format."
    )


# Where floats break


def first_skipped_integer(dtype: torch.dtype) -> int:
    """The smallest whole number above 0 that `dtype` cannot hold; always one more than a power of two."""
    power = 1
    while torch.tensor(power + 1).to(dtype).to(torch.int64).item() == power + 1:
        power *= 2
    return power + 1


def first_amount_that_ignores(addend: float, dtype: torch.dtype) -> float:
    """The smallest amount to which adding `addend` changes nothing; a power of two, since steps double only there."""
    amount = 2.0 ** math.ceil(math.log2(addend))
    while add(amount, addend, dtype).item() != torch.tensor(amount, dtype=torch.float64).to(dtype).item():
        amount *= 2
    return amount


def add_up_one_by_one(values: torch.Tensor) -> float:
    """The mistake: the running total has the format of the values, and stops when it has outgrown them."""
    total = torch.zeros((), dtype=values.dtype)
    for value in values:
        total += value
    return total.item()


def show_where_floats_break(lesson: Lesson) -> None:
    lesson.section(
        "Where each format breaks",
        "A format does not say when it can no longer follow. It skips whole numbers, ignores what is small beside what "
        "it has, and turns what is too large into inf (float8_e4m3fn has no inf: depending on the PyTorch version it "
        "gives its largest number or nan). Read the skipped number as a class label, the amounts as an account.",
    )
    ignores = {name: first_amount_that_ignores(0.01, dtype) for name, dtype in FLOATS.items()}
    table = []
    for name, dtype in FLOATS.items():
        largest = torch.finfo(dtype).max
        table.append({"format": name, "first whole number skipped": first_skipped_integer(dtype),
                      "+ 0.01 is lost from": significant(ignores[name]),
                      "twice the largest": str(add(largest, largest, dtype).item())})  # fmt: skip
    lesson.table(table)
    over, near = (torch.tensor(65504, dtype=torch.float16) + addend for addend in (16, 15))
    lesson.check("float16: 65504 + 16 is inf", over == math.inf, f"{over.item()}; 65504 + 15 is {near.item():,.0f}")
    stored = torch.tensor([2048, 2049, 2050]).half().int().tolist()
    lesson.check("float16 has no 2049", stored == [2048, 2048, 2050], f"2048, 2049, 2050 become {stored}")
    account = torch.tensor(1000.01, dtype=torch.bfloat16).item()
    lesson.check("bfloat16: 1000.01 loses its cent when it is stored", account == 1000, f"{account:,.2f}")
    lesson.text("The same on the way to a sum: 10,000 times 0.01, so 100 is right.")
    totals, table = {}, []
    for name in ("float64", "float32", "float16", "bfloat16"):
        values = torch.full((10_000,), 0.01, dtype=FLOATS[name])
        totals[name] = add_up_one_by_one(values), values.sum().item()
        table.append({"format": name, "one by one": f"{totals[name][0]:.8g}", "values.sum()": f"{totals[name][1]:.8g}"})
    lesson.table(table)
    lesson.check("a narrow running total stops where + 0.01 is lost",
                 all(totals[name][0] == ignores[name] for name in ("float16", "bfloat16")),
                 f"at {totals['float16'][0]:g} and {totals['bfloat16'][0]:g}")  # fmt: skip
    lesson.check("values.sum() is right to 1 % in all four", all(abs(total - 100) < 1 for _, total in totals.values()),
                 f"worst {max(abs(total - 100) for _, total in totals.values()):.2g} away")  # fmt: skip
    lesson.shows(
        f"an account in bfloat16 that grows by cents is stuck at {ignores['bfloat16']:g}, in float32 at "
        f"{ignores['float32']:,.0f}. sum() keeps its running total in float32 and adds in blocks, so it survives. "
        "Keep your own totals, counts, averages and optimizer states in float32 or wider."
    )


# Whole numbers


def average_in_uint8(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The mistake: two bright pixels add up to more than 255 before they are halved."""
    return (a + b) // 2


def average_in_int16(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Right: widen first, narrow at the end."""
    return ((a.to(torch.int16) + b.to(torch.int16)) // 2).to(torch.uint8)


def show_whole_numbers(lesson: Lesson) -> None:
    lesson.section(
        "Whole numbers, yes and no, and complex",
        "Integers are exact and have no inf. A result that is too large wraps around, as a mileage counter does, "
        "without an error or a warning. Images arrive as uint8, so this happens to pixels.",
    )
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    uses = ("pixels", "quantised weights", "audio samples", "token numbers", "indices, labels")
    ranges = [(dtype_name(dtype), dtype.itemsize, use, f"{torch.iinfo(dtype).min:,} to {torch.iinfo(dtype).max:,}")
              for dtype, use in zip(integers, uses, strict=True)]  # fmt: skip
    ranges.append(("bool", torch.bool.itemsize, "masks", "False or True"))
    ranges.append(("complex64", torch.complex64.itemsize, "spectra", "two float32"))
    lesson.table([dict(zip(("type", "bytes", "used for", "holds"), row, strict=True)) for row in ranges])
    bright = torch.tensor([200, 100], dtype=torch.uint8)
    lesson.check("uint8: 200 + 100 is 44", bright[0] + bright[1] == 44, f"{bright[0] + bright[1]} = 300 - 256")
    signed = torch.tensor(100, dtype=torch.int8)
    lesson.check("int8: 100 + 100 is -56", signed + signed == -56, f"{signed + signed} = 200 - 256")
    wrong, mean = (average(bright[0], bright[1]).item() for average in (average_in_uint8, average_in_int16))
    lesson.check("the average of two uint8 pixels needs a wider type", (wrong, mean) == (22, 150),
                 f"200 and 100: {wrong} in uint8, {mean} by way of int16")  # fmt: skip
    cut = torch.tensor([-2.7, 2.7])
    lesson.check("a cast to integers cuts towards zero, floor does not", cut.int().tolist() == [-2, 2]
                 and cut.floor().tolist() == [-3, 2], f"-2.7: {cut.int()[0]} and {cut.floor()[0]:g}")  # fmt: skip
    wave = torch.tensor([3 + 4j])
    lesson.check("a complex number is two floats side by side", torch.view_as_real(wave).tolist() == [[3, 4]],
                 f"3+4j: {torch.view_as_real(wave).tolist()[0]}, length {wave.abs().item():g}")  # fmt: skip
    lesson.shows(
        f"{wrong} in place of {mean} is a dark spot in a bright image, and nothing reports it. Convert before you "
        "calculate. A float outside the range of an integer type has no defined result at all: 300.0 to uint8 gave "
        f"{torch.tensor(300.0).to(torch.uint8)} here and may give something else on another device; clamp first."
    )


# Which type comes out

PROMOTIONS = {
    "float32 + float64": "the wider of two floats",
    "float16 + bfloat16": "neither holds the other, so the next that holds both",
    "uint8 + int8": "the same for integers",
    "int64 + float16": "any float wins over any integer, whatever its width",
    "int64 + 1.5": "a Python float turns integers into the default, float32",
    "float16 + 1.5": "but never widens a float",
    "uint8 + 300": "nor an integer: 1 + 300 wraps around",
    "float16 + scalar": "neither does a tensor without axes, here a float64",
    "float32 + complex64": "complex wins over real",
    "bool + bool": "yes + yes is yes: a logical or",
    "int64 / int64": "/ always leaves the integers, // stays",
}


def show_promotion(lesson: Lesson) -> None:
    lesson.section(
        "Which type comes out",
        "When two types meet, PyTorch picks one by rule, silently. A wrong guess costs digits, or doubles the memory "
        "of all that follows. Each name below is a tensor of two ones of that type; scalar is a float64 without axes.",
    )
    names = ["uint8", "int8", "int64", "float16", "bfloat16", "float32", "float64", "complex64", "bool"]
    operands: dict[str, Any] = {name: torch.ones(2, dtype=getattr(torch, name)) for name in names}
    operands["scalar"] = torch.tensor(1.0, dtype=torch.float64)
    results = {expression: evaluate(expression, **operands) for expression in PROMOTIONS}
    lesson.table([{"expression": expression, "gives": dtype_name(results[expression].dtype),
                   "value": str(results[expression][0].item()), "rule": rule}
                  for expression, rule in PROMOTIONS.items()])  # fmt: skip
    sums = [expression for expression in PROMOTIONS if " + " in expression]
    sides = {expression: [evaluate(side, **operands) for side in expression.split(" + ")] for expression in sums}
    foretold = [expression for expression in sums if torch.result_type(*sides[expression]) == results[expression].dtype]
    lesson.check("torch.result_type foretells the type of a sum", foretold == sums, f"{len(foretold)} of {len(sums)}")
    lesson.check("a scalar does not widen float16, a vector does", results["float16 + scalar"].dtype == torch.float16
                 and (operands["float16"] + operands["float64"]).dtype == torch.float64,
                 "float16 and float64")  # fmt: skip
    ours, theirs = torch.promote_types(torch.int64, torch.float32), np.result_type(np.int64, np.float32)
    lesson.check("NumPy decides differently: int64 with float32", (ours, theirs) == (torch.float32, np.float64),
                 f"{dtype_name(ours)} in PyTorch, {theirs} in NumPy")  # fmt: skip
    lost = 2**24 + 1 - (torch.tensor([2**24 + 1]) + 0.0).int().item()
    lesson.shows(
        f"int64 + 0.0 is float32, which skips whole numbers above {2**24:,}: an index of {2**24 + 1:,} came back "
        f"{lost} smaller. Keep indices away from floats, and look at x.dtype where memory doubles for no reason."
    )


# Which type to choose

CHOICES = {
    "float64": "checking gradients, solving equations",
    "float32": "the default; weights that are being trained",
    "bfloat16": "matrix products in training, on GPUs from 2020 on",
    "float16": "inference; training only with loss scaling",
    "float8_e4m3fn": "weights and activations, on GPUs from 2022 on",
    "float8_e5m2": "gradients next to it: more range, fewer digits",
    "int8": "inference of a quantised model",
}


def show_choice(lesson: Lesson) -> None:
    lesson.section(
        "Which type to choose",
        "The bytes decide what fits, and often the speed, since much of a model's time goes into moving weights. Here "
        f"are {PARAMETERS / 1e9:.0f} billion parameters in each type. The tensors lie on the device meta, which keeps "
        "their shape and type but no numbers.",
    )
    sizes = {name: torch.empty(PARAMETERS, dtype=getattr(torch, name), device="meta").nbytes for name in CHOICES}
    room = memory(lesson.device).total_bytes
    fits = {name: "unknown" if room is None else "yes" if size < room else "no" for name, size in sizes.items()}
    lesson.table(
        [
            {"type": name, "GB": size / 1e9, "GiB": size / 2**30, "fits here": fits[name], "good for": CHOICES[name]}
            for name, size in sizes.items()
        ]
    )
    halves = [sizes[name] / 1e9 for name in ("float32", "bfloat16", "int8")]
    lesson.check("half the bits, half the memory", halves[0] == 2 * halves[1] == 4 * halves[2],
                 " : ".join(f"{gigabytes:.0f}" for gigabytes in halves) + " GB")  # fmt: skip
    training = 4 * sizes["float32"]
    lesson.shows(
        f"in bfloat16 the weights take {sizes['bfloat16'] / 2**30:.1f} GiB. To train them with Adam in float32 takes "
        f"four such sets (weights, gradients, two running averages): {training / 2**30:.0f} GiB before the first "
        "activation. float8 and int8 halve the memory once more, at the price of a scale that you have to keep."
    )
