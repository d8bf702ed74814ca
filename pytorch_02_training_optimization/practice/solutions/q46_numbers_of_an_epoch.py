"""DistributedSampler makes all ranks equally long, and everything else follows from that.

1,001 samples for 8 ranks are 126 each, 1,008 in all: seven are dealt twice, taken from the head of the order, so that the
last rank without shuffling ends with sample 6. drop_last of the sampler leaves one sample out in place of that. batch_size
is a rank's own: 126 are three batches of 32 and one of 30, and a step of all ranks has 256 samples. drop_last of the loader
throws that 30 away in each rank, 240 of 1,008, where you may have thought of one batch. Without set_epoch the shuffle is
the same for ever, and a rank sees its 126 samples and no other, for 10 epochs or for 100. Without a sampler, and with one
seed in all ranks, which is what torch.manual_seed(0) at the head of a script gives, eight GPUs compute the same gradient.
"""

COUNTS = {
    "len(sampler(7))": 126,
    "len(dealt())": 1008,
    "len(set(dealt()))": 1001,
    "len(set(dealt(drop_last=True)))": 1000,
    "len(loader(0))": 4,
    "len(list(loader(0))[-1])": 30,
    "sum(len(batch) for rank in range(8) for batch in loader(rank, drop_last=True))": 768,
    "list(sampler(3, shuffle=False))[1]": 11,
    "list(sampler(7, shuffle=False))[-1]": 6,
    "len(set(seen(0, epochs=10)))": 126,
    "len({index for rank in range(8) for index in first_step(rank)})": 32,
}
