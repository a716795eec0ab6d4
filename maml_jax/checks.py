"""The checks at the door of an outer step: what a meta-batch must look like.

All look at shapes and dtypes only, so they cost nothing per step: they run while the
step is traced. Values are checked where they are used, see `losses.cross_entropy`.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.tasks import Examples, Task


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


def check_params(params: Any) -> None:
    """Refuses parameters that hold what an inner loop cannot adapt.

    Args:
      params: what a caller passed as parameters.

    Raises:
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


def _check_examples(name: str, examples: Examples) -> int:
    """Checks one set of a meta-batch; returns its number of tasks."""
    inputs = _named_leaves(f"{name}.inputs", examples.inputs)
    targets = _named_leaves(f"{name}.targets", examples.targets)
    for field, leaves in (("inputs", inputs), ("targets", targets)):
        if not leaves:
            raise ValueError(f"{name}.{field} must hold at least one array, got none.")
    _check_swapped(name, inputs, targets)
    masks = [] if examples.mask is None else [(f"{name}.mask", examples.mask)]
    for path, leaf in inputs + targets + masks:
        _check_array(path, leaf)
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
        return all(np.issubdtype(getattr(leaf, "dtype", object), np.integer) for _, leaf in leaves)

    small, large = np.ndim(inputs[0][1]), np.ndim(targets[0][1])
    if discrete(inputs) and not discrete(targets) and small < large:
        raise TypeError(
            f"{name}.inputs are integers of rank {small} and {name}.targets floats of rank "
            f"{large}: they look swapped; inputs come first."
        )


def _check_array(path: str, leaf: Any) -> None:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        raise TypeError(f"{path} must be an array, got {type(leaf).__name__}.")
    if dtype.kind in "OUS":
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
    if jax.config.jax_enable_x64:
        return
    for path, leaf in _named_leaves("tasks", tasks):
        if isinstance(leaf, np.ndarray) and leaf.dtype == np.float64:
            warnings.warn(
                f"{path} is float64, but JAX runs in 32 bits and rounds it; cast it to "
                "float32, or set JAX_ENABLE_X64=1.",
                stacklevel=3,
            )


def _named_leaves(name: str, tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(name + jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def check_flags(**flags: tuple[Any, tuple]) -> None:
    """Refuses a named choice that is not among those known.

    Args:
      **flags: of each name the value got and the values allowed.

    Raises:
      ValueError: naming the choice, the value and what is allowed.
    """
    for name, (value, allowed) in flags.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}.")


def is_traced(tree: Any) -> bool:
    """Says whether any leaf is a tracer: inside compiled code, values are not known.

    Args:
      tree: any tree.

    Returns:
      True inside `jax.jit` and its kind.
    """
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


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
