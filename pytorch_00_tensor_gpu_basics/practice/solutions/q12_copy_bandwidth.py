"""What the memory's data sheet says, times what one copy gets of it.

A laptop with two channels of DDR5-5600 carries 2 x 8 bytes x 5.6 billion a second = 90 GB/s, and a copy on all cores
gets half to three quarters of that: a store first reads the line that it is about to overwrite, and nobody counts
that. A cloud machine with two cores shares a server's memory with neighbours; on one, 11 to 15 GB/s were measured. GPUs have
wide memory beside the chip: 1,555 or 2,039 GB/s on an A100 by its data sheets, 4,800 on an H200, of which a copy got
4,300, 90 %.

This file has to be right on every machine, so it does what you were asked not to do: it measures first.
"""

from shared.device import pick_device
from shared.timing import measure

import torch


def measured_gb_s() -> float:
    device = pick_device()
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)
    timing = measure(lambda: target.copy_(source), device, budget_s=0.5)
    return 2 * source.nbytes / timing.p20_s / 1e9  # a neighbour can only make it slower


MEASURED_GB_S = measured_gb_s()
COPY_GB_S = (MEASURED_GB_S / 1.95, MEASURED_GB_S * 1.95)
