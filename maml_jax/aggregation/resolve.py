"""From names to rules, the checks at the door, and rules as plain functions."""

import difflib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from maml_jax.aggregation.ladder import reduce_task_grads
from maml_jax.aggregation.linear import mean, sum, weighted
from maml_jax.aggregation.rule import Aggregation, Evidence, Level, State

_NAMED = {"mean": mean, "sum": sum, "weighted": weighted}


def resolve(aggregation: str | Aggregation) -> Aggregation:
    """Gives the rule of a name, and a rule as it is.

    Args:
      aggregation: "mean", "sum", "weighted", or an `Aggregation`.

    Returns:
      The rule.

    Raises:
      ValueError: if the name is unknown.
      TypeError: if it is neither a name nor an `Aggregation`.

    Example:
      >>> from maml_jax import aggregation
      >>> aggregation.resolve("mean").name
      'mean'
    """
    if isinstance(aggregation, Aggregation):
        return aggregation
    if not isinstance(aggregation, str):
        raise TypeError(
            "aggregation must be 'mean', 'sum', 'weighted' or a maml_jax.aggregation value such "
            f"as aggregation.tilted(1.0), got {aggregation!r}."
        )
    if aggregation not in _NAMED:
        close = difflib.get_close_matches(aggregation, _NAMED, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(
            f"unknown aggregation {aggregation!r}, known names are {list(_NAMED)}{hint}"
        )
    return _NAMED[aggregation]()


def aggregate(
    aggregation: str | Aggregation,
    task_grads: Any,
    *,
    losses: jax.Array | None = None,
    support_losses: jax.Array | None = None,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    num_support: jax.Array | None = None,
    num_query: jax.Array | None = None,
    traits: jax.Array | None = None,
    noise: jax.Array | None = None,
    task_ids: jax.Array | None = None,
    key: jax.Array | None = None,
    state: State = None,
) -> Any:
    """Reduces per-task gradients, for those who have their own loop.

    Args:
      aggregation: a name or a rule, as for `make_outer_step`.
      task_grads: tree of arrays `[T, ...]`.
      losses: query losses `[T]`, for rules from level LOSS up that look at them.
      support_losses: support losses before adaptation `[T]`, for `by_complexity`.
      weights: `[T]`, at least 0; only for rules that use weights.
      mask: booleans `[T]`; False leaves a task out, whatever its gradient holds.
      num_support: support sizes `[T]`, for `by_size("support")`.
      num_query: query sizes `[T]`, for `by_size("query")`.
      traits: `[T]`, what the rule's function of a task, if it has one, says of each.
      noise: `[T]`, the variance of each gradient over query examples, for `inverse_variance`.
      task_ids: integers `[T]`, for rules with one state per task.
      key: random key, for rules that draw; consumed.
      state: the rule's state, from `aggregation.init()` or the call before.

    Returns:
      The aggregated tree `[...]`; with `state` given, `(tree, state)`.

    Raises:
      ValueError: if shapes do not fit, weights are missing, not wanted or not allowed, or
        the meta-batch is too small for the rule.
      TypeError: if the aggregation is neither a name nor a rule, weights or mask are no
        array, a rule that draws at random has no key, or the rule returns something of the
        wrong structure or shape.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = {"w": jnp.array([[1.0, 0.0], [0.0, 1.0]])}
      >>> print(mj.aggregation.aggregate("mean", grads)["w"])
      [0.5 0.5]
    """
    rule = resolve(aggregation)
    num_tasks = _num_tasks(task_grads)
    check_weights(rule, num_tasks, weights=weights, mask=mask)
    if rule.level == Level.LOSS and losses is None:
        raise ValueError(f"aggregation {rule.name!r} needs the query losses: pass losses=.")
    if rule.trait is not None and traits is None:
        raise ValueError(f"aggregation {rule.name!r} needs what it asks of tasks: pass traits=.")
    if rule.splits_queries and noise is None:
        raise ValueError(f"aggregation {rule.name!r} needs the gradients' noise: pass noise=.")
    if rule.seed is not None and key is None:
        raise TypeError(f"aggregation {rule.name!r} draws at random: pass key=.")
    check_task_ids(rule, task_ids)
    evidence = Evidence(
        valid=valid_tasks(num_tasks, weights=weights, mask=mask),
        weights=weights,
        num_support=num_support,
        num_query=num_query,
        losses=losses,
        support_losses=support_losses,
        traits=traits,
        noise=noise,
        task_ids=task_ids,
        key=key,
    )
    before = rule.init() if state is None else state
    grads, _, after, _ = reduce_task_grads(rule, task_grads, evidence, before)
    return grads if state is None else (grads, after)


def valid_tasks(num_tasks: int, *, weights: jax.Array | None, mask: jax.Array | None) -> jax.Array:
    """Says which tasks count `[T]`: those neither masked nor of weight 0."""
    valid = jnp.ones(num_tasks, bool) if mask is None else jnp.asarray(mask, bool)
    return valid if weights is None else valid & (jnp.asarray(weights) != 0)


def check_weights(
    aggregation: Aggregation,
    num_tasks: int,
    *,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> None:
    """Refuses weights, masks and meta-batches that a rule cannot take.

    Values are checked where they are known, outside of compiled code and on no other machine;
    else only shapes.

    Args:
      aggregation: the rule.
      num_tasks: number `T` of tasks; static.
      weights: `[T]` or None.
      mask: `[T]` or None.

    Raises:
      TypeError: if weights or mask are no array.
      ValueError: with the rule, what was got and the remedy.
    """
    if num_tasks < aggregation.min_tasks:
        raise ValueError(
            f"aggregation {aggregation.name!r} needs at least {aggregation.min_tasks} tasks, "
            f"got a meta-batch of {num_tasks}."
        )
    if weights is not None and not aggregation.uses_weights:
        raise ValueError(
            f"aggregation {aggregation.name!r} does not use weights, but weights were given; use "
            "aggregation='weighted' or leave them out."
        )
    if weights is None and aggregation.needs_weights:
        raise ValueError(f"aggregation {aggregation.name!r} needs weights=, an array [T].")
    for name, values in (("weights", weights), ("mask", mask)):
        if isinstance(values, list | tuple):
            raise TypeError(f"{name} must be an array [T], got {values!r}; use jnp.asarray.")
        if values is not None and jnp.shape(values) != (num_tasks,):
            raise ValueError(
                f"{name} must have shape [T] = ({num_tasks},), got {jnp.shape(values)}."
            )
    if weights is None or not _is_known(weights):
        return
    known = np.asarray(weights)
    bad = np.flatnonzero(~(np.isfinite(known) & (known >= 0)))
    if len(bad):
        raise ValueError(
            f"weights must be finite and at least 0, got {known[bad[0]]} for task {bad[0]}."
        )
    if not known.any():
        raise ValueError("weights must not all be 0: no task would count.")


def check_task_ids(aggregation: Aggregation, task_ids: jax.Array | None) -> None:
    """Refuses tasks that do not say which they are, for a rule that remembers them.

    Args:
      aggregation: the rule.
      task_ids: integers `[T]`, or None.

    Raises:
      ValueError: if they are missing, or known and out of range.
    """
    count = aggregation.num_task_ids
    if count is None:
        return
    rule = f"aggregation {aggregation.name!r} keeps one state for each of {count} tasks"
    if task_ids is None:
        raise ValueError(
            f"{rule}: every task must say which it is, by Task(task_id=...) or task_ids= [T]."
        )
    if not _is_known(task_ids):
        return
    known = np.asarray(task_ids)
    bad = known[(known < 0) | (known >= count)]
    if bad.size:
        raise ValueError(f"{rule}: task ids must lie in [0, {count}), got {bad.flat[0]}.")


def _is_known(array: Any) -> bool:
    """Says whether this process can look at all values, now."""
    if isinstance(array, Tracer):
        return False
    return not isinstance(array, jax.Array) or (
        array.is_fully_addressable or array.is_fully_replicated
    )


def _num_tasks(task_grads: Any) -> int:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(task_grads)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            "task_grads must be a tree of arrays [T, ...] with one and the same T, got leading "
            f"axes {sorted(sizes)}."
        )
    (num_tasks,) = sizes.pop()
    if num_tasks == 0:
        raise ValueError("the meta-batch must hold at least 1 task, got 0.")
    return num_tasks
