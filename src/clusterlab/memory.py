"""What the C library does with memory that is freed between two steps."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Numbers of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
MIB = 2**20


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep the memory that a step frees for the next one instead of giving it back.

    glibc gives large blocks back to the system as soon as they are free, which hands them out
    again in pages of 4 KiB, each zeroed at its first use. Training frees and allocates the same
    activations in every step. What is computed stays the same to the bit. Afterwards the memory is
    given back. Does nothing where the C library is another.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)  # large blocks out of the heap too
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks
    try:
        yield
    finally:
        # Not the values of before, which nobody can ask for, but those that glibc arrives at by
        # itself in a process that has freed large blocks.
        libc.mallopt(M_MMAP_MAX, 65_536)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * MIB)
        libc.mallopt(M_TRIM_THRESHOLD, 64 * MIB)
        libc.malloc_trim(0)
