"""Muon was to train faster. It trains worse than AdamW did.

Muon makes every step of a matrix orthogonal, which suits a matrix that maps one vector to another. Somebody wrote a function
that hands each parameter of a language model to one of two optimizers, and nothing complains: the loss falls, words that
share a batch drag each other along, and the convolutions in front learn as slowly as before.
"""

from torch import nn

Parameters = list[nn.Parameter]


def split_parameters(model: nn.Module, head: nn.Linear) -> tuple[Parameters, Parameters]:
    """The parameters for Muon and those for AdamW, each in the order of model.parameters().

    model: any module; of the layers that map vectors to vectors it has nn.Linear and nn.Conv1d, Conv2d, Conv3d
    head: the layer of the model that makes its logits
    Muon gets the weights of these layers, filters too: src/optimizers/muon.py takes them flat, as (out, in x kernel). AdamW gets
    all else: biases and norms, gains, and everything that is a table whatever its shape: weights of nn.Embedding, tensors that a
    module holds as an nn.Parameter of its own, and the weight of the head, or of any layer that shares its tensor with an
    embedding or the head. A parameter that does not require a gradient goes to neither; every other one goes to one, once.

    Example: of nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8), nn.LayerNorm(8), head) with head = nn.Linear(8, 50), Muon
    gets one tensor, the weight of the first Linear, and AdamW six.
    """
    # TODO: name the parameters in both lists for a model that you know. Does the shape say what a parameter is for?
    hidden = [w for w in model.parameters() if w.ndim == 2]
    others = [w for w in model.parameters() if w.ndim != 2]
    return hidden, others
