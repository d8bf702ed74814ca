"""How large is the file? Say it before you save it.

x = torch.randn(1000, 250)                          # 250,000 numbers in float32: 1.0 MB
net = nn.Linear(500, 500, bias=False)               # as many

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(1000, 250)
        self.scores = nn.Linear(250, 1000, bias=False)
        self.scores.weight = self.tokens.weight

class Adam:                                         # what AdamW keeps of a parameter p
    def __init__(self, p):
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(p), torch.zeros_like(p)
"""

# TODO: for each, the megabytes (10^6 bytes) of the file that torch.save() writes, to the nearest 0.1; for example 1.0.
MEGABYTES = {
    "x.bfloat16()": None,
    "x[0]": None,
    "x[0].clone()": None,
    "[x, x[:500], x.t(), x.view(-1)]": None,
    "[x, x.clone()]": None,
    "x > 0": None,
    "(x > 0).long()": None,
    "torch.zeros(1, 250).expand(1000, 250)": None,
    "list(x.split(100))": None,
    "[part.clone() for part in x.split(100)]": None,
    "Tied().state_dict()": None,
    "{'net': net.state_dict(), 'optimizer': vars(Adam(net.weight))}": None,
    "{name: tensor.half() for name, tensor in Tied().state_dict().items()}": None,
}
