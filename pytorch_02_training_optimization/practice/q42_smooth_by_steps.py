"""Build a smoothing that a change of the logging interval does not change.

TensorBoard's slider counts points: the run that logs every step and the run that logs every tenth get different curves
from the same losses. Count steps instead.
"""


def smooth(steps: list[int], values: list[float], half_life: float) -> list[float]:
    """One smoothed value for each point: the weighted mean of it and all points before it.

    steps: growing, of any distance. A point that is `half_life` steps old weighs half as much as the present one, one of
    twice that age a quarter, and so on. A value that is NaN or infinite is returned as it is, in its place, and has no
    weight in any other. The arguments are not changed. About as many operations as there are points.

    Example: smooth([0, 10, 30], [1.0, 4.0, 4.0], half_life=10) is [1.0, 3.0, 3.727...]: at step 10 the weights are 1/2
    and 1, at step 30 they are 1/8, 1/4 and 1.
    """
    # TODO: which two sums do you have to carry from point to point, and what happens to them in between?
    raise NotImplementedError
