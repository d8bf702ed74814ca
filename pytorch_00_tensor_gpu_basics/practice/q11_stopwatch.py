"""A stopwatch that is too good to be true.

It reports that a product of two 8192 x 8192 matrices takes 12 µs on a GPU, 90 PFLOP/s, more than any chip ever made.
The clock is right. What it is asked is not.
"""

import time
from collections.abc import Callable


def seconds_per_call(
    function: Callable[[], object],
    synchronize: Callable[[], object],
    calls: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one call of `function`, averaged over `calls` calls in a row.

    function: starts work on a device and may return before the work is done; its first call also compiles and
        allocates, which is not to be counted
    synchronize: waits until the device has done all work given to it, such as torch.cuda.synchronize
    clock: the time in seconds; tests give another clock and another device, so use only these

    The device may still be busy with somebody else's work when the stopwatch is called; that does not count either.

    Example: seconds_per_call(lambda: a @ b, torch.cuda.synchronize)
    """
    # TODO: three things are missing.
    start = clock()
    for _ in range(calls):
        function()
    elapsed_s = clock() - start
    return elapsed_s / calls
