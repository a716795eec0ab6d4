"""How many of a number of things to take at a time."""


def chunk_size(count: int, fit: int) -> int:
    """Gives the number to take at a time if at most `fit` may be.

    A divisor of the count needs no second program for what is left over; but not one that leaves
    more than half of the room empty.

    Args:
      count: of what there is, at least 1.
      fit: how many there is room for; below 1 still takes one.

    Returns:
      The size of a chunk, in 1 … count.

    Example:
      >>> from maml_jax.chunks import chunk_size
      >>> chunk_size(32, 20), chunk_size(25, 24)
      (16, 24)
    """
    most = max(1, min(count, fit))
    divisor = max(n for n in range(1, most + 1) if count % n == 0)
    return divisor if 2 * divisor > most else most
