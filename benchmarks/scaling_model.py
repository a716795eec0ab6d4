"""A model on paper of the time of an outer step on slices of TPUs; not a measurement.

    seconds(n tasks a chip, D chips) = n · task + optimizer + exchange

    task       max(FLOPs / (peak · fill · efficiency), bytes / memory rate)
    optimizer  what Adam reads and writes, on every chip, / memory rate
    exchange   2 (D - 1) / D · bytes / rate of a chip's links + hops · latency of a hop

FLOPs and bytes are what the TPU compiler says of the program (`tpu_compile.py`), and the efficiency
is what `throughput.py` measured on a CPU; every other number is in this file, and with its source
in docs/scaling.md.
"""

import dataclasses
import math

TASKS_PER_CHIP = (1, 2, 4, 8, 16, 32, 64)
STRONG_TASKS = 256  # Of the meta-batch that ever more chips share.
SHARE = 0.05  # Of a step that goes into the exchange.

HOP_SECONDS = 1e-6
SLOW_HOP_SECONDS = 8e-6 / 3  # A cautious one: a small exchange over 3 hops in 8 µs.
RING = 16  # Chips of an axis that is closed to a ring.
ADAM_PASSES = 7  # Reads parameters, gradient and two moments; writes parameters and moments.
BYTES = 4  # Of a parameter and its gradient: float32.
FILTERS = {"W1": 64, "W2": 32}  # Output columns of most products.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """Chips that are wired as a grid.

    Attributes:
      name: such as "v5e-8".
      kind: of chip, such as "v5e".
      shape: chips along each axis.
      peak: FLOP/s of a chip in bfloat16.
      memory_rate: bytes/s of its memory.
      memory: bytes of it.
      link_rate: bytes/s of a link between two chips, one way.
      columns: of its matrix unit.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    peak: float
    memory_rate: float
    memory: float
    link_rate: float
    columns: int

    @property
    def num_chips(self) -> int:
        """Number D of chips."""
        return math.prod(self.shape)

    @property
    def chip_rate(self) -> float:
        """Bytes/s that every chip can send at once; a chip at an end has one link on that axis."""
        return sum(self._links(n) for n in self.shape) * self.link_rate

    @property
    def bisection_rate(self) -> float:
        """Bytes/s, one way, between the halves of the grid where least links join them."""
        across = [self.num_chips // n * self._links(n) for n in self.shape if n > 1]
        return min(across, default=0) * self.link_rate

    @property
    def hops(self) -> int:
        """Hops between the two chips that are farthest apart."""
        return sum(n // 2 if n == RING else n - 1 for n in self.shape)

    @staticmethod
    def _links(n: int) -> int:
        return 0 if n == 1 else 2 if n == RING else 1


_V5E = {
    "kind": "v5e",
    "peak": 197e12,
    "memory_rate": 819e9,
    "memory": 16e9,
    "link_rate": 50e9,
    "columns": 128,
}
_V6E = {
    "kind": "v6e",
    "peak": 918e12,
    "memory_rate": 1600e9,
    "memory": 32e9,
    "link_rate": 100e9,
    "columns": 256,
}
SLICES = {
    "v5e-8": Slice(name="v5e-8", shape=(2, 4), **_V5E),
    "v5e-256": Slice(name="v5e-256", shape=(16, 16), **_V5E),
    "v6e-8": Slice(name="v6e-8", shape=(2, 4), **_V6E),
}
GROWING = [
    Slice(name=f"v5e-{a * b}", shape=(a, b), **_V5E)
    for a, b in ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a workload does on a kind of chip.

    Attributes:
      name: the workload.
      bound: what is counted: with activations in "float32" or "bfloat16", or "only products", did
        they never wait for memory, which makes the exchange weigh most.
      kind: of chip.
      flops: of one task.
      num_bytes: that the operations of one task read and write.
      num_params: P.
      num_leaves: arrays of parameters.
      reported: numbers that each task reports.
      efficiency: part of the rate of a large matrix product that products reach, in (0, 1].
    """

    name: str
    bound: str
    kind: str
    flops: float
    num_bytes: float
    num_params: int
    num_leaves: int
    reported: int
    efficiency: float


def sent_bytes(level: str, work: Work, num_tasks: int, num_devices: int) -> list[tuple[str, float]]:
    """Tells what a rule makes each device send in one outer step.

    Left out are exchanges of a number per task beside larger ones.

    Args:
      level: "STATIC", "LOSS", "NORMS", "GRAM" or "FULL".
      work: the workload.
      num_tasks: T, of the whole meta-batch.
      num_devices: D.

    Returns:
      Pairs of a kind of exchange and bytes.
    """
    others = BYTES * (num_devices - 1) / num_devices
    params, reports = work.num_params, work.reported * num_tasks
    if level == "STATIC":
        return [("all-reduce", 2 * others * (params + reports))]
    if level == "LOSS":
        return [("all-reduce", 2 * others * reports), ("all-reduce", 2 * others * params)]
    if level == "NORMS":  # The second sum is the mean gradient, for the metrics of its spread.
        return [("all-reduce", 2 * others * 2 * params)]
    split = [("all-to-all", others * num_tasks * params / num_devices)]
    if level == "GRAM":
        split.append(("all-reduce", 2 * others * work.num_leaves * num_tasks**2))
    return [*split, ("all-gather", others * params)]


def exchange_seconds(
    level: str, work: Work, num_tasks: int, chips: Slice, *, hop_seconds: float = HOP_SECONDS
) -> float:
    """Models the time of a rule's exchanges, one after the other.

    Args:
      level: as in `sent_bytes`.
      work: the workload.
      num_tasks: T, of the whole meta-batch.
      chips: the slice.
      hop_seconds: latency of a hop.

    Returns:
      Seconds; 0 on one chip.
    """
    if chips.num_chips == 1:
        return 0.0
    seconds = 0.0
    for kind, num_bytes in sent_bytes(level, work, num_tasks, chips.num_chips):
        moving = num_bytes / chips.chip_rate
        if kind == "all-to-all":  # Half of what a half of the chips sends goes to the other half.
            moving = max(moving, num_bytes * chips.num_chips / 4 / chips.bisection_rate)
        seconds += moving + chips.hops * hop_seconds * (2 if kind == "all-reduce" else 1)
    return seconds


def task_seconds(work: Work, chips: Slice) -> float:
    """Models the time of one task on a chip: the roof that it meets first."""
    fill = min(1.0, FILTERS[work.name] / chips.columns)
    products = work.flops / (chips.peak * fill * work.efficiency)
    return max(products, work.num_bytes / chips.memory_rate)


def step_seconds(
    work: Work, per_chip: float, chips: Slice, *, level: str = "STATIC", **options
) -> dict[str, float]:
    """Models an outer step.

    Args:
      work: the workload.
      per_chip: tasks of each chip.
      chips: the slice.
      level: of the rule.
      **options: for `exchange_seconds`.

    Returns:
      Seconds of "tasks", "optimizer" and "exchange", and their sum "step".
    """
    parts = {
        "tasks": per_chip * task_seconds(work, chips),
        "optimizer": ADAM_PASSES * BYTES * work.num_params / chips.memory_rate,
        "exchange": exchange_seconds(level, work, per_chip * chips.num_chips, chips, **options),
    }
    return {**parts, "step": sum(parts.values())}


def efficiencies(work: Work, per_chip: float, chips: Slice, **options) -> dict[str, float]:
    """Models how well a slice is used, by a rule that exchanges once.

    Args:
      work: the workload.
      per_chip: tasks of each chip.
      chips: the slice.
      **options: for `exchange_seconds`.

    Returns:
      "weak": the time of one chip with as many tasks as each has, over that of the slice.
      "strong": the time of one chip with all tasks, over D times that of the slice.
      "share": the part of a step that is exchange.
    """
    alone = dataclasses.replace(chips, shape=(1, 1))
    parts = step_seconds(work, per_chip, chips, **options)
    weak = step_seconds(work, per_chip, alone)["step"]
    strong = step_seconds(work, per_chip * chips.num_chips, alone)["step"] / chips.num_chips
    step = parts["step"]
    return {"weak": weak / step, "strong": strong / step, "share": parts["exchange"] / step}


def tasks_for_share(work: Work, chips: Slice, *, share: float = SHARE, **options) -> float:
    """Solves for the tasks a chip at which the exchange is a given part of a step.

    Args:
      work: the workload.
      chips: the slice.
      share: the part, in (0, 1).
      **options: for `exchange_seconds`.

    Returns:
      Tasks a chip; not above 0 if it is less with any.
    """
    # The reports of a task go with the exchange: their part grows with the tasks as well.
    first, second = (
        exchange_seconds("STATIC", work, n * chips.num_chips, chips, **options) for n in (0, 1)
    )
    growth = second - first
    rest = step_seconds(work, 0, chips)["optimizer"]
    left = first * (1 - share) - share * rest
    per_task = share * task_seconds(work, chips) - (1 - share) * growth
    return math.inf if per_task <= 0 else left / per_task
