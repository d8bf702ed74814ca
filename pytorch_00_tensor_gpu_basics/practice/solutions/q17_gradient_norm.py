"""A square needs twice the range of the number, so convert before squaring, and add up in float32.

float16 ends at 65,504: 256² is already infinite, and 0.0001² is below its smallest number, 6e-8, hence zero.
bfloat16 has float32's range and three significant digits: a sum of 256 no longer notices when 1 is added. Converting
the finished square is too late in both. vector_norm converts while it reads, so no float32 copy of the gradients is
ever stored; and the norm of all norms is the norm of all.
"""

from collections.abc import Sequence

import torch


def gradient_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(norms))
