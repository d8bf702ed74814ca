"""Which samples did the alarm come from?

A network of convolutions and poolings listens to a machine, and its output at place 40 raises an alarm. Which samples of the
recording can have caused it, and which can not, whatever the weights are? The same question decides how much of a signal
has to be kept for the next forecast, and whether a detector can see a whole face. The answer is called the receptive field.
"""

from collections.abc import Sequence

Layer = tuple[
    int, int, int, int
]  # kernel_size, stride, padding and dilation, as torch.nn.Conv1d and MaxPool1d take them


def seen_by(layers: Sequence[Layer], length: int, output: int) -> list[int]:
    """The samples that the network's output at place `output` may depend on: their places, ascending, each once.

    layers: in the order in which a recording passes through them. Padding is at both ends, and is no sample.
    length: how many samples the recording has, 1 or more. Samples and outputs are counted from 0.

    Raises IndexError if the network has no such output: `output` is below 0 or too large, or a window of some layer is longer
    than all that this layer gets, padding included.

    Examples:
        seen_by([(3, 1, 0, 1), (2, 2, 0, 1)], 7, 1) == [2, 3, 4, 5]    # 7 samples, then 5 numbers, then 2 outputs
        seen_by([(3, 1, 1, 2)], 6, 0) == [1, 3]
    """
    # TODO
    raise NotImplementedError
