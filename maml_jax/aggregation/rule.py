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
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from maml_jax.tasks import Task


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
      support_losses: support losses before adaptation `[T]`, or None; from LOSS up.
      traits: what the rule's `trait` says of each task `[T]`, or None.
      sq_norms: ‖gᵢ‖² `[T]`; from NORMS up.
      gram: ⟨gᵢ, gⱼ⟩ `[T, T]`; from GRAM up. Rows and columns of invalid tasks are 0.
      noise: the variance of each gradient over query examples `[T]`, as estimated from two
        halves of them, for rules that split queries; or None.
      task_ids: integers `[T]`, which task or group of a finite pool each one is, or None.
      key: random key of this step, for rules with a seed, or None.

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
    support_losses: jax.Array | None = None
    traits: jax.Array | None = None
    sq_norms: jax.Array | None = None
    gram: jax.Array | None = None
    noise: jax.Array | None = None
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
      scale: what identical gradients g give: "mean" g, "sum" n g for n valid tasks. A
        rule computes the former; see `on_sum_scale`.
      uses_weights: whether the caller's weights enter; weights are refused otherwise.
      needs_weights: whether they must be given.
      min_tasks: the smallest meta-batch for which the rule is defined.
      num_task_ids: for a rule that remembers something of each task of a finite pool, their
        number; every task must then say which it is, by `Task.task_id`.
      seed: of a rule that draws at random: step s has the key `fold_in(key(seed), s)`.
      trait: `task -> scalar`, computed for each task and given to the rule.
      splits_queries: whether the rule needs the noise of each gradient: gradients are then
        computed on two halves of the query set, at about twice the cost.

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
    scale: Literal["mean", "sum"] = "mean"
    uses_weights: bool = False
    needs_weights: bool = False
    min_tasks: int = 1
    num_task_ids: int | None = None
    seed: int | None = None
    trait: Callable[[Task], jax.Array] | None = None
    splits_queries: bool = False

    def __post_init__(self):
        full = self.level == Level.FULL
        if (self.combine is not None) != full or (self.coefficients is not None) == full:
            raise ValueError(
                "an aggregation of level FULL must have `combine` only, any other "
                f"`coefficients` only; check {self.name!r} of level {self.level.name}."
            )
        if self.scale not in ("mean", "sum"):
            raise ValueError(f"scale must be 'mean' or 'sum', got {self.scale!r}.")

    def on_sum_scale(self) -> "Aggregation":
        """Gives the same rule times the number of valid tasks, as "sum" is to "mean".

        Example:
          >>> import jax.numpy as jnp
          >>> import maml_jax as mj
          >>> rule = mj.aggregation.norm_clipped().on_sum_scale()
          >>> print(mj.aggregation.aggregate(rule, jnp.ones((4, 1))))
          [4.]
        """
        if self.scale == "sum":
            return self
        return dataclasses.replace(self, scale="sum", name=f"{self.name} on the scale of the sum")
