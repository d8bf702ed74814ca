"""One knob turned: what does it cost?

Three layers, all with bias=False, and what goes in:

    conv         Conv2d(16, 16, 3, padding=1)     images of shape (B, 16, 8, 8)
    lstm         LSTM(16, 16)                     B texts of 10 vectors, 16 numbers each
    attention    MultiheadAttention(16, 2)        B texts of 32 vectors, 16 numbers each; it is query, key and value

Every line below changes one thing, and B stays. By which factor does it multiply the layer's parameters, and by which its
FLOPs, which are here the multiplications and additions of its convolutions and matrix products? Say it before you count.
"""

# TODO: for each line a pair of factors (parameters, FLOPs), such as (4, 1) or (1 / 3, 2 / 3); three digits are enough.
FACTORS = {
    "conv: images of 16 x 16": None,
    "conv: kernel_size=5, padding=2": None,
    "conv: dilation=2, padding=2": None,
    "conv: stride=2": None,
    "conv: groups=16": None,
    "conv: groups=16, and behind it Conv2d(16, 16, 1)": None,
    "conv: ConvTranspose2d(16, 16, 4, stride=2, padding=1) in its place": None,
    "lstm: hidden_size=32": None,
    "lstm: num_layers=2, bidirectional=True": None,
    "attention: num_heads=4": None,
    "attention: texts of 64 vectors": None,
    "attention: embed_dim=32, and 32 numbers in each vector": None,
}
