"""Where in memory does an element live?

A tensor is a run of numbers (its storage) and a rule for reading it: from one element to the next along dimension d
is a step of stride[d] numbers, and the first element need not be the first number of the storage.
"""


def byte_offset(
    index: tuple[int, ...],
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    storage_offset: int,
    element_size: int,
) -> int:
    """Bytes from the start of the storage to the element at `index`.

    index: one integer for each dimension; a negative one counts from the end, as in Python
    shape, stride, storage_offset: as a tensor's .shape, .stride() and .storage_offset() say, counted in elements
    element_size: bytes of one element, as .element_size() says

    Example: x = torch.arange(12).reshape(3, 4)[1:, ::2] is int64, 8 bytes each; its shape is (2, 2), its stride
    (4, 2), and it starts at element 4 of the storage. x[1, 1] is the number 10, the eleventh of the storage:

        byte_offset((1, 1), (2, 2), (4, 2), 4, 8) == 80
    """
    # TODO
    raise NotImplementedError
