"""Keep the answers on the device, join them there, and read one.

`if tensor` calls bool(tensor), and bool() has to wait until the device has computed everything before it. One flag for
each gradient stays a tensor; stacked they are a few hundred bytes, and one all() joins them. The short ways are traps: a
norm of finite numbers can be infinite itself (1e30 squared is more than float32 holds), and so can their sum. One large
cat() of all gradients needs as much memory again as the model. torch.amp.GradScaler goes one step further with
torch._amp_foreach_non_finite_check_and_unscale_: it reads each number once, for the division and for the test, and writes
what it finds into one number on the device.
"""

from collections.abc import Sequence

import torch


def unscale(gradients: Sequence[torch.Tensor], scale: float) -> bool:
    torch._foreach_div_(gradients, scale)
    return bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all())
