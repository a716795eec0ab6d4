"""Stand-ins for tasks where devices do not divide a meta-batch: what keeps them equally busy.

With n = ⌈T/D⌉ tasks a device, n D - T are stand-ins: copies of real tasks, so that whatever
they compute is finite where that of real ones is. Their results are dropped, their coefficients 0.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from maml_jax.tasks import num_tasks_of


def fill_up(tasks: Any, shards: int) -> Any:
    """Makes room for the stand-ins, on all devices together.

    Args:
      tasks: a tree of arrays `[T, ...]`.
      shards: number D of devices; static.

    Returns:
      A tree of arrays `[n D, ...]`: with zeros, which no device has to fetch, where each has a
      task of its own for `replace` to copy; else with copies of the last task.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.stand_ins import fill_up
      >>> print(fill_up(jnp.array([3, 5, 7]), 2), fill_up(jnp.array([3, 5, 7, 8, 9]), 4))
      [3 5 7 0] [3 5 7 8 9 9 9 9]
    """
    num_tasks = num_tasks_of(tasks)
    room = _each(num_tasks, shards) * shards
    if room == num_tasks:
        return tasks
    fill = with_zeros if _all_have_one(num_tasks, shards) else _with_last
    return jax.tree.map(functools.partial(fill, length=room), tasks)


def replace(own: Any, num_tasks: int, shards: int, device: jax.Array | int) -> Any:
    """On one device, puts its first task in place of zeros.

    Args:
      own: a tree of arrays `[n, ...]`, the device's part of what `fill_up` gave.
      num_tasks: number T of real tasks; static.
      shards: number D of devices; static.
      device: the number of this one, from 0.

    Returns:
      The tree.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.stand_ins import replace
      >>> print(replace(jnp.array([7, 0]), 3, 2, 1))
      [7 7]
    """
    each = num_tasks_of(own)
    if each * shards == num_tasks or not _all_have_one(num_tasks, shards):
        return own
    real = num_tasks - (shards - 1) * each

    def replaced(leaf):
        if _is_opaque(leaf):
            return leaf  # Of these `fill_up` took copies.
        # Written in place: a choice would be made anew for each use of each element.
        rest = jnp.where(device == shards - 1, leaf[:1], leaf[real:])
        return jax.lax.dynamic_update_slice_in_dim(leaf, rest, real, axis=0)

    return jax.tree.map(replaced, own)


def with_zeros(array: jax.Array, length: int) -> jax.Array:
    """Appends zeros along the first axis; of what is no number, like a random key, the last.

    Args:
      array: `[T, ...]`.
      length: at least T; static.

    Returns:
      An array `[length, ...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.stand_ins import with_zeros
      >>> print(with_zeros(jnp.array([3, 5]), 3))
      [3 5 0]
    """
    if _is_opaque(array):
        return _with_last(array, length)
    return jnp.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1))


def _with_last(array, length):
    return array[jnp.minimum(jnp.arange(length), len(array) - 1)]


def _is_opaque(array):
    return jnp.issubdtype(array.dtype, jax.dtypes.extended)


def _each(num_tasks, shards):
    return -(-num_tasks // shards)


def _all_have_one(num_tasks, shards):
    return _each(num_tasks, shards) * (shards - 1) < num_tasks
