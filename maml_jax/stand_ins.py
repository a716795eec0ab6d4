"""Stand-ins for tasks where devices do not divide a meta-batch: they keep devices equally busy.

With n = ⌈T/D⌉ tasks a device, n D - T are stand-ins: copies of real tasks, so that whatever
they compute is finite where that of real ones is. Their results are dropped, their coefficients 0.
"""

from typing import Any

import jax
import jax.numpy as jnp

from maml_jax.tasks import num_tasks_of


def fill_up(tasks: Any, shards: int) -> Any:
    """Makes room for stand-ins, on all devices together.

    Args:
      tasks: a tree of arrays `[T, ...]`.
      shards: number D of devices; static.

    Returns:
      A tree of arrays `[n D, ...]`: with zeros, which no device has to fetch, where each has a
      task of its own for `copy_own` to put there; else with copies of the last task. Random keys
      are always filled up with the last.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.stand_ins import fill_up
      >>> print(fill_up(jnp.array([3, 5, 7]), 2), fill_up(jnp.array([3, 5, 7, 8, 9]), 4))
      [3 5 7 0] [3 5 7 8 9 9 9 9]
    """
    num_tasks = num_tasks_of(tasks)
    room = tasks_each(num_tasks, shards) * shards
    if room == num_tasks:
        return tasks
    numbers = jnp.arange(room)

    def longer(leaf):
        if _is_key(leaf):
            return leaf[jnp.minimum(numbers, num_tasks - 1)]
        return append_zeros(leaf, room)

    filled = jax.tree.map(longer, tasks)
    if _all_have_one(num_tasks, shards):
        return filled
    return put_one_for_others(filled, numbers < num_tasks, numbers == num_tasks - 1)


def copy_own(own: Any, num_tasks: int, shards: int, device: jax.Array | int) -> Any:
    """On one device, puts copies of its first task where `fill_up` has put zeros.

    Args:
      own: a tree of arrays `[n, ...]`, the device's part of what `fill_up` gave.
      num_tasks: number T of real tasks; static.
      shards: number D of devices; static.
      device: the number of this one, from 0.

    Returns:
      The tree.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.stand_ins import copy_own
      >>> print(copy_own(jnp.array([7, 0]), 3, 2, 1))
      [7 7]
    """
    each = num_tasks_of(own)
    if each * shards == num_tasks or not _all_have_one(num_tasks, shards):
        return own
    real = num_tasks - (shards - 1) * each  # On the last device; all others are full.

    def copied(leaf):
        if _is_key(leaf):
            return leaf
        # Written in place: a choice would be made anew for each use of each element.
        rest = jnp.where(device == shards - 1, leaf[:1], leaf[real:])
        return jax.lax.dynamic_update_slice_in_dim(leaf, rest, real, axis=0)

    return jax.tree.map(copied, own)


def put_one_for_others(tasks: Any, kept: jax.Array, one: jax.Array) -> Any:
    """Puts one task in place of others, wherever in a meta-batch that devices share they are.

    Args:
      tasks: a tree of arrays `[T, ...]`.
      kept: booleans `[T]`, which tasks stay.
      one: booleans `[T]`, one of them True: which task takes the place of those that go.

    Returns:
      The tree. Random keys stay: any will do.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.stand_ins import put_one_for_others
      >>> tasks, number = jnp.array([jnp.nan, 5, 7]), jnp.arange(3)
      >>> print(put_one_for_others(tasks, kept=number > 0, one=number == 1))
      [5. 5. 7.]
    """

    def put(leaf):
        if _is_key(leaf):
            return leaf
        # As a sum over all, with one that counts: an index would make every device fetch them all.
        taken = jnp.where(_column(one, leaf), leaf, 0).sum(axis=0, keepdims=True)
        return jnp.where(_column(kept, leaf), leaf, taken.astype(leaf.dtype))

    return jax.tree.map(put, tasks)


def append_zeros(array: jax.Array, length: int) -> jax.Array:
    """Makes an array longer along its first axis.

    Args:
      array: `[T, ...]`, of numbers.
      length: at least T; static.

    Returns:
      An array `[length, ...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.stand_ins import append_zeros
      >>> print(append_zeros(jnp.array([3, 5]), 3))
      [3 5 0]
    """
    return jnp.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1))


def tasks_each(num_tasks: int, shards: int) -> int:
    """Counts the tasks of each device, stand-ins included.

    Args:
      num_tasks: number T of real tasks.
      shards: number D of devices.

    Returns:
      ⌈T/D⌉.

    Example:
      >>> from maml_jax.stand_ins import tasks_each
      >>> tasks_each(25, 2)
      13
    """
    return -(-num_tasks // shards)


def _all_have_one(num_tasks, shards):
    return tasks_each(num_tasks, shards) * (shards - 1) < num_tasks


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def _column(flags, leaf):
    return flags.reshape(-1, *[1] * (leaf.ndim - 1))
