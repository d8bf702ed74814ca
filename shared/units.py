"""Numbers as people read them: three significant digits, units named, GB for 10^9 and GiB for 2^30."""

import math


def significant(value: float | int | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits, thousands separated; an int in full; None as "unknown"."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "unknown"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # first, so that 9.996 reads "10.0" and 999.6 "1,000"
    if abs(rounded) >= 1e15:  # nobody counts that many digits
        return f"{value:.{digits - 1}e}"
    if abs(rounded) >= 10**digits:
        return f"{value:,.0f}"
    places = digits - 1 - math.floor(math.log10(abs(rounded)))
    if places > digits + 3:  # below 0.0001: an exponent is easier to read than a row of zeros
        return f"{value:.{digits - 1}e}"
    return f"{rounded:.{places}f}"


def percent(share: float | None) -> str:
    """0.314 as "31 %"; small shares keep two digits, an unknown share says so."""
    if share is None or not math.isfinite(share):
        return "unknown"
    return f"{significant(100 * share, 2)} %" if 0 < abs(share) < 0.095 else f"{100 * share:.0f} %"


def _scaled(value: float, steps: list[tuple[float, str]]) -> str:
    for size, unit in steps:
        if abs(value) >= 0.9995 * size:  # so that 999.9 of one unit is not printed as "1,000" of it
            return f"{significant(value / size)} {unit}"
    size, unit = steps[-1]
    return f"{significant(value / size)} {unit}"


def seconds_text(seconds: float) -> str:
    """0.0000091 as "9.10 µs"."""
    return _scaled(seconds, [(60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")])


def bytes_text(count: float) -> str:
    """4096 as "4 KiB": a size in memory, powers of two, whole numbers without a fraction."""
    for size, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= size:
            return f"{count // size:,.0f} {unit}" if count % size == 0 else f"{significant(count / size)} {unit}"
    return f"{count:,.0f} B"


def rate_text(per_second: float, unit: str) -> str:
    """12.3e12, "FLOP/s" as "12.3 TFLOP/s"; 1.7e9, "B/s" as "1.70 GB/s"."""
    return _scaled(
        per_second,
        [(10.0**exponent, prefix + unit) for exponent, prefix in ((12, "T"), (9, "G"), (6, "M"), (0, ""))],
    )
