"""Checks that several samplers share."""

import operator


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raises ValueError unless `value` is an integer of at least `least`."""
    try:
        # bool has __index__ too, and shot=True is a slip rather than a count.
        whole = not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        whole = False
    if not whole:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
