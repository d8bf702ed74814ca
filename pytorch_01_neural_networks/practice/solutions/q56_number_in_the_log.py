"""Every number has its reason, so a log can be read like a symptom.

Knowing nothing costs log C, for two classes log 2; a pos_weight of 5 counts the one yes five times and still divides by 4,
so (5 + 3) / 4 * log 2. Padding and class weights do not show at the start: the mean divides by what it has counted, by
weights too. Probabilities where logits belong leave a perfect model at log(1 + 9/e), since 1 and 0 are a lead of only 1.
With smoothing a lead of 100 costs 0.09 * 100: nine classes with a target of 0.01 each have log p = -100. nll_loss is
minus a mean of what it is given, so probabilities make it -1. Sure and wrong costs the lead, except in binary_cross_entropy,
which bounds each logarithm at -100. And a column beside a row gives all nine pairs: twice the variance of the targets, 28/3,
though every prediction is right.
"""

LOSS = {
    "F.cross_entropy(torch.zeros(8, 1000), torch.arange(8))": 6.908,
    "F.binary_cross_entropy_with_logits(torch.zeros(4), torch.tensor([1.0, 0.0, 0.0, 0.0]))": 0.693,
    "F.binary_cross_entropy_with_logits(torch.zeros(4), torch.tensor([1.0, 0.0, 0.0, 0.0]), pos_weight=torch.tensor(5.0))": 1.386,
    "F.cross_entropy(torch.zeros(4, 10), torch.tensor([3, -100, -100, -100]))": 2.303,
    "F.cross_entropy(torch.zeros(3, 10), torch.tensor([0, 1, 2]), weight=torch.arange(1.0, 11.0))": 2.303,
    "F.cross_entropy(100 * torch.eye(10), torch.arange(10))": 0.0,
    "F.cross_entropy(torch.eye(10), torch.arange(10))": 1.461,
    "F.cross_entropy(100 * torch.eye(10), torch.arange(10), label_smoothing=0.1)": 9.0,
    "F.nll_loss(torch.eye(10), torch.arange(10))": -1.0,
    "F.cross_entropy(torch.tensor([[0.0, 30.0]]), torch.tensor([0]))": 30.0,
    "F.binary_cross_entropy(torch.zeros(1), torch.ones(1))": 100.0,
    "F.mse_loss(torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([1.0, 2.0, 6.0]))": 9.333,
}
