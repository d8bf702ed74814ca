"""The log says that the best validation loss was at step 40. The weights that were saved are those of step 60.

Early stopping was written in twenty lines, and the curve shows that it stops where it should. But the restored model
tests no better than the last one. Nobody sees an error, since there is none.
"""

import math

from torch import nn


class Stopper:
    """Ends a training when the validation loss has not improved for too long, and puts the best weights back.

    model: trains on between two calls of update(), in place, as an optimizer does it; its buffers (the running
        statistics of a batch norm) belong to it as well
    patience: how many measurements in a row without a new lowest loss are borne
    """

    def __init__(self, model: nn.Module, patience: int) -> None:
        # TODO: whose memory is it that is kept at the best step, and what happens to it afterwards?
        self.model, self.patience = model, patience
        self.lowest, self.best, self.bad = math.inf, None, 0

    def update(self, loss: float) -> bool:
        """Takes the validation loss of the weights as they are now; True: stop.

        Only a loss below all before it is an improvement; an equal one is none, and NaN is none. With patience 2 and the
        losses 3, 2, 2, 5, 2 the answers are False, False, False, False, True.
        """
        if loss < self.lowest:
            self.lowest, self.bad = loss, 0
            self.best = self.model.state_dict()
        else:
            self.bad += 1
        return self.bad > self.patience

    def restore(self) -> None:
        """Puts weights and buffers of the best measurement into the model, whose optimizer may go on with it.

        May be called more than once, with training in between. Where no loss was a number, it changes nothing.
        """
        if self.best is not None:
            self.model.load_state_dict(self.best)
