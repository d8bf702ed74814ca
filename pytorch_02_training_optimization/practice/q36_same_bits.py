"""Which changes alter the weights of a training, if only in their last bits? Say it before you run it.

The training, on one thread of the CPU, in float32:

    torch.manual_seed(seed)
    model = Sequential(Linear(8, 16), Tanh(), Dropout(0.5), Linear(16, 3))
    for epoch in range(3):
        for batch in torch.randperm(64).split(32):
            loss = cross_entropy(model(x[batch]), y[batch])
            subtract 0.1 * gradient from each parameter
        (between two epochs: nothing)
"""

# TODO: True where all bits of the trained weights stay as they were, False where some change.
SAME_BITS = {
    "torch.rand(1) before the model is made": None,
    "torch.rand(1) after the last step": None,
    "np.random.rand() and random.random() before the model is made": None,
    "loss.item() is printed after each step": None,
    "between epochs: model.eval(), model(x), model.train()": None,
    "between epochs: model(x) under no_grad, without eval()": None,
    "between epochs: a loop over DataLoader(data, shuffle=False)": None,
    "the same loop, DataLoader(..., generator=torch.Generator())": None,
    "between epochs: torch.manual_seed(0) inside torch.random.fork_rng()": None,
    "Dropout(0.5) is made before the two Linear, and placed as before": None,
    "the second Linear is made first, and placed as before": None,
    "the loss times 1024, the learning rate divided by 1024": None,
    "the loss times 10, the learning rate divided by 10": None,
}
