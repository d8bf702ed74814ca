"""Two ways back.

In a residual network a block adds something to its input instead of replacing it. Every large model today is built so,
and the reason is in the backward pass. You know the deltas of a plain network; here the gradient reaches a layer on two
ways. The forward is there, with everything that it kept. The backward is yours.
"""

from collections.abc import Sequence

import torch

Layer = tuple[torch.Tensor, torch.Tensor]  # weight (outputs, inputs) and bias (outputs,)


def forward(layers: Sequence[Layer], x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What each layer is given, and its sums before ReLU; the last sums are the logits. Nothing to do here."""
    inputs, sums = [x], []
    for number, (weight, bias) in enumerate(layers):
        sums.append(inputs[-1] @ weight.T + bias)
        if number == 0:
            inputs.append(sums[-1].relu())
        elif number < len(layers) - 1:
            inputs.append(inputs[-1] + sums[-1].relu())
    return inputs, sums


def gradients(
    layers: Sequence[Layer], inputs: Sequence[torch.Tensor], sums: Sequence[torch.Tensor], y: torch.Tensor
) -> list[Layer]:
    """For each layer the gradients of the loss in its weight and its bias, without autograd.

    The loss is the mean cross-entropy of the logits sums[-1] (B, K) and the right classes y (B,) int64.
    layers: two or more. The first leads from D numbers to H, the last from H to K, and each block between from H to H:

        inputs[1] = relu(sums[0]),    inputs[i + 1] = inputs[i] + relu(sums[i]) for each block i

    inputs, sums: as forward() returns them, in the dtype of the weights. Nothing that is given is changed.

    Example: one sample and one number everywhere. x = 1, weights 2 and 1, biases 0, the last weight [[1], [0]], y = 1.
    Then the logits are 4 and 0, and the gradients in the three weights are 1.964, 1.964 and [[3.928], [-3.928]].
    """
    # TODO
    raise NotImplementedError
