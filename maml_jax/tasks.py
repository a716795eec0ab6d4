"""Tasks, meta-batches, and the checks at the door.

In shapes, `N` is the number of examples of one set and `T` the number of tasks of a
meta-batch. Everything here is written for one task; a meta-batch is the same type
with a leading axis `T` on every array.
"""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = Any
"""A tree of arrays: the parameters θ of a model."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Labelled examples of one task.

    Attributes:
      inputs: a tree of arrays `[N, ...]`.
      targets: a tree of arrays `[N, ...]`: class indices `[N]` for classification.
      mask: booleans `[N]`; False marks padding, so that tasks of different size fit in
        one meta-batch. None means that every example counts.
      reference: other examples whose batch statistics normalise these, as in
        non-transductive evaluation. None means that these examples normalise
        themselves. See `maml_jax.evaluate`.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax import Examples
      >>> examples = Examples(inputs=jnp.zeros((5, 28, 28, 1)), targets=jnp.arange(5))
      >>> examples.targets.shape
      (5,)
    """

    inputs: Any
    targets: Any
    mask: jax.Array | None = None
    reference: "Examples | None" = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One learning problem: examples to adapt on, examples to be judged by.

    Attributes:
      support: the `Examples` that the inner loop sees.
      query: the `Examples` whose loss, after adaptation, the outer loop minimises.
      task_id: an integer, which task or group of a finite pool this is, for aggregations that
        remember one thing of each, and for diagnosis. None if there is no such pool.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax import Examples, Task
      >>> few = Examples(inputs=jnp.zeros((5, 1)), targets=jnp.zeros((5, 1)))
      >>> many = Examples(inputs=jnp.zeros((15, 1)), targets=jnp.zeros((15, 1)))
      >>> Task(support=few, query=many).query.inputs.shape
      (15, 1)
    """

    support: Examples
    query: Examples
    task_id: jax.Array | None = None


TaskSampler = Callable[[jax.Array], Task]
"""A pure function from a random key to ONE task."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Grouped:
    """A sampler whose tasks come in groups that have something in common.

    The groups of a meta-batch are independent, the tasks of a group are not: its tasks
    0 … n - 1 share one group key, the next n another. It goes wherever a sampler goes.

    Attributes:
      sampler: a pure function `(group_key, key) -> Task` for one task; what it draws from
        `group_key` is the same for all tasks of a group.
      tasks_per_group: number n of tasks of a group; static, at least 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import maml_jax as mj
      >>> def sampler(group_key, key):
      ...     slope = jax.random.normal(group_key)
      ...     inputs = jax.random.normal(key, (4, 1))
      ...     examples = mj.Examples(inputs=inputs, targets=slope * inputs)
      ...     return mj.Task(support=examples, query=examples)
      >>> grouped = mj.Grouped(sampler=jax.tree_util.Partial(sampler), tasks_per_group=2)
      >>> print(mj.meta_batch(grouped, jax.random.key(0), 4).task_id)
      [0 0 1 1]
    """

    sampler: Callable[[jax.Array, jax.Array], Task]
    tasks_per_group: int = dataclasses.field(metadata={"static": True})

    def draw(self, key: jax.Array, index: jax.Array) -> Task:
        """Draws the task of a number in a meta-batch; its `task_id` says which group it is."""
        group = index // self.tasks_per_group
        group_key = jax.random.fold_in(jax.random.fold_in(key, _GROUPS), group)
        task = self.sampler(group_key, jax.random.fold_in(key, index))
        return task if task.task_id is not None else dataclasses.replace(task, task_id=group)


Sampler = TaskSampler | Grouped
"""What draws the tasks of a meta-batch."""

_GROUPS = 0x67726F75  # Far from any index of a task: no group shares a key with a task.


def meta_batch(sampler: Sampler, key: jax.Array, num_tasks: int) -> Task:
    """Draws a meta-batch of tasks, independent unless the sampler is `Grouped`.

    Task i comes from `fold_in(key, i)`: it does not depend on how many tasks are drawn.

    Args:
      sampler: a pure function from a key to one `Task`, or a `Grouped` one.
      key: random key, consumed, or an integer seed.
      num_tasks: number `T` of tasks; static, at least 1.

    Returns:
      A `Task` with a leading axis `T` on every array.

    Raises:
      TypeError: if `num_tasks` is not an integer, or `key` no key.
      ValueError: if `num_tasks` is below 1.

    Example:
      >>> import jax
      >>> import maml_jax as mj
      >>> sampler = mj.data.sinusoid(shot=10, query_shot=10)
      >>> mj.meta_batch(sampler, jax.random.key(0), 4).support.inputs.shape
      (4, 10, 1)
    """
    if isinstance(num_tasks, bool) or not isinstance(num_tasks, numbers.Integral):
        raise TypeError(f"num_tasks must be an integer, got {num_tasks!r}.")
    if num_tasks < 1:
        raise ValueError(f"num_tasks must be at least 1, got {num_tasks}.")
    key = as_key(key)
    return draw(sampler, key, jnp.arange(num_tasks))


def draw(sampler: Sampler, key: jax.Array, indices: jax.Array) -> Task:
    """Draws tasks by their numbers.

    Args:
      sampler: a pure function from a key to one `Task`, or a `Grouped` one.
      key: typed random key.
      indices: numbers `[T]` of the tasks.

    Returns:
      A `Task` with a leading axis `T` on every array, of `draw_one`.
    """
    return jax.vmap(lambda index: draw_one(sampler, key, index))(indices)


def draw_one(sampler: Sampler, key: jax.Array, index: jax.Array | int) -> Task:
    """Draws one task of a meta-batch by its number.

    Args:
      sampler: a pure function from a key to one `Task`, or a `Grouped` one.
      key: typed random key of the meta-batch.
      index: the number, at least 0.

    Returns:
      The task: `sampler(fold_in(key, index))`, or what the grouped sampler draws.
    """
    if isinstance(sampler, Grouped):
        return sampler.draw(key, jnp.asarray(index))
    return sampler(jax.random.fold_in(key, index))


def num_tasks_of(tasks: Any) -> int:
    """Reads `T` off the leading axis of a meta-batch.

    Args:
      tasks: a tree of arrays `[T, ...]`.

    Returns:
      The number of tasks.
    """
    return jax.tree.leaves(tasks)[0].shape[0]


def as_key(key: Any) -> jax.Array:
    """Makes a typed random key of a seed, an old-style key, or a typed key.

    Args:
      key: an integer, a uint32 array `[2]`, or a typed key.

    Returns:
      A typed key.

    Raises:
      TypeError: if it is none of these.
    """
    if isinstance(key, bool):
        raise TypeError(f"key must be jax.random.key(seed) or an integer seed, got {key!r}.")
    if isinstance(key, int | np.integer):
        return jax.random.key(int(key))
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.ndim == 0:
        return key
    if dtype == np.uint32 and key.shape == (2,):
        return jax.random.wrap_key_data(jnp.asarray(key))
    raise TypeError(
        f"key must be jax.random.key(seed) or an integer seed, got {type(key).__name__} {key!r}."
    )
