"""The address is a dot product: the index times the stride, plus where the view starts, times the bytes of an element.

Everything that makes a view cheap is in this line. Transposing swaps two strides, slicing moves the offset or
stretches a stride, expanding sets one to zero: none of them touches a byte of the storage. The shape takes no part,
except to say what a negative index means.
"""


def byte_offset(
    index: tuple[int, ...],
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    storage_offset: int,
    element_size: int,
) -> int:
    element = storage_offset
    for i, size, step in zip(index, shape, stride, strict=True):
        element += (i % size) * step  # -1 % 4 is 3, as Python counts from the end
    return element * element_size
