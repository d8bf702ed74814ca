"""What a forward pass leaves behind.

Before you train an MLP you know its parameters to the byte. What decides whether it fits is often something else: the
tensors that autograd keeps between forward and backward. They too follow from a few numbers.
"""

from collections.abc import Sequence

import torch


def bytes_kept(
    batch_size: int,
    widths: Sequence[int],
    activation: str,
    dtype: torch.dtype,
    is_trained: Sequence[bool],
) -> int:
    """Bytes of the tensors that autograd keeps for backward once the MLP has computed its output.

    The model maps (batch_size, widths[0]) to (batch_size, widths[-1]), weights and batch in `dtype`:

        Linear(widths[0], widths[1]), activation, Linear(widths[1], widths[2]), activation, …, Linear

    with no activation after the last Linear. activation is "relu", "tanh", "sigmoid", "gelu" or "silu", each a module
    of torch.nn as it comes. is_trained says for each Linear whether its weight and bias require gradients; one that
    does not is frozen. The batch never requires gradients. Parameters are not counted, they are there anyway, and a
    tensor that two operations keep is there only once. Predict it: no model is run, and no tensor is made.

    Example: batch_size 32, widths (784, 256, 10), "relu", float32, both trained: backward needs the batch and the
    output of ReLU, which the second Linear takes in:

        bytes_kept(32, (784, 256, 10), "relu", torch.float32, (True, True)) == 32 * (784 + 256) * 4

    To see what a model keeps (shapes, parameters among them; what two operations keep is shown twice):

        with torch.autograd.graph.saved_tensors_hooks(lambda x: print(tuple(x.shape)) or x, lambda x: x):
            model(batch)
    """
    # TODO
    raise NotImplementedError
