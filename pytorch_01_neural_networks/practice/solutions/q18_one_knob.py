"""Parameters count the kinds of windows, FLOPs count each use of a weight: 2 for every place where it is multiplied.

So a larger image, a stride or a longer text leave the parameters alone and change the number of places. Dilation and
the number of heads change neither: they only say which numbers meet. A stride of 2 halves both axes, which leaves a quarter
of the places. A transposed convolution multiplies at each place of its *input*, so its stride is free, although the output
is four times as large. Depthwise (groups=16) leaves 9 weights of 16 * 9 to each output channel, and the 1x1 convolution
that has to mix the channels afterwards then costs more than it. An LSTM's gate has H rows for C + H numbers; with H doubled
these grow from 16 * 32 to 32 * 48. A second layer behind two directions gets 32 numbers, not 16: 2 + 3 = 5 times in all. In
attention four projections take 8 T C² operations and the pairs 4 T² C, equal parts at T = 2 C as here. Twice the length
doubles one part and quadruples the other, twice the width does the same the other way round.
"""

FACTORS = {
    "conv: images of 16 x 16": (1, 4),
    "conv: kernel_size=5, padding=2": (25 / 9, 25 / 9),
    "conv: dilation=2, padding=2": (1, 1),
    "conv: stride=2": (1, 1 / 4),
    "conv: groups=16": (1 / 16, 1 / 16),
    "conv: groups=16, and behind it Conv2d(16, 16, 1)": (25 / 144, 25 / 144),
    "conv: ConvTranspose2d(16, 16, 4, stride=2, padding=1) in its place": (16 / 9, 16 / 9),
    "lstm: hidden_size=32": (3, 3),
    "lstm: num_layers=2, bidirectional=True": (5, 5),
    "attention: num_heads=4": (1, 1),
    "attention: texts of 64 vectors": (1, 3),
    "attention: embed_dim=32, and 32 numbers in each vector": (4, 3),
}
