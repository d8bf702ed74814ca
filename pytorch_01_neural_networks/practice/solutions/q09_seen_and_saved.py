"""Registration asks for the type of what is assigned, parameters() counts tensors, and state_dict() counts names.

A Parameter or a module that is assigned to an attribute is on the list; the last one to get a name keeps it. A Python list
is neither, but what is in it can get onto the list another way, here through the Sequential. A ParameterList turns plain
tensors into parameters, a ModuleList registers its modules. requires_grad says whether a tensor learns, not whether it is a
parameter: frozen ones are seen and saved, and an optimizer skips them because they have no gradient. clone() of a parameter
is a result and no parameter. BatchNorm keeps a mean and a variance for each channel and one counter of batches, as buffers:
saved, never trained. One tensor under several names is seen once and saved under each, so a model with tied weights
shows fewer parameters than its state dict has numbers. (torch.save still writes such a tensor once.)
"""

SEEN_AND_SAVED = {
    "self.a = nn.Linear(3, 3); self.a = nn.Linear(3, 1)": (4, 4),
    "self.a = nn.BatchNorm1d(5)": (10, 21),
    "self.a = nn.BatchNorm1d(5, affine=False)": (0, 11),
    "self.a = nn.ModuleList([nn.Linear(3, 3)] * 4)": (12, 48),
    "self.a = [nn.Linear(3, 3) for _ in range(4)]": (0, 0),
    "self.a = [nn.Linear(3, 3) for _ in range(4)]; self.b = nn.Sequential(*self.a)": (48, 48),
    "self.a = nn.ParameterList(torch.ones(2) for _ in range(4))": (8, 8),
    "self.a = nn.Parameter(torch.ones(6), requires_grad=False)": (6, 6),
    "self.a = nn.Linear(3, 3); self.b = self.a.weight": (12, 21),
    "self.a = nn.Linear(3, 3); self.b = self.a.weight.clone()": (12, 12),
    "self.a = nn.Linear(3, 3); self.b = copy.deepcopy(self.a).requires_grad_(False)": (24, 24),
    "self.a = nn.Embedding(20, 3); self.b = nn.Linear(3, 20); self.b.weight = self.a.weight": (80, 140),
}
