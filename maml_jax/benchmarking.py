"""Fair timing: alternating repeats in one process, medians, and what the machine can do."""

import dataclasses
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.host import cpu_cores, library_versions

_SIZE = 4096
PRODUCT_FLOPS = 2 * _SIZE**3  # Of the product of `product_rate`.
COPY_BYTES = 2 * 2**28  # Of the copy of `copy_rate`, read and written.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """How long one side of a comparison took.

    Attributes:
      seconds: of each repeat, at least one.

    Example:
      >>> from maml_jax.benchmarking import Timing
      >>> Timing(seconds=(1.0, 3.0, 2.0)).median
      2.0
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the repeats, in seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile, in seconds."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(low), float(high)

    def as_dict(self) -> dict[str, Any]:
        """Gives everything as plain values for JSON, in seconds."""
        return {"median": self.median, "quartiles": self.quartiles, "seconds": self.seconds}


def timed(call: Callable[[], Any]) -> float:
    """Times one call, waiting for what it computes.

    Args:
      call: returns a tree of arrays.

    Returns:
      Seconds.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.benchmarking import timed
      >>> timed(lambda: jnp.ones(3) + 1) > 0
      True
    """
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def alternate(sides: Mapping[str, Callable[[], float]], *, repeats: int) -> dict[str, Timing]:
    """Measures several sides in turn, so that what disturbs one disturbs all.

    Args:
      sides: from a name to a function that does the work once and returns its seconds; call
        each before, so that compiling is not measured.
      repeats: how often each is measured; at least 1.

    Returns:
      A timing for each name.

    Raises:
      ValueError: if `repeats` is below 1.

    Example:
      >>> from maml_jax.benchmarking import alternate
      >>> alternate({"fast": lambda: 1.0, "slow": lambda: 2.0}, repeats=3)["slow"].median
      2.0
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}.")
    seconds = {name: [] for name in sides}
    for repeat in range(repeats):
        # The order turns round, so that no side always follows the same one.
        names = list(sides)[:: 1 if repeat % 2 == 0 else -1]
        for name in names:
            seconds[name].append(sides[name]())
    return {name: Timing(seconds=tuple(values)) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """Gives the facts that a measured time depends on: device, cores, load, versions."""
    devices = jax.local_devices()
    return {
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "cpu": platform.processor() or platform.machine(),
        "cpu_cores": cpu_cores(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
        **library_versions(),
    }


def product_rate() -> Callable[[], float]:
    """Prepares the measurement of a large matrix product: the roof of what can be computed.

    Returns:
      A function that multiplies two 4096 x 4096 matrices of float32 once, `PRODUCT_FLOPS`, and
      returns its seconds.
    """
    left = jnp.ones((_SIZE, _SIZE), jnp.float32)
    product = jax.jit(lambda a, b: a @ b)
    return _prepared(lambda: product(left, left))


def copy_rate() -> Callable[[], float]:
    """Prepares the measurement of a copy: the roof of what memory can move.

    Returns:
      A function that reads and writes an array of 256 MiB once, `COPY_BYTES`, and returns its
      seconds.
    """
    array = jnp.ones(COPY_BYTES // 2 // 4, jnp.float32)
    copy = jax.jit(lambda a: a + 1)
    return _prepared(lambda: copy(array))


class Cost(NamedTuple):
    """What a program does.

    Attributes:
      flops: floating-point operations; NaN if the backend does not tell.
      num_bytes: bytes that its operations read and write, caches left aside; NaN likewise.
    """

    flops: float
    num_bytes: float


def cost(function: Callable, *arguments: Any) -> Cost:
    """Counts what a program does, as XLA does.

    XLA counts the body of a loop once: give it a function without `lax.scan`.

    Args:
      function: a function of arrays.
      *arguments: arrays, or their shapes.

    Returns:
      The cost.
    """
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis() or {}
    return Cost(*(float(analysis.get(name, math.nan)) for name in ("flops", "bytes accessed")))


def relative_error(got: Any, want: Any) -> float:
    """Measures how far two trees are apart, in units of the largest entry of the second.

    Args:
      got: a tree of arrays.
      want: a tree of the same structure.

    Returns:
      max |got - want| / max |want|, over all leaves; NaN if anything is.

    Example:
      >>> import numpy as np
      >>> from maml_jax.benchmarking import relative_error
      >>> relative_error([np.array([1.0, 2.5])], [np.array([1.0, 2.0])])
      0.25
    """
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    largest = np.max([np.abs(b).max() for _, b in pairs])
    apart = np.max([np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs])
    return float(apart / largest)


def _prepared(call: Callable[[], Any]) -> Callable[[], float]:
    timed(call)
    return lambda: timed(call)
