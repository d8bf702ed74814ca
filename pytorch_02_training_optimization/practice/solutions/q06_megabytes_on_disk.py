"""torch.save() writes storages, each once and whole, and beside each tensor only where in its storage it lies.

So a single row of x costs all of x: a log that keeps loss_per_sample[0] keeps every one, and ten checkpoints of a slice of
a table are ten tables; clone() first. The same rule saves space where several tensors look at one storage: views, tied
weights and the parts of split() cost nothing more. A zero that is expanded to a thousand rows is one row on the disk. But
any arithmetic makes a new storage: half() of a tied table makes two, so the file of half the precision is as large as the
whole one, and after loading the tie is gone. A truth value has a byte, a class number as int64 eight of them. AdamW's
moments make a checkpoint three times as large as the model.
"""

MEGABYTES = {
    "x.bfloat16()": 0.5,
    "x[0]": 1.0,
    "x[0].clone()": 0.0,
    "[x, x[:500], x.t(), x.view(-1)]": 1.0,
    "[x, x.clone()]": 2.0,
    "x > 0": 0.25,
    "(x > 0).long()": 2.0,
    "torch.zeros(1, 250).expand(1000, 250)": 0.0,
    "list(x.split(100))": 1.0,
    "[part.clone() for part in x.split(100)]": 1.0,
    "Tied().state_dict()": 1.0,
    "{'net': net.state_dict(), 'optimizer': vars(Adam(net.weight))}": 3.0,
    "{name: tensor.half() for name, tensor in Tied().state_dict().items()}": 1.0,
}
