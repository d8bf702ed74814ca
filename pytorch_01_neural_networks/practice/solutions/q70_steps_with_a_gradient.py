"""At step 2 a forward direction has read steps 0, 1 and 2, however many layers of one direction lie on each other.

A backward one has read 2 to 7 there, which is six; at the last step it has read that one alone, and its final state belongs
to step 0. With two layers both ways even the forward half of step 2 has all eight: its layer reads the states below, and
half of these come from the future. That is why a network with two directions is no forecast and no language model. detach()
hands the state on as a number, so the last half still feels the first and can learn nothing from it. Packed, the backward
direction begins at step 4 and reads 4, 3 and 2. And batch_first=True reads (8, 1, 3) as eight sequences of one step: every
shape fits, and nothing is ever remembered.
"""

STEPS = {
    "one(x)[0][2]": 3,
    "stack(x)[0][2]": 3,
    "one(x[4:], one(x[:4])[1])[1]": 8,
    "one(x[4:], one(x[:4])[1].detach())[1]": 4,
    "both(x)[0][2, :, :5]": 3,
    "both(x)[0][2, :, 5:]": 6,
    "both(x)[0][-1, :, 5:]": 1,
    "both(x)[1][1]": 8,
    "deep(x)[0][2, :, :5]": 8,
    "one(packed)[1]": 5,
    "pad_packed_sequence(both(packed)[0])[0][2, :, 5:]": 3,
    "first(x)[1][0, -1]": 1,
}
