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


TaskSampler = Callable[[jax.Array], Task]
"""A pure function from a random key to ONE task."""


def meta_batch(sampler: TaskSampler, key: jax.Array, num_tasks: int) -> Task:
    """Draws a meta-batch of independent tasks.

    Task i comes from `fold_in(key, i)`: it does not depend on how many tasks are drawn.

    Args:
      sampler: a pure function from a key to one `Task`.
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


def draw(sampler: TaskSampler, key: jax.Array, indices: jax.Array) -> Task:
    """Draws tasks by their numbers.

    Args:
      sampler: a pure function from a key to one `Task`.
      key: typed random key.
      indices: numbers `[T]` of the tasks.

    Returns:
      A `Task` with a leading axis `T` on every array: of `sampler(fold_in(key, i))`.
    """
    return jax.vmap(lambda i: sampler(jax.random.fold_in(key, i)))(indices)


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
