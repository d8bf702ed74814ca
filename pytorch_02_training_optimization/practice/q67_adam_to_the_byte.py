"""Weights, gradients, Adam: to the byte, before you run it.

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(500, 16)
            self.body = nn.Linear(16, 16)
            self.spare = nn.Linear(16, 16)
            self.head = nn.Linear(16, 500, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x):
            return self.head(self.body(self.words(x)))

    def backward(autocast=False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(x), y)
        loss.backward()

Each line below begins with a new model = Model() in float32 and adamw = torch.optim.AdamW(model.parameters()).
"""

# TODO: for each line three numbers of bytes that are there after it: (all of model.parameters(), all of their .grad, all
# tensors in adamw.state). Write a product where that is clearer: (4 * 16, 0, 0).
BYTES = {
    "backward()": None,
    "backward(); adamw.step()": None,
    "backward(); adamw.step(); backward(); adamw.step()": None,
    "backward(); adamw.step(); model.zero_grad()": None,
    "backward(); adamw.step(); model.zero_grad(set_to_none=False)": None,
    "backward(autocast=True); adamw.step()": None,
    "model.bfloat16(); backward(); adamw.step()": None,
    "backward(); adamw.step(); model.bfloat16()": None,
    "adamw = torch.optim.AdamW(model.parameters(), amsgrad=True); backward(); adamw.step()": None,
    "model.words.requires_grad_(False); backward(); adamw.step()": None,
    "backward(); adamw.step(); model.words.requires_grad_(False); model.zero_grad(); backward(); adamw.step()": None,
}
