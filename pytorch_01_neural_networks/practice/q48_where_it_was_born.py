"""The loss is nan. Which of the two hundred modules made it?

Whatever touches a nan becomes nan, so behind the guilty module everything looks guilty, and the module around it as well.
A number can be born between two modules, too, in a forward() that divides by something. You have a batch on which it happens,
and a model whose code you would rather not edit.
"""

from typing import Any

from torch import nn


def born_in(model: nn.Module, *args: Any, **kwargs: Any) -> str | None:
    """The name of the module that makes the first nan or infinity of model(*args, **kwargs); None where there is none.

    A call of a module makes one if a tensor that it returns holds nan or inf, while all that was handed to it, by position
    or by keyword, was finite. Of all such calls the one that returns first is meant, so of nested ones the innermost. What
    counts is the moment: a number that is repaired in place afterwards was born nevertheless, and one that a module writes
    into its input later was not there before.
    Tensors may stand in tuples, lists and dicts of any depth, both in what goes in and in what comes out; there may be
    integers and None among them. The names are those of model.named_modules(), so "" is the model itself. Afterwards the
    model has its hooks as before, also if its forward() raises; that error goes on to the caller.

    Example: in Sequential(Linear(2, 2), MyLog(), Softmax(dim=1)) the name is "1" if the Linear returns a 0 and MyLog takes its
    logarithm.
    """
    # TODO
    raise NotImplementedError
