"""What will learn, and what will be in the file? Say it before you look.

Each line stands alone in the __init__ of an nn.Module, after super().__init__(). Two counts decide what becomes of it:
the numbers that parameters() hands to an optimizer, and the numbers in state_dict(), which is what a checkpoint holds.
"""

# TODO: for each line a pair of two counts. First sum(p.numel() for p in model.parameters()), and second
# sum(x.numel() for x in model.state_dict().values()), where a tensor under two names counts twice.
SEEN_AND_SAVED = {
    "self.a = nn.Linear(3, 3); self.a = nn.Linear(3, 1)": None,
    "self.a = nn.BatchNorm1d(5)": None,
    "self.a = nn.BatchNorm1d(5, affine=False)": None,
    "self.a = nn.ModuleList([nn.Linear(3, 3)] * 4)": None,
    "self.a = [nn.Linear(3, 3) for _ in range(4)]": None,
    "self.a = [nn.Linear(3, 3) for _ in range(4)]; self.b = nn.Sequential(*self.a)": None,
    "self.a = nn.ParameterList(torch.ones(2) for _ in range(4))": None,
    "self.a = nn.Parameter(torch.ones(6), requires_grad=False)": None,
    "self.a = nn.Linear(3, 3); self.b = self.a.weight": None,
    "self.a = nn.Linear(3, 3); self.b = self.a.weight.clone()": None,
    "self.a = nn.Linear(3, 3); self.b = copy.deepcopy(self.a).requires_grad_(False)": None,
    "self.a = nn.Embedding(20, 3); self.b = nn.Linear(3, 20); self.b.weight = self.a.weight": None,
}
