"""A small trainer that agrees with Lightning to the bit, and only there.

Somebody wrote it for the debugger, since one can step through it. In the only test that there is, the weights come out
equal: a training of one batch, in steps of one.
"""

from collections.abc import Iterable
from typing import Any


class Trainer:
    """Calls the methods of a module in Lightning's order.

    For each batch: training_step(batch), which returns the loss; backward(loss), of the loss divided by the number of
    batches in a step; and in the end on_train_batch_end(). A step has `accumulate` batches; `batches` is a multiple of it.

    With the last batch of a step, after backward() and before on_train_batch_end(): on_before_optimizer_step(), where a
    module logs the length of the whole gradient as it is; clip_gradients(limit); optimizer.step(); schedule.step().

    With the first batch of a step, between training_step() and backward(): optimizer.zero_grad(). Not earlier, so that
    on_train_batch_end() can still look at the gradient of a step.

    global_step is the number of the steps taken.
    """

    def __init__(self, accumulate: int, limit: float) -> None:
        self.accumulate, self.limit = accumulate, limit
        self.global_step = 0

    def fit(self, module: Any, batches: Iterable[Any]) -> None:
        optimizer, schedule = module.configure_optimizers()
        # TODO: write down who is called for four batches in steps of two, then in steps of one.
        for number, batch in enumerate(batches, start=1):
            loss = module.training_step(batch)
            if number % self.accumulate == 1:
                optimizer.zero_grad()
            module.backward(loss / self.accumulate)
            module.clip_gradients(self.limit)
            if number % self.accumulate == 0:
                module.on_before_optimizer_step()
                optimizer.step()
                self.global_step += 1
            schedule.step()
            module.on_train_batch_end()
