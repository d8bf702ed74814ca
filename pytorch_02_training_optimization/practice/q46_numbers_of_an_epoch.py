"""What do eight ranks see of 1,001 samples? Say it before you count.

The lines below use these names, and DistributedSampler and DataLoader of torch.utils.data as they come:

    data = range(1001)

    def sampler(rank, **options):
        return DistributedSampler(data, num_replicas=8, rank=rank, **options)

    def dealt(**options):                   # what all ranks together are given in one epoch, in one list
        return [index for rank in range(8) for index in sampler(rank, **options)]

    def loader(rank, **options):
        return DataLoader(data, batch_size=32, sampler=sampler(rank), **options)

    def seen(rank, epochs):                 # what one rank is given in so many epochs; nobody calls set_epoch
        one = sampler(rank)
        return [index for _ in range(epochs) for index in one]

    def first_step(rank):                   # without a sampler: each rank shuffles by itself, all with the same seed
        torch.manual_seed(0)
        return next(iter(DataLoader(data, batch_size=32, shuffle=True))).tolist()
"""

# TODO: for each line a whole number.
COUNTS = {
    "len(sampler(7))": None,
    "len(dealt())": None,
    "len(set(dealt()))": None,
    "len(set(dealt(drop_last=True)))": None,
    "len(loader(0))": None,
    "len(list(loader(0))[-1])": None,  # the last batch
    "sum(len(batch) for rank in range(8) for batch in loader(rank, drop_last=True))": None,
    "list(sampler(3, shuffle=False))[1]": None,
    "list(sampler(7, shuffle=False))[-1]": None,
    "len(set(seen(0, epochs=10)))": None,
    "len({index for rank in range(8) for index in first_step(rank)})": None,
}
