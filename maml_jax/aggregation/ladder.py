"""What the ladder of `maml_jax.aggregation.rule` computes from per-task gradients."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Evidence, Level, State


def sq_norms(task_grads: Any) -> jax.Array:
    """Computes ‖gᵢ‖² `[T]` of a tree of per-task gradients `[T, ...]`, in float32 or more."""

    def squares(g):
        return jnp.square(wide(g)).sum(axis=_coordinates(g))

    return functools.reduce(jnp.add, [squares(g) for g in jax.tree.leaves(task_grads)])


def norm(grads: Any) -> jax.Array:
    """Computes ‖g‖ of one tree, in float32 or more."""
    return jnp.sqrt(sq_norms(jax.tree.map(lambda g: g[None], grads))[0])


def gram(task_grads: Any) -> jax.Array:
    """Computes ⟨gᵢ, gⱼ⟩ `[T, T]` of a tree `[T, ...]`, leaf by leaf, in float32 or more."""

    def products(g):
        rows, axes = wide(g), _coordinates(g)
        return jnp.tensordot(rows, rows, axes=(axes, axes), precision="highest")

    return functools.reduce(jnp.add, [products(g) for g in jax.tree.leaves(task_grads)])


def contract(coefficients: jax.Array, task_grads: Any) -> Any:
    """Computes Σᵢ cᵢ gᵢ over the task axis alone, leaf by leaf, in each leaf's dtype."""
    return jax.tree.map(
        lambda g: jnp.tensordot(
            coefficients.astype(wide(g).dtype), wide(g), axes=1, precision="highest"
        ).astype(g.dtype),
        task_grads,
    )


def zero_invalid(task_grads: Any, valid: jax.Array) -> Any:
    """Sets the gradients of invalid tasks to 0, since 0 · NaN is NaN."""

    def keep(g):
        return jnp.where(valid.reshape(-1, *[1] * (g.ndim - 1)), g, jnp.zeros_like(g))

    return jax.tree.map(keep, task_grads)


def reduce_task_grads(
    aggregation: Aggregation, task_grads: Any, evidence: Evidence, state: State
) -> tuple[Any, jax.Array | None, State, Evidence]:
    """Applies a rule to per-task gradients that are held.

    Args:
      aggregation: the rule, of any level.
      task_grads: tree `[T, ...]`; what invalid tasks hold is ignored.
      evidence: what is known apart from the gradients.
      state: the rule's state.

    Returns:
      The aggregated tree `[...]`, the coefficients `[T]` (None for FULL), the state, and the
      evidence with what the rule's level adds.

    Raises:
      TypeError: if the rule returns something of the wrong structure or shape.
    """
    task_grads = zero_invalid(task_grads, evidence.valid)
    if aggregation.level >= Level.NORMS:
        evidence = dataclasses.replace(evidence, sq_norms=sq_norms(task_grads))
    if aggregation.level >= Level.GRAM:
        evidence = dataclasses.replace(evidence, gram=gram(task_grads))
    if aggregation.combine is not None:
        result = aggregation.combine(task_grads, evidence, state)
        grads, state = _as_pair(aggregation, "gradient", result)
        _check_combined(aggregation, grads, task_grads)
        if aggregation.scale == "sum":
            grads = jax.tree.map(lambda g: (g * evidence.num_valid).astype(g.dtype), grads)
        return grads, None, state, evidence
    coefficients, state = checked_coefficients(aggregation, evidence, state)
    return contract(coefficients, task_grads), coefficients, state, evidence


def checked_coefficients(
    aggregation: Aggregation, evidence: Evidence, state: State
) -> tuple[jax.Array, State]:
    """Asks a rule for its coefficients, as constants, 0 for invalid tasks.

    Args:
      aggregation: a rule below FULL.
      evidence: what its level needs.
      state: the rule's state.

    Returns:
      Coefficients `[T]` and the next state.

    Raises:
      TypeError: if the coefficients are not of shape `[T]`, or come without the state.
    """
    evidence = jax.lax.stop_gradient(evidence)
    assert aggregation.coefficients is not None  # Only FULL has none, see __post_init__.
    result = aggregation.coefficients(evidence, state)
    coefficients, state = _as_pair(aggregation, "coefficients", result)
    if jnp.shape(coefficients) != evidence.valid.shape:
        raise TypeError(
            f"aggregation {aggregation.name!r} must return coefficients of shape [T] = "
            f"{evidence.valid.shape}, got {jnp.shape(coefficients)}."
        )
    if aggregation.scale == "sum":
        coefficients = coefficients * evidence.num_valid
    return jnp.where(evidence.valid, jax.lax.stop_gradient(coefficients), 0), state


def _as_pair(aggregation: Aggregation, first: str, result: Any) -> tuple[Any, State]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"aggregation {aggregation.name!r} must return a pair ({first}, state), got "
            f"{type(result).__name__}; a rule without a state returns its argument `state`."
        )
    return result


def _check_combined(aggregation: Aggregation, grads: Any, task_grads: Any) -> None:
    got = jax.tree.map(jnp.shape, grads)
    want = jax.tree.map(lambda g: g.shape[1:], task_grads)
    if got != want:
        raise TypeError(
            f"aggregation {aggregation.name!r} must return one gradient without the task axis, "
            f"of shapes {want}, got {got}."
        )


def _coordinates(task_grad: jax.Array) -> tuple[int, ...]:
    """Gives the axes behind the task axis.

    Made one by a reshape, an axis that devices share would be gathered on each of them first.
    """
    return tuple(range(1, task_grad.ndim))


def wide(array: jax.Array) -> jax.Array:
    """Widens half precisions, in which norms and sums overflow, to float32."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
