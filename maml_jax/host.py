"""What this process runs on: cores, their cache, and the versions of the libraries."""

import functools
import importlib.metadata
import os
import pathlib

_CACHE = pathlib.Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
_LIBRARIES = ("maml-jax", "jax", "jaxlib", "flax", "optax", "numpy")


def cpu_cores() -> int:
    """Counts the CPU cores that this process may use, where the system tells, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def core_cache_bytes() -> int | None:
    """Reads the size of a core's second-level cache, where the system tells (Linux), else None."""
    try:
        text = _CACHE.read_text().strip()
    except OSError:
        return None
    kib = text.removesuffix("K")
    return int(kib) * 1024 if kib.isdecimal() and kib != text else None


def library_versions() -> dict[str, str]:
    """Gives the versions of the libraries on which results depend, by name."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}
