"""Headers of .npy files.  Pure."""

import re

import numpy as np

MAX_HEADER = 4096  # bytes of a .npy header
NPY_1_0 = b"\x93NUMPY\x01\x00"  # then the length of the text that follows, of two bytes
NPY_HEADER = re.compile(
    rb"\{'descr': '(?P<type>[<>|][a-z]\d{1,2})', 'fortran_order': (?P<in_columns>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,18}, ?)*(?:\d{1,18})?)\), \} *\n"
)


def read_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether it is in columns (Fortran order), type and first byte of the array of a .npy file (format 1.0).

    Not by numpy, which calls Python's parser: in Python 3.11 it can raise SystemError if several threads use it, and
    shards are opened by several.  Raises ValueError for another header.
    """
    first_byte = len(NPY_1_0) + 2 + int.from_bytes(head[len(NPY_1_0) : len(NPY_1_0) + 2], "little")
    found = NPY_HEADER.fullmatch(head[len(NPY_1_0) + 2 : first_byte])
    if not head.startswith(NPY_1_0) or found is None or len(head) < first_byte:
        raise ValueError(head[:first_byte])
    shape = tuple(int(axis) for axis in found["shape"].split(b",") if axis.strip())
    return shape, found["in_columns"] == b"True", np.dtype(found["type"].decode()), first_byte
