"""The equations of the LSTM do not care how a gate is computed from x and h, only that it is.

Where linear() stood there is conv2d with half a kernel of zeros around the picture, and the four gates are blocks of
channels: i, f, g, o in PyTorch, while other libraries stack them otherwise and no shape tells. c' = f c + i g is the
road on which information lasts, and h' = o tanh(c') is what others see; the new c is used for it, not the old. A pixel
hears of its neighbours at once and of those further off with every step, since h is convolved again: after t pictures from
t * (k // 2) pixels away, so k decides how fast a shower may move. The weights do not know how large the picture is.
"""

import torch
from torch.nn.functional import conv2d

State = tuple[torch.Tensor, torch.Tensor]


def conv_lstm_step(
    x: torch.Tensor,
    state: State | None,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_ih: torch.Tensor | None = None,
    bias_hh: torch.Tensor | None = None,
) -> State:
    if state is None:
        batch, _, height, width = x.shape
        h = c = x.new_zeros(batch, weight_hh.shape[1], height, width)
    else:
        h, c = state
    from_input = conv2d(x, weight_ih, bias_ih, padding="same")
    from_state = conv2d(h, weight_hh, bias_hh, padding="same")
    i, f, g, o = (from_input + from_state).chunk(4, dim=1)  # (B, H, height, width) each
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c
