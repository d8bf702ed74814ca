"""Bits change for two reasons: somebody drew from the same generator, or a number was rounded another time.

What draws: rand, every dropout in training mode, every layer with weights when it is made, and the beginning of every loop
over a DataLoader, which takes a seed for its workers even where it has none and shuffles nothing. What does not: another
library's generator, eval(), a layer without weights such as Dropout, an own generator=, and whatever happens inside
fork_rng. A draw after the last one that matters changes nothing. Multiplying by 1024 only moves the exponent: every product
and sum is rounded at the same bit, and dividing the learning rate moves it back, which is why loss scaling takes powers of
two. Multiplying by 10 rounds.
"""

SAME_BITS = {
    "torch.rand(1) before the model is made": False,
    "torch.rand(1) after the last step": True,
    "np.random.rand() and random.random() before the model is made": True,
    "loss.item() is printed after each step": True,
    "between epochs: model.eval(), model(x), model.train()": True,
    "between epochs: model(x) under no_grad, without eval()": False,
    "between epochs: a loop over DataLoader(data, shuffle=False)": False,
    "the same loop, DataLoader(..., generator=torch.Generator())": True,
    "between epochs: torch.manual_seed(0) inside torch.random.fork_rng()": True,
    "Dropout(0.5) is made before the two Linear, and placed as before": True,
    "the second Linear is made first, and placed as before": False,
    "the loss times 1024, the learning rate divided by 1024": True,
    "the loss times 10, the learning rate divided by 10": False,
}
