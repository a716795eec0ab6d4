"""The checks at the door of an outer step: what a meta-batch must look like.

All look at shapes and dtypes only, which takes microseconds and waits for no device. Values are
checked where they are used, see `losses.cross_entropy`.
"""

import dataclasses
import difflib
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from maml_jax.inner_checks import check_count
from maml_jax.tasks import Examples, Grouped, Task

_NUMERIC = (np.number, np.bool_, jax.dtypes.prng_key)


def check_meta_batch(tasks: Any) -> None:
    """Refuses what is not a meta-batch, with the rule, what was got, and what to do.

    Args:
      tasks: what a caller passed as a meta-batch.

    Raises:
      TypeError: if it is not a `Task` of `Examples` of numeric arrays.
      ValueError: if axes are missing, empty, or disagree.

    Warns:
      UserWarning: for 8-bit images, and for 64-bit inputs that JAX will round.
    """
    if not isinstance(tasks, Task):
        keys = f" with keys {sorted(tasks)}" if isinstance(tasks, dict) else ""
        raise TypeError(
            f"a meta-batch must be a maml_jax.Task, got {type(tasks).__name__}{keys}; write "
            "Task(support=Examples(inputs=..., targets=...), query=Examples(...))."
        )
    counts = {}
    for name in ("support", "query"):
        examples = getattr(tasks, name)
        if not isinstance(examples, Examples):
            raise TypeError(
                f"{name} must be maml_jax.Examples, got {type(examples).__name__}; write "
                "Examples(inputs=..., targets=...)."
            )
        counts[name] = _check_examples(name, examples)
    if counts["support"] != counts["query"]:
        raise ValueError(
            "support and query must have the same number of tasks, got "
            f"{counts['support']} support tasks and {counts['query']} query tasks."
        )
    ids, num_tasks = tasks.task_id, counts["support"]
    if ids is not None and (
        jnp.shape(ids) != (num_tasks,) or not jnp.issubdtype(jnp.result_type(ids), np.integer)
    ):
        raise ValueError(
            f"task_id must be integers [T] = ({num_tasks},), got {jnp.result_type(ids)} of shape "
            f"{jnp.shape(ids)}."
        )


def check_params(params: Any) -> None:
    """Refuses parameters that hold what an inner loop cannot adapt.

    Args:
      params: what a caller passed as parameters.

    Raises:
      TypeError: if they hold anything but floating-point numbers.
      ValueError: if they hold a flax collection that a model mutates, or nothing at all.
    """
    if isinstance(params, dict) and "params" in params and len(params) > 1:
        extra = sorted(set(params) - {"params"})
        raise ValueError(
            f"the model has mutable collections {extra}, which an inner loop would adapt as "
            "parameters; use a norm without running averages, such as "
            "maml_jax.models.BatchStatisticsNorm, and pass {'params': ...} alone."
        )
    if not jax.tree.leaves(params):
        raise ValueError("params must hold at least one array, got an empty tree.")
    for path, leaf in named_leaves("params", params):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if not jnp.issubdtype(dtype, np.inexact):
            raise TypeError(
                f"{path} must hold floating-point numbers, got dtype {dtype}; cast it, or keep it "
                "out of params: the outer loop learns all of them."
            )


def _check_examples(name: str, examples: Examples) -> int:
    """Checks one set of a meta-batch; returns its number of tasks."""
    inputs = named_leaves(f"{name}.inputs", examples.inputs)
    targets = named_leaves(f"{name}.targets", examples.targets)
    for field, leaves in (("inputs", inputs), ("targets", targets)):
        if not leaves:
            raise ValueError(f"{name}.{field} must hold at least one array, got none.")
    masks = [] if examples.mask is None else [(f"{name}.mask", examples.mask)]
    for path, leaf in inputs + targets + masks:
        _check_array(path, leaf)
    _check_swapped(name, inputs, targets)
    first_path, first = inputs[0]
    for path, leaf in inputs + targets + masks:
        if leaf.shape[:2] != first.shape[:2]:
            raise ValueError(
                f"{path} must have the same leading axes [T, N] as {first_path}, got "
                f"{leaf.shape[:2]} and {first.shape[:2]}."
            )
    for path, mask in masks:
        if mask.dtype != bool or mask.ndim != 2:
            raise ValueError(
                f"{path} must be booleans [T, N], got {mask.dtype} of shape {mask.shape}."
            )
    num_tasks, num_examples = first.shape[:2]
    if num_tasks == 0:
        raise ValueError("the meta-batch must hold at least 1 task, got 0.")
    if num_examples == 0:
        raise ValueError(
            f"{name} must hold at least 1 example per task, got 0; for no adaptation use an "
            "inner loop with num_steps=0."
        )
    return num_tasks


def _check_swapped(name, inputs, targets) -> None:
    def discrete(leaves):
        return all(jnp.issubdtype(leaf.dtype, np.integer) for _, leaf in leaves)

    small, large = inputs[0][1].ndim, targets[0][1].ndim
    if discrete(inputs) and not discrete(targets) and small < large:
        raise TypeError(
            f"{name}.inputs are integers of rank {small} and {name}.targets floats of rank "
            f"{large}: they look swapped; inputs come first."
        )


def _check_array(path: str, leaf: Any) -> None:
    if not isinstance(leaf, np.ndarray | jax.Array | jax.ShapeDtypeStruct):
        raise TypeError(
            f"{path} must be an array of NumPy or JAX, got {type(leaf).__name__}; convert "
            "lists, and arrays of other libraries, with np.asarray."
        )
    dtype = leaf.dtype
    if not any(jnp.issubdtype(dtype, kind) for kind in _NUMERIC):
        raise TypeError(f"{path} must be numeric, got dtype {dtype}; stack it into one array.")
    if leaf.ndim < 2:
        raise ValueError(
            f"{path} must have leading axes [T, N] (tasks, examples), got shape {leaf.shape}; "
            "for one task add the task axis: jax.tree.map(lambda leaf: leaf[None], task)."
        )
    if dtype == np.uint8 and path.endswith("inputs") and leaf.ndim >= 4:
        warnings.warn(
            f"{path} are 8-bit images with values 0..255; divide by 255, the inner learning "
            "rates of the literature are for inputs near 1.",
            stacklevel=2,
        )


def warn_rounded(tasks: Any) -> None:
    """Warns of 64-bit arrays that JAX is about to round to 32 bits.

    Args:
      tasks: a meta-batch, before JAX has seen it.

    Warns:
      UserWarning: if a NumPy array is float64 and JAX runs in 32 bits.
    """
    if jnp.result_type(float) == np.float64:
        return
    for path, leaf in named_leaves("tasks", tasks):
        if isinstance(leaf, np.ndarray) and leaf.dtype == np.float64:
            warnings.warn(
                f"{path} is float64, but JAX runs in 32 bits and rounds it; cast it to "
                "float32, or set JAX_ENABLE_X64=1.",
                stacklevel=3,
            )


def named_leaves(name: str, tree: Any) -> list[tuple[str, Any]]:
    """Lists the leaves of a tree, each with its path, such as `tasks.support.inputs`.

    Args:
      name: what the paths begin with.
      tree: any tree.

    Returns:
      Pairs of a path and a leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(name + jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def check_choice(name: str, value: Any, allowed: Iterable) -> None:
    """Refuses a named choice that is not among those known.

    Args:
      name: what the message calls it.
      value: the choice.
      allowed: what it may be.

    Raises:
      ValueError: naming the choice, the value, what is allowed, and the nearest of it.
    """
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(
            f"{name} must be one of {allowed}, got {value!r}{nearest(str(value), allowed)}"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Ends a message with the known name that a misspelt one is nearest to.

    Args:
      name: the misspelt name.
      known: the right ones.

    Returns:
      `"; did you mean 'mean'?"`, or "." if none is near.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def as_sampler(sampler: Any) -> Any:
    """Makes a sampler an argument of compiled calls, its arrays being leaves of it.

    Args:
      sampler: a function from a key to one `Task`, or a `Grouped` sampler.

    Returns:
      A `jax.tree_util.Partial`, or a `Grouped` sampler of one.

    Raises:
      TypeError: if it is not a function.
      ValueError: if a group has less than one task.
    """
    if isinstance(sampler, Grouped):
        check_count("tasks_per_group", sampler.tasks_per_group, at_least=1)
        return dataclasses.replace(sampler, sampler=as_sampler(sampler.sampler))
    if not callable(sampler):
        raise TypeError(
            "sampler must be a function from a key to one Task, such as maml_jax.data.sinusoid(), "
            f"got {type(sampler).__name__}."
        )
    partial = jax.tree_util.Partial
    return sampler if isinstance(sampler, partial) else partial(sampler)


def is_traced(tree: Any) -> bool:
    """Says whether any leaf is a tracer: inside compiled code, values are not known.

    Args:
      tree: any tree.

    Returns:
      True inside `jax.jit` and its kind.
    """
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
