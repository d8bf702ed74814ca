"""Every layer that the playground knows, by the name that torch.nn gives it."""

from pytorch_01_neural_networks.src.layers import features, rearranging, sequences, windows
from pytorch_01_neural_networks.src.layers.families import Family

# Operations for each number: ReLU compares once; SiLU is x / (1 + exp(-x)).
ACTIVATIONS = {"ReLU": 1, "Tanh": 1, "LeakyReLU": 2, "ReLU6": 2, "Hardtanh": 2, "Softplus": 3, "Sigmoid": 4, "ELU": 4,
               "GELU": 5, "SiLU": 5, "Mish": 5, "Hardswish": 5}  # fmt: skip

LAYERS: dict[str, Family] = {
    "Linear": features.Linear(),
    "Bilinear": features.Bilinear(),
    **{f"Conv{axes}d": windows.Convolution(axes) for axes in (1, 2, 3)},
    **{f"ConvTranspose{axes}d": windows.Transposed(axes) for axes in (1, 2, 3)},
    **{f"{kind}Pool{axes}d": windows.Pooling(axes) for kind in ("Max", "Avg") for axes in (1, 2, 3)},
    **{f"Adaptive{kind}Pool{axes}d": windows.Adaptive(axes) for kind in ("Max", "Avg") for axes in (1, 2, 3)},
    **{f"BatchNorm{axes}d": features.BatchNorm(axes) for axes in (1, 2, 3)},
    **{f"InstanceNorm{axes}d": features.InstanceNorm(axes) for axes in (1, 2, 3)},
    "GroupNorm": features.GroupNorm(),
    "LayerNorm": features.LayerNorm(),
    "RMSNorm": features.RmsNorm(),
    **{name: features.Elementwise(each) for name, each in ACTIVATIONS.items()},
    "PReLU": features.Prelu(),
    "Softmax": features.Softmax(),
    "LogSoftmax": features.Softmax(),
    "Dropout": features.Dropout(),
    "Dropout2d": features.Dropout2d(),
    "Embedding": features.Embedding(),
    "EmbeddingBag": features.EmbeddingBag(),
    "RNN": sequences.Recurrent(gates=1),
    "GRU": sequences.Recurrent(gates=3),
    "LSTM": sequences.Recurrent(gates=4),
    "MultiheadAttention": sequences.Attention(),
    "TransformerEncoderLayer": sequences.Encoder(),
    "Flatten": rearranging.Flatten(),
    "Unflatten": rearranging.Unflatten(),
    "Identity": rearranging.Identity(),
    "Upsample": rearranging.Upsample(),
    "PixelShuffle": rearranging.PixelShuffle(),
    "PixelUnshuffle": rearranging.PixelUnshuffle(),
}
