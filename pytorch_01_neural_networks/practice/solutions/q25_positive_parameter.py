"""Two functions that exist because of such formulas: logaddexp(a, b) is log(e^a + e^b), expm1(a) is e^a - 1.

Both avoid forming the number that destroys the rest: e^100 is inf in float32, 1 + e^-50 is 1, and e^0.00000001 - 1 is 0.
For the inverse, log(e^y - 1) is taken apart as y + log(1 - e^-y), whose exponential never overflows, and 1 - e^-y is
-expm1(-y), right to the last digit for the smallest y. Repairs that are tempting: torch.where(x > 20, x, log1p(exp(x)))
has the right values and a gradient of nan at 100, since backward computes the branch that was not taken, too, and 0 x nan is
nan. relu(x) + log1p(exp(-|x|)) is right everywhere but in its gradient at exactly 0, where relu and abs both have 0 for a
slope, and 0 is where most parameters start. F.softplus itself returns x from 20 on, which is right in float32 and in
float64 right to ten digits of sixteen; set its threshold to 40.
"""

import torch


def softplus(x: torch.Tensor) -> torch.Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def inverse_softplus(y: torch.Tensor) -> torch.Tensor:
    return y + torch.log(-torch.expm1(-y))
