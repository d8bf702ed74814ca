"""A clock measures what lies between its two readings, and a GPU works behind Python's back.

The wait before the second reading puts the work between them, not only the queueing. The wait before the first keeps
out whatever was queued earlier, the warm-up call included. And the warm-up call itself takes what happens only once:
loading libraries, choosing a kernel, allocating. Waiting after every call would be another question, the time until
one result is there; a training loop does not wait, so its calls are timed in a row.
"""

import time
from collections.abc import Callable


def seconds_per_call(
    function: Callable[[], object],
    synchronize: Callable[[], object],
    calls: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    function()
    synchronize()
    start = clock()
    for _ in range(calls):
        function()
    synchronize()
    elapsed_s = clock() - start
    return elapsed_s / calls
