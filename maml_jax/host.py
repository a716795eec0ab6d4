"""What this process runs on: CPU, cores, their cache, and the versions of the libraries."""

import functools
import importlib.metadata
import os
import pathlib
import platform

_CPU = pathlib.Path("/proc/cpuinfo")
_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}
_CACHE = pathlib.Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
_LIBRARIES = ("maml-jax", "jax", "jaxlib", "flax", "optax", "numpy")


def cpu_cores() -> int:
    """Counts the CPU cores that this process may use, where the system tells, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """Names the CPU and its widest vectors ("AMD EPYC, AVX2"), as far as the system tells."""
    try:
        lines = [line.partition(":") for line in _CPU.read_text().splitlines()]
    except OSError:
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, _, value in lines}
    flags = facts.get("flags", facts.get("Features", "")).split()
    vectors = [name for flag, name in _VECTORS.items() if flag in flags]
    return ", ".join([facts.get("model name", platform.machine()), *vectors[:1]])


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
