"""Only what has a gradient gets a state, at its first step, in the dtype of its weights; and it is kept for ever.

words and head share one tensor of 8,000 numbers, body has 272, and spare 272 that nobody calls: a weight, but never a gradient
and so never a state. AdamW is empty until its first step. Then it holds two averages for each number and one counter of 4
bytes for each tensor; amsgrad holds a third. zero_grad() throws the gradients away, set_to_none=False keeps them as zeros.
Autocast changes what is computed in between and none of these three. model.bfloat16() halves weights and gradients, and does
not know the optimizer: before the first step the averages are made from 16-bit weights and are 16-bit too, after it they
stay as they are. Freezing spares gradients and averages if it comes before the first step; afterwards the averages of a
frozen table lie there until the optimizer is built anew.
"""

TRAINED = 500 * 16 + 16 * 16 + 16
ALL = TRAINED + 16 * 16 + 16
BODY = 16 * 16 + 16

BYTES = {
    "backward()": (4 * ALL, 4 * TRAINED, 0),
    "backward(); adamw.step()": (4 * ALL, 4 * TRAINED, 8 * TRAINED + 12),
    "backward(); adamw.step(); backward(); adamw.step()": (4 * ALL, 4 * TRAINED, 8 * TRAINED + 12),
    "backward(); adamw.step(); model.zero_grad()": (4 * ALL, 0, 8 * TRAINED + 12),
    "backward(); adamw.step(); model.zero_grad(set_to_none=False)": (4 * ALL, 4 * TRAINED, 8 * TRAINED + 12),
    "backward(autocast=True); adamw.step()": (4 * ALL, 4 * TRAINED, 8 * TRAINED + 12),
    "model.bfloat16(); backward(); adamw.step()": (2 * ALL, 2 * TRAINED, 4 * TRAINED + 12),
    "backward(); adamw.step(); model.bfloat16()": (2 * ALL, 2 * TRAINED, 8 * TRAINED + 12),
    "adamw = torch.optim.AdamW(model.parameters(), amsgrad=True); backward(); adamw.step()": (
        4 * ALL,
        4 * TRAINED,
        12 * TRAINED + 12,
    ),
    "model.words.requires_grad_(False); backward(); adamw.step()": (4 * ALL, 4 * BODY, 8 * BODY + 8),
    "backward(); adamw.step(); model.words.requires_grad_(False); model.zero_grad(); backward(); adamw.step()": (
        4 * ALL,
        4 * BODY,
        8 * TRAINED + 12,
    ),
}
