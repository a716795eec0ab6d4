"""The ladder of aggregations: what a rule must know decides what the outer step computes.

An aggregation turns the gradients g₁…g_T of the tasks of a meta-batch into one. Every
rule says the least that it must know:

    STATIC  masks, weights and sizes      coefficients before any gradient
    LOSS    the query losses              coefficients after the forward pass
    NORMS   ‖gᵢ‖²                         per-task gradients are held once
    GRAM    ⟨gᵢ, gⱼ⟩                      per-task gradients are held once
    FULL    every coordinate              per-task gradients are held once

Up to GRAM the result is Σᵢ cᵢ gᵢ, and a rule is the function that gives the coefficients
c `[T]`: for STATIC and LOSS they are the cotangent of the vector of task losses, so one
backward pass is enough. A FULL rule maps the tree of per-task gradients itself.

Coefficients are constants: no derivative flows through them.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


class Level(enum.IntEnum):
    """What an aggregation must know, from least to most.

    Example:
      >>> from maml_jax import aggregation
      >>> aggregation.mean().level.name
      'STATIC'
    """

    STATIC = 0
    LOSS = 1
    NORMS = 2
    GRAM = 3
    FULL = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a rule may look at; a field is None where the rule's level does not reach.

    Attributes:
      valid: booleans `[T]`; the tasks that count. Coefficients of others are ignored.
      weights: the caller's weights `[T]`, or None.
      num_support: numbers `[T]` of unmasked support examples, or None.
      num_query: numbers `[T]` of unmasked query examples, or None.
      losses: query losses `[T]`; from LOSS up.
      sq_norms: ‖gᵢ‖² `[T]`; from NORMS up.
      gram: ⟨gᵢ, gⱼ⟩ `[T, T]`; from GRAM up. Rows and columns of invalid tasks are 0.
      task_ids: integers `[T]`, which task of a finite pool each one is, or None.
      key: random key of this step, or None.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.aggregation import Evidence
      >>> evidence = Evidence(valid=jnp.array([True, True, False]))
      >>> print(evidence.over_valid(jnp.ones(3), evidence.num_valid))
      [0.5 0.5 0. ]
    """

    valid: jax.Array
    weights: jax.Array | None = None
    num_support: jax.Array | None = None
    num_query: jax.Array | None = None
    losses: jax.Array | None = None
    sq_norms: jax.Array | None = None
    gram: jax.Array | None = None
    task_ids: jax.Array | None = None
    key: jax.Array | None = None

    @property
    def num_valid(self) -> jax.Array:
        """Number of tasks that count, over all chunks and devices."""
        return self.valid.sum()

    def over_valid(self, values: jax.Array, denominator: jax.Array) -> jax.Array:
        """Gives `values / denominator` for valid tasks, 0 for others, 0 where 0 / 0."""
        safe = jnp.where(denominator == 0, 1, denominator)
        return jnp.where(self.valid, values, 0) / safe


State = Any
"""What a rule remembers from step to step; `()` for most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aggregation:
    """One rule to reduce the task gradients of a meta-batch.

    Attributes:
      name: as in messages and metrics.
      level: the least that the rule must know.
      coefficients: `(evidence, state) -> (coefficients [T], state)`; None for FULL.
      combine: `(task_grads [T, ...], evidence, state) -> (grads [...], state)`; FULL only.
      init: gives the state before the first step.
      uses_weights: whether the caller's weights enter; weights are refused otherwise.
      needs_weights: whether they must be given.
      min_tasks: the smallest meta-batch for which the rule is defined.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> def first_only(evidence, state):
      ...     return jnp.zeros_like(evidence.losses).at[0].set(1.0), state
      >>> rule = mj.aggregation.Aggregation(
      ...     name="first", level=mj.aggregation.Level.LOSS, coefficients=first_only
      ... )
      >>> grads = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> print(mj.aggregation.aggregate(rule, grads, losses=jnp.array([0.1, 0.2])))
      [1. 2.]
    """

    name: str
    level: Level
    coefficients: Callable[[Evidence, State], tuple[jax.Array, State]] | None = None
    combine: Callable[[Any, Evidence, State], tuple[Any, State]] | None = None
    init: Callable[[], State] = tuple
    uses_weights: bool = False
    needs_weights: bool = False
    min_tasks: int = 1

    def __post_init__(self):
        full = self.level == Level.FULL
        if (self.combine is not None) != full or (self.coefficients is not None) == full:
            raise ValueError(
                "an aggregation of level FULL must have `combine` only, any other "
                f"`coefficients` only; check {self.name!r} of level {self.level.name}."
            )


def sq_norms(task_grads: Any) -> jax.Array:
    """Computes ‖gᵢ‖² `[T]` of a tree of per-task gradients `[T, ...]`, in float32 or more."""

    def squares(g):
        return jnp.square(_wide(g)).reshape(len(g), -1).sum(axis=1)

    return functools.reduce(jnp.add, [squares(g) for g in jax.tree.leaves(task_grads)])


def gram(task_grads: Any) -> jax.Array:
    """Computes ⟨gᵢ, gⱼ⟩ `[T, T]` of a tree `[T, ...]`, leaf by leaf, in float32 or more."""

    def products(g):
        rows = _wide(g).reshape(len(g), -1)
        return jnp.matmul(rows, rows.T, precision="highest")

    return functools.reduce(jnp.add, [products(g) for g in jax.tree.leaves(task_grads)])


def contract(coefficients: jax.Array, task_grads: Any) -> Any:
    """Computes Σᵢ cᵢ gᵢ over the task axis alone, leaf by leaf, in each leaf's dtype."""
    return jax.tree.map(
        lambda g: jnp.tensordot(
            coefficients.astype(_wide(g).dtype), _wide(g), axes=1, precision="highest"
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
) -> tuple[Any, jax.Array | None, State]:
    """Applies a rule to per-task gradients that are held.

    Args:
      aggregation: the rule, of any level.
      task_grads: tree `[T, ...]`; what invalid tasks hold is ignored.
      evidence: what is known apart from the gradients.
      state: the rule's state.

    Returns:
      The aggregated tree `[...]`, the coefficients `[T]` (None for FULL), the state.

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
        return grads, None, state
    coefficients, state = checked_coefficients(aggregation, evidence, state)
    return contract(coefficients, task_grads), coefficients, state


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


def _wide(array: jax.Array) -> jax.Array:
    """Widens half precisions, in which norms and sums overflow, to float32."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
