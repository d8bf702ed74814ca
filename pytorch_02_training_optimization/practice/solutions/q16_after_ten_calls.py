"""After ten calls the rate is that of step 10, the eleventh, since making the scheduler has set that of step 0.

So a milestone at 10 has just been passed, and 1 / (step + 1) is 1/11. LinearLR is a warm-up that begins at a third and is
over after five calls, whatever the length of your training. The two cosines differ only in what comes after the end:
CosineAnnealingLR is at 0 after T_max calls and goes up again, so that with T_max = 5 it is back at the peak; warm restarts
never show the 0 and jump, with T_0 = 10 to the peak, and with T_0 = 5 and T_mult = 2 the second wave of ten is half over.
"""

RATE = {
    "StepLR(o, step_size=5)": 0.01,
    "MultiStepLR(o, milestones=[10, 20])": 0.1,
    "ExponentialLR(o, gamma=0.5)": 0.5**10,
    "LinearLR(o)": 1.0,
    "PolynomialLR(o, total_iters=20)": 0.5,
    "CosineAnnealingLR(o, T_max=10)": 0.0,
    "CosineAnnealingLR(o, T_max=20)": 0.5,
    "CosineAnnealingLR(o, T_max=5)": 1.0,
    "CosineAnnealingWarmRestarts(o, T_0=10)": 1.0,
    "CosineAnnealingWarmRestarts(o, T_0=5, T_mult=2)": 0.5,
    "LambdaLR(o, lambda step: 1 / (step + 1))": 1 / 11,
    "MultiplicativeLR(o, lambda step: 0.9)": 0.9**10,
}
