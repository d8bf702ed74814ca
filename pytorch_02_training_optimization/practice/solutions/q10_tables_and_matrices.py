"""What a parameter is for is known to the layer that holds it; its shape tells only how many axes it has.

A matrix (50000, 768) may be a Linear or a table of words. In a table each row is looked up alone, and an orthogonal step ties
the rows together: with 768 columns there are only 768 directions to share among all the words of a batch. A table of positions
held as a bare nn.Parameter looks the same and is one, too. So ask the layers, by class, and keep identities: `w in tables` would
compare the numbers, entry by entry, and stop where shapes differ. model.parameters() gives a shared tensor once, under its
first name; whether it is a table is decided by all the layers that hold it, which is why the head's weight is taken out by
identity, and with it whatever is tied to it. Filters of a convolution are matrices (out, in x kernel): Muon takes them flat.
"""

from torch import nn

Parameters = list[nn.Parameter]


def split_parameters(model: nn.Module, head: nn.Linear) -> tuple[Parameters, Parameters]:
    layers = list(model.modules())
    matrices = {
        id(layer.weight) for layer in layers if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    matrices -= {id(layer.weight) for layer in layers if isinstance(layer, nn.Embedding)} | {id(head.weight)}
    trained = [w for w in model.parameters() if w.requires_grad]
    return [w for w in trained if id(w) in matrices], [w for w in trained if id(w) not in matrices]
