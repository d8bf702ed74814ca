"""Without a bias a layer's output is proportional to its weight, so one measurement says what to divide by.

Draw with any scale, look at h on the batch, divide the weight by the root of the mean of h²: whatever made the scale wrong,
the fans, the borders, the pixels or bad luck, is in that number. It has to be done from the first layer on, each with what
the layers before it send once they are right; measured all at once, each scale would contain those of the layers before.
Directions still have to be random: constant or positive weights can be given a mean of 1 as well, and say the same thing for
every input. An orthogonal draw is the best of random ones, since it also keeps single directions alive in depth. What is
measured holds for this batch and this moment. A normalisation layer measures in every step, which is why networks that have
one behind each layer forgive a careless start.
"""

from collections.abc import Sequence

import torch
from torch import nn


@torch.no_grad()
def initialise(layers: Sequence[nn.Module], x: torch.Tensor) -> None:
    for layer in layers:
        if any(parameter.ndim > 1 for parameter in layer.parameters()):
            nn.init.orthogonal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            layer.weight /= layer(x).square().mean().sqrt()
        x = layer(x)
