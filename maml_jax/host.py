"""What this process runs on: cores, and the versions of the libraries."""

import importlib.metadata
import os

_LIBRARIES = ("maml-jax", "jax", "jaxlib", "flax", "optax", "numpy")


def cpu_cores() -> int:
    """Counts the CPU cores that this process may use, where the system tells, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def library_versions() -> dict[str, str]:
    """Gives the versions of the libraries on which results depend, by name."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}
