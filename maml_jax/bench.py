"""How fast is it here, and with what setting should one run: `maml-jax bench`."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maml_jax import assembly, benchmarking, memory_errors
from maml_jax.devices import task_mesh, tasks_per_device
from maml_jax.layout import TaskAxis, layout_of
from maml_jax.network import Network, assemble_network, assemble_outer_step, input_shape
from maml_jax.outer_state import OuterStep
from maml_jax.recipes import Config
from maml_jax.tasks import Examples, Task, num_tasks_of

_SHORTEST = 0.2  # Seconds of a measurement; shorter steps are repeated.

_Setting = tuple[TaskAxis, Mesh | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One setting, measured.

    Attributes:
      task_axis: how tasks run on a device.
      num_devices: devices that share them.
      num_tasks: tasks of the meta-batch.
      seconds: median of one outer step, of several in one compiled call if they are short.
      compile_seconds: of the program.
      temporary_bytes: that the program needs besides its arguments; None if not known.
      is_default: whether `maml-jax train` takes this setting.
    """

    task_axis: TaskAxis
    num_devices: int
    num_tasks: int
    seconds: float
    compile_seconds: float
    temporary_bytes: int | None
    is_default: bool

    @property
    def rate(self) -> float:
        """Tasks per second."""
        return self.num_tasks / self.seconds


def measure(config: Config, *, budget: float = 60.0, repeats: int = 5) -> Iterator[Measured]:
    """Measures outer steps of a configuration, one way to run the tasks after the other.

    Tasks are noise of the configuration's shapes, so no data set is needed.

    Args:
      config: what would be trained.
      budget: seconds after which no further setting is begun; the first always is.
      repeats: timed steps of each.

    Yields:
      Each setting when it is measured.

    Raises:
      MemoryError: if the device runs out of memory.

    Example:
      >>> from maml_jax import bench
      >>> from maml_jax.recipes import PRESETS
      >>> next(bench.measure(PRESETS["sinusoid-10shot-finn2017"], repeats=1)).num_tasks
      25
    """
    with memory_errors.explained(config):
        yield from _measured(config, budget, repeats)


def _measured(config: Config, budget: float, repeats: int) -> Iterator[Measured]:
    network = assemble_network(config)
    tasks = jax.jit(functools.partial(_noise, config))(jax.random.key(0))
    began = time.monotonic()
    shared = assembly.mesh_for(config, network, tasks)
    default: _Setting = (_default_axis(network, tasks, shared), shared)
    for index, (axis, mesh) in enumerate(_settings(config.meta_batch_size, default)):
        if index and time.monotonic() - began > budget:
            return
        outer = assemble_outer_step(config, network, task_axis=axis, mesh=mesh)
        seconds, compile_seconds, temporary = _time(outer, network.params, tasks, repeats)
        yield Measured(
            task_axis=axis,
            num_devices=mesh.size if mesh else 1,
            num_tasks=config.meta_batch_size,
            seconds=seconds,
            compile_seconds=compile_seconds,
            temporary_bytes=temporary,
            is_default=(axis, mesh) == default,
        )


def _default_axis(network: Network, tasks: Task, mesh: Mesh | None) -> TaskAxis:
    """Names what "auto" takes."""
    params = network.inner.init(network.params)
    side_by_side = layout_of("auto", network.query_loss, params, tasks, mesh=mesh).side_by_side
    names: dict[int, TaskAxis] = {tasks_per_device(num_tasks_of(tasks), mesh): "vmap", 1: "scan"}
    return names.get(side_by_side, side_by_side)


def _settings(num_tasks: int, default: _Setting) -> list[_Setting]:
    """Ways to run the tasks, what `maml-jax train` takes first."""
    axes: tuple[TaskAxis, ...] = ("scan", "vmap", 4)
    others: list[_Setting] = [
        (axis, mesh) for mesh in (task_mesh(num_tasks), None) for axis in axes
    ]
    return list(dict.fromkeys([default, *others]))


def _time(outer: OuterStep, params, tasks: Task, repeats: int) -> tuple[float, float, int | None]:
    """Compiles outer steps in a row, as in training, and times them; gives temporary bytes too."""
    state = outer.init(params)

    def steps(state, tasks, count):
        return jax.lax.fori_loop(0, count, lambda _, state: outer.update(state, tasks)[0], state)

    began = time.monotonic()
    run: Callable = jax.jit(steps).lower(state, tasks, 1).compile()
    compile_seconds = time.monotonic() - began
    benchmarking.timed(lambda: run(state, tasks, 1))
    one = benchmarking.timed(lambda: run(state, tasks, 1))
    count = max(1, min(100, round(_SHORTEST / one)))
    seconds = [benchmarking.timed(lambda: run(state, tasks, count)) / count for _ in range(repeats)]
    memory = getattr(run.memory_analysis(), "temp_size_in_bytes", None)
    return statistics.median(seconds), compile_seconds, memory


def _noise(config: Config, key: jax.Array) -> Task:
    """Draws a meta-batch of the configuration's shapes."""
    shape = input_shape(config)
    way = 1 if config.is_regression else config.way

    def examples(key, shot):
        count = (config.meta_batch_size, way * shot)
        inputs = jax.random.normal(key, (*count, *shape))
        labels = jnp.broadcast_to(jnp.repeat(jnp.arange(way), shot), count)
        targets = inputs if config.is_regression else labels
        return Examples(inputs=inputs, targets=targets)

    support_key, query_key = jax.random.split(key)
    return Task(
        support=examples(support_key, config.shot), query=examples(query_key, config.query_shot)
    )
