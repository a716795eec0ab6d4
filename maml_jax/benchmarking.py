"""Fair timing: alternating repeats in one process, medians, and what the machine can do."""

import dataclasses
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.host import core_cache_bytes, cpu_cores, cpu_name, library_versions

_SIZE = 4096
PRODUCT_FLOPS = 2 * _SIZE**3  # Of the product of `product_rate`.
COPY_BYTES = 2 * 2**28  # Of the copy of `copy_rate`, read and written.

_EXCHANGES = "all-reduce|all-gather|all-to-all|ragged-all-to-all|reduce-scatter|collective-permute"


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
        "cpu": cpu_name(),
        "cpu_cores": cpu_cores(),
        "core_cache_bytes": core_cache_bytes(),
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
    return cost_of(jax.jit(function).lower(*arguments).compile())


def cost_of(compiled: Any) -> Cost:
    """Counts what a compiled program does, as XLA does; of several devices' what each does.

    Args:
      compiled: what `jax.jit(...).lower(...).compile()` gives.

    Returns:
      The cost; the body of a loop counts once.
    """
    analysis = compiled.cost_analysis() or {}
    return Cost(*(float(analysis.get(name, math.nan)) for name in ("flops", "bytes accessed")))


class Exchange(NamedTuple):
    """One exchange between devices in a compiled program.

    Attributes:
      kind: such as "all-reduce", as XLA calls it.
      elements: how many numbers its result holds on one device.
      num_bytes: of that result.
      devices: how many devices exchange among themselves.
    """

    kind: str
    elements: int
    num_bytes: int
    devices: int

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device sends where each sends as little as it can, as in a ring."""
        others = (self.devices - 1) / self.devices
        times = {"all-reduce": 2 * others, "reduce-scatter": self.devices - 1}
        return times.get(self.kind, 1 if "permute" in self.kind else others) * self.num_bytes


def exchanges(program: str) -> list[Exchange]:
    """Reads every exchange between devices out of a compiled program.

    Args:
      program: its text, from `compiled.as_text()`. An exchange in the body of a loop counts
        once; of those that a program starts and waits for, only all-reduces are counted right.

    Returns:
      The exchanges, in the order of the text.

    Example:
      >>> from maml_jax.benchmarking import exchanges
      >>> line = "%a = (f32[2,3]{1,0}, f32[]) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}"
      >>> exchanges(line)
      [Exchange(kind='all-reduce', elements=7, num_bytes=28, devices=2)]
      >>> exchanges(line)[0].sent_bytes
      28.0
    """
    partitions = re.search(r"num_partitions=(\d+)", program)
    found = []
    for shapes, kind, rest in re.findall(rf"= (.*?) ({_EXCHANGES})(?:-start)?\((.*)", program):
        sizes = [
            (math.prod(int(n) for n in dims.split(",") if n), int(bits or 8) // 8)  # A "pred" is 8.
            for bits, dims in re.findall(r"[a-z]+(\d*)\w*\[([\d,]*)\]", shapes)
        ]
        elements = sum(size for size, _ in sizes)
        num_bytes = sum(size * width for size, width in sizes)
        count = _devices_of(rest, int(partitions.group(1)) if partitions else 1)
        found.append(Exchange(kind, elements, num_bytes, count))
    return found


def _devices_of(text: str, num_devices: int) -> int:
    """Reads how many devices exchange among themselves, in each way that XLA writes it."""
    if "source_target_pairs=" in text:
        return 2
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return listed.group(1).count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(counted.group(1))
    if named := re.search(r"replica_groups=mesh\[(.*?)\].*?\{(.*?)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named.group(1)))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", named.group(2)))
    return num_devices


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
