"""The schedule that most trainings use: up in a line, down along a cosine, exact at both ends.

Write it as a function of the step. It looks like two formulas; the work is in the steps where they meet and end.
"""


def rate_at(step: int, total: int, warmup: int, peak: float, floor: float) -> float:
    """The learning rate with which the optimizer makes step `step`; the first is step 0, the last step total - 1.

    The first `warmup` steps rise in a line, each by peak / warmup: step 0 is made with peak / warmup, and step
    warmup - 1 with the peak. From there half a wave of a cosine falls to `floor`, which is reached at the last step.
    A training that goes on after its last step stays at `floor`.

    total: at least 1; warmup: from 0 to total. With 0, step 0 is made with the peak. With warmup = total there is no
    wave, and the last step is made with the peak.

    Example: 7 steps, 3 of them to warm up, peak 0.3, floor 0.1

        [rate_at(step, 7, 3, 0.3, 0.1) for step in range(8)]

    is 0.1, 0.2, 0.3, 0.2707, 0.2, 0.1293, 0.1 and again 0.1.
    """
    # TODO
    raise NotImplementedError
