"""Whose milliseconds are these?

A trace of a training lists some ten thousand spans, each with its begin and its end. Added up by name they come to five
times the length of the step: "optimizer" holds "AdamW.step", which holds "aten::mul_", and each of the three counts the
same microseconds. What you want to sort by is the time that a span spent itself.
"""

from collections.abc import Sequence


def self_times(spans: Sequence[tuple[str, int, int, int]]) -> dict[str, int]:
    """Nanoseconds by name that belong to no span inside: what a profiler's table calls self time.

    spans: (name, thread, start_ns, end_ns), in any order, start_ns < end_ns; perhaps none. Two spans of one thread lie one
        in the other or beside each other, where one may end in the very nanosecond in which the next begins. Of two that
        begin and end together, the one that stands first in `spans` is the outer one. Spans of different threads have
        nothing to do with each other. A name may occur often, also inside itself.
    Returns an int for each name, also where it is 0. `spans` stays as it is.

    Example: for ("step", 0, 0, 100), ("forward", 0, 10, 60), ("mm", 0, 20, 50) the answer is
    {"step": 50, "forward": 20, "mm": 30}, which adds up to the 100 ns of the step.
    """
    # TODO
    raise NotImplementedError
