"""Which rate does the optimizer have after ten calls? Say it before you try it.

o is an optimizer with one parameter group and lr=1.0. The scheduler is made as written, with the defaults of
torch.optim.lr_scheduler for everything that is not, and then o.step() and scheduler.step() are called ten times.
"""

# TODO: a number for each, to two digits or better: o.param_groups[0]["lr"] afterwards.
RATE = {
    "StepLR(o, step_size=5)": None,
    "MultiStepLR(o, milestones=[10, 20])": None,
    "ExponentialLR(o, gamma=0.5)": None,
    "LinearLR(o)": None,
    "PolynomialLR(o, total_iters=20)": None,
    "CosineAnnealingLR(o, T_max=10)": None,
    "CosineAnnealingLR(o, T_max=20)": None,
    "CosineAnnealingLR(o, T_max=5)": None,
    "CosineAnnealingWarmRestarts(o, T_0=10)": None,
    "CosineAnnealingWarmRestarts(o, T_0=5, T_mult=2)": None,
    "LambdaLR(o, lambda step: 1 / (step + 1))": None,
    "MultiplicativeLR(o, lambda step: 0.9)": None,
}
