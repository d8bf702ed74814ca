"""Stay in logarithms: both terms are softplus(z) = log(1 + exp(z)), of -z for a yes and of z for a no.

softplus overflows as it stands, so take the large part out: max(z, 0) + log1p(exp(-|z|)). Now no exponent is above 0, and
log1p keeps what 1 + 2e-9 would round away. One trap is left, and no test of values finds it: at z = 0 both max and the
absolute value have a kink, PyTorch takes slope 0 for each, and a loss whose slope should be 1/2 has none. Write -|z| as a
choice, which has a slope on either side of it, and the sum is right: 0 from relu and 1/2 from the rest. torch.maximum(z, 0)
with abs works as well, since it shares the gradient of a tie. What does not work is to choose between two finished formulas
with torch.where: the branch that is not taken overflows, and its gradient is 0 times infinity, NaN. Test a loss at 0, far
out on both sides and in half precision, and always its gradient too.
"""

import torch


def softplus(z: torch.Tensor) -> torch.Tensor:
    return torch.relu(z) + torch.log1p(torch.exp(torch.where(z > 0, -z, z)))


def bce_with_logits(z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
    return pos_weight * y * softplus(-z) + (1 - y) * softplus(z)
