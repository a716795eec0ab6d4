"""Where arrays lie on a mesh: whole on every device, split by task, by coordinate or by model."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maml_jax.devices import AXIS, MODEL_AXIS
from maml_jax.processes import put


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Puts a copy of every array on each device, so that no call has to.

    Args:
      tree: a tree of arrays; what is no array in it stays what it is.
      mesh: the devices; None leaves the tree where it is.

    Returns:
      The tree.
    """
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf: put(leaf, everywhere) if hasattr(leaf, "dtype") else leaf, tree
    )


def place(tree: Any, mesh: Mesh | None) -> Any:
    """Puts parameters, and what is shaped like them, where outer steps keep them.

    Args:
      tree: a tree of arrays.
      mesh: the devices; None leaves the tree where it is. On a mesh with an axis "model" an array
        is split over it along its longest axis that the size of "model" divides, if there is one.

    Returns:
      The tree.
    """
    return tree if mesh is None else jax.tree.map(put, tree, _shardings(tree, mesh, (MODEL_AXIS,)))


def keep_in_place(tree: Any, mesh: Mesh | None) -> Any:
    """In compiled code, makes results lie where `place` puts them.

    Args:
      tree: a tree of arrays.
      mesh: the devices; None leaves the tree as it is.

    Returns:
      The tree.
    """
    return _constrained(tree, mesh, (MODEL_AXIS,))


def known_everywhere(tree: Any, mesh: Mesh | None) -> Any:
    """In compiled code, lets every device know small arrays, such as one number per task.

    Args:
      tree: a tree of arrays.
      mesh: the devices; None leaves the tree as it is.

    Returns:
      The tree.
    """
    return _constrained(tree, mesh, ())


def by_coordinate(task_grads: Any, mesh: Mesh | None, *, leading: int = 1) -> Any:
    """In compiled code, gives each device some coordinates of every task instead of some tasks.

    Inner products and whatever works coordinate by coordinate then need no more than this one
    exchange, in which a device sends and receives what it holds: where the devices divide the
    arrays, nowhere is there more than a D-th of the gradients of all tasks.

    Args:
      task_grads: a tree of arrays `[T, ...]`.
      mesh: the devices; None leaves the tree as it is.
      leading: how many axes stay whole; 0 for a tree without the axis `T`; static.

    Returns:
      The tree. An array without an axis that the devices divide is whole on each.
    """
    return _constrained(task_grads, mesh, (MODEL_AXIS, AXIS), leading)


def _constrained(tree, mesh, axes, leading=0):
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, _shardings(tree, mesh, axes, leading))


def _shardings(tree, mesh, axes, leading=0):
    """Splits each array over mesh axes, each along the longest axis that it divides."""

    def sharding(leaf):
        left = list(jnp.shape(leaf))
        parts: list[tuple[str, ...]] = [()] * len(left)
        for name in axes:
            if name not in mesh.axis_names:
                continue
            size = mesh.shape[name]
            fit = [i for i in range(leading, len(left)) if left[i] and left[i] % size == 0]
            if fit:
                longest = max(fit, key=left.__getitem__)
                left[longest] //= size
                parts[longest] = (*parts[longest], name)
        return NamedSharding(mesh, PartitionSpec(*(part or None for part in parts)))

    return jax.tree.map(sharding, tree)
