"""A learning rate means something else in each optimizer, and so does weight_decay.

SGD goes lr x g a step, momentum 0.9 soon ten times as much, as it adds up 1 + 0.9 + 0.81 + …: 0.02 a step, but for the
first ten or twenty. Adam divides the mean of the gradients by the root of the mean of their squares, so a gradient that stays
gives lr, be it 2 or 0.002; only where it is about as small as eps is the step shorter, half of lr for 1e-8. RMSprop does not
correct that v begins at 0: its first step is lr / sqrt(0.01), ten times lr.
Decay: SGD's L2 and AdamW both leave (1 - lr x weight_decay) a step, exp(-0.5) after 500, and half the lr decays half as
much. In Adam the pull of L2 is a gradient like any other: with no other gradient the weight loses lr a step, whatever
weight_decay says (a little less, as v remembers larger ones); with gradients of 10 the pull is divided by 10, and hardly felt.
"""

NUMBERS = {
    "moved(SGD(lr=0.1), g=2, steps=100)": 20,
    "moved(SGD(lr=0.001, momentum=0.9), g=2, steps=1000)": 20,
    "moved(Adam(lr=0.1), g=2, steps=100)": 10,
    "moved(Adam(lr=0.1), g=0.002, steps=100)": 10,
    "moved(Adam(lr=0.1), g=1e-8, steps=1)": 0.05,
    "moved(RMSprop(lr=0.01), g=2, steps=1)": 0.1,
    "left(SGD(lr=0.01, weight_decay=0.1), steps=500)": 0.61,
    "left(AdamW(lr=0.01, weight_decay=0.1), steps=500)": 0.61,
    "left(AdamW(lr=0.005, weight_decay=0.1), steps=500)": 0.78,
    "left(Adam(lr=0.01, weight_decay=0.1), steps=20)": 0.8,
    "left(Adam(lr=0.01, weight_decay=0.001), steps=20)": 0.8,
    "left(Adam(lr=0.01, weight_decay=0.1), steps=500, swing=10)": 0.95,
    "left(AdamW(lr=0.01, weight_decay=0.1), steps=500, swing=10)": 0.6,
}
