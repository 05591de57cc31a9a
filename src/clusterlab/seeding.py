"""Seeds derived from names, so that no two uses of one seed share a random stream."""

import zlib


def derive_seed(*parts: int | str) -> int:
    """Return a 32-bit seed that depends on all parts and on their order.

    Example:
        >>> derive_seed(0, "pretrain", 1) != derive_seed(1, "pretrain", 0)
        True
    """
    return zlib.crc32("/".join(map(str, parts)).encode())
