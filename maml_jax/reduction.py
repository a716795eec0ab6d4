"""From a meta-batch to one gradient: the three code paths of the ladder.

    STATIC, LOSS    one backward pass; the coefficients are its cotangent
    NORMS, GRAM     per-task gradients, then one contraction
    FULL            per-task gradients, then the rule itself

Leaving out tasks whose gradient is not finite needs per-task gradients at any level:
0 · NaN is NaN, so a masked loss still has a NaN gradient.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from maml_jax import placement, stand_ins
from maml_jax.aggregation import ladder
from maml_jax.aggregation.resolve import check_task_ids
from maml_jax.aggregation.rule import Aggregation, Evidence, Level, State
from maml_jax.layout import Layout
from maml_jax.nonfinite import finite_losses
from maml_jax.query_halves import noisy_task_gradients
from maml_jax.spread import Spread, spread_of
from maml_jax.task_axis import contracted_gradient, task_gradients
from maml_jax.tasks import Examples, Params, Task, num_tasks_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reduced:
    """What the reduction of one meta-batch gives.

    Attributes:
      grads: the aggregated meta-gradient, a tree like the meta-parameters.
      aggregation_state: the rule's next state.
      metrics: scalars, see `maml_jax.make_outer_step`.
      evidence: what was known of the tasks apart from their gradients.
      spread: how far the gradients agree, if they were held.
    """

    grads: Params
    aggregation_state: State
    metrics: dict[str, jax.Array]
    evidence: Evidence
    spread: Spread | None

    @property
    def counted_spread(self) -> Spread:
        """The spread; where gradients were not held, of as many identical ones."""
        if self.spread is not None:
            return self.spread
        one = jnp.ones(())
        return Spread(num_tasks=self.evidence.num_valid, mean_square=one, square_mean=one)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Parts:
    """What either code path knows at its end: per-task facts and the result."""

    losses: jax.Array
    task_metrics: dict[str, jax.Array]
    grads: Params
    coefficients: jax.Array | None
    state: State
    finite: jax.Array
    evidence: Evidence
    spread: Spread | None


def reduce_meta_batch(
    task_loss: Callable,
    params: Params,
    tasks: Task,
    *,
    aggregation: Aggregation,
    state: State,
    valid: jax.Array | None,
    weights: jax.Array | None,
    layout: Layout,
    skip_nonfinite: bool,
    step: jax.Array | int = 0,
    measures_spread: bool = False,
) -> Reduced:
    """Computes the aggregated meta-gradient of a meta-batch.

    Args:
      task_loss: `(params, task) -> (loss, metrics)` for one task.
      params: the meta-parameters.
      tasks: a meta-batch `[T, ...]`.
      aggregation: the rule.
      state: the rule's state.
      valid: booleans `[T]`, or None if every task counts.
      weights: `[T]` or None.
      layout: where and how the tasks run; static.
      skip_nonfinite: leave out tasks whose loss or gradient is not finite; static.
      step: number of the outer step, for rules that draw at random.
      measures_spread: measure how far gradients agree whatever the rule's level; static.

    Returns:
      The aggregated gradient, the rule's next state, and the metrics.

    Raises:
      ValueError: if the rule needs to know which tasks these are, and they do not say.
    """
    evidence = _evidence(aggregation, tasks, valid, weights, step)
    evidence = placement.known_everywhere(evidence, layout.mesh)
    if valid is not None:
        tasks = _replace_invalid(tasks, valid)
    lone = aggregation.level <= Level.LOSS and not (skip_nonfinite or measures_spread)
    path = _contracted
    if not lone:
        path = functools.partial(
            _per_task, skip_nonfinite=skip_nonfinite, measures_spread=measures_spread
        )
    parts = path(task_loss, params, tasks, aggregation, state, evidence, layout)
    if valid is not None:
        parts = dataclasses.replace(parts, grads=_nothing_of_none(parts.grads, valid))
    metrics = {**_metrics(parts, evidence.valid), "side_by_side": jnp.asarray(layout.side_by_side)}
    return Reduced(
        grads=placement.keep_in_place(parts.grads, layout.mesh),
        aggregation_state=parts.state,
        metrics=metrics,
        evidence=parts.evidence,
        spread=parts.spread,
    )


def _contracted(task_loss, params, tasks, aggregation, state, evidence, layout) -> _Parts:
    """Takes the coefficients as the cotangent of the losses: one backward pass."""

    def decide(known, *seen):
        evidence, state = known
        if seen:
            evidence = _with_losses(evidence, *seen)
        return ladder.checked_coefficients(aggregation, evidence, state)

    losses, task_metrics, grads, (coefficients, state) = contracted_gradient(
        task_loss,
        params,
        tasks,
        decide,
        (evidence, state),
        layout,
        needs_losses=aggregation.level == Level.LOSS,
    )
    return _Parts(
        losses=losses,
        task_metrics=task_metrics,
        grads=grads,
        coefficients=coefficients,
        state=state,
        finite=finite_losses(losses, task_metrics),
        evidence=evidence,
        spread=None,
    )


def _per_task(
    task_loss,
    params,
    tasks,
    aggregation,
    state,
    evidence,
    layout,
    *,
    skip_nonfinite,
    measures_spread,
) -> _Parts:
    """Holds the gradient of every task, then reduces."""
    if aggregation.splits_queries:
        seen = noisy_task_gradients(task_loss, params, tasks, layout, valid=evidence.valid)
        losses, task_metrics, task_grads, noise = seen
        evidence = dataclasses.replace(evidence, noise=noise)
    else:
        losses, task_metrics, task_grads = task_gradients(task_loss, params, tasks, layout)
    if aggregation.level >= Level.GRAM:
        task_grads = placement.by_coordinate(task_grads, layout.mesh)
    sq_norms = placement.known_everywhere(ladder.sq_norms(task_grads), layout.mesh)
    finite = finite_losses(losses, task_metrics) & jnp.isfinite(sq_norms)
    losses, task_metrics = placement.known_everywhere((losses, task_metrics), layout.mesh)
    evidence = _with_losses(evidence, losses, task_metrics)
    if skip_nonfinite:
        evidence = dataclasses.replace(evidence, valid=evidence.valid & finite)
    grads, coefficients, state, evidence = ladder.reduce_task_grads(
        aggregation, task_grads, evidence, state
    )
    if aggregation.level >= Level.GRAM:
        # Else XLA gathers the gradients of all tasks to contract them, rather than the result.
        grads = placement.by_coordinate(grads, layout.mesh, leading=0)
    measures_spread |= aggregation.level >= Level.NORMS
    spread = spread_of(task_grads, evidence.valid) if measures_spread else None
    return _Parts(
        losses=losses,
        task_metrics=task_metrics,
        grads=grads,
        coefficients=coefficients,
        state=state,
        finite=finite,
        evidence=evidence,
        spread=spread,
    )


def _evidence(aggregation, tasks, valid, weights, step) -> Evidence:
    """Gathers what a rule may look at before any loss."""
    check_task_ids(aggregation, tasks.task_id)
    seed, trait = aggregation.seed, aggregation.trait
    return Evidence(
        valid=jnp.ones(num_tasks_of(tasks), bool) if valid is None else valid,
        weights=weights,
        num_support=_sizes(tasks.support),
        num_query=_sizes(tasks.query),
        task_ids=tasks.task_id,
        traits=None if trait is None else jax.vmap(trait)(tasks),
        key=None if seed is None else jax.random.fold_in(jax.random.key(seed), step),
    )


def _with_losses(evidence: Evidence, losses: jax.Array, task_metrics: dict) -> Evidence:
    support_losses = task_metrics.get("support_loss")
    return dataclasses.replace(evidence, losses=losses, support_losses=support_losses)


def _metrics(parts: _Parts, asked: jax.Array) -> dict[str, jax.Array]:
    """Averages what tasks report over those that count, whatever the aggregation."""
    valid = parts.evidence.valid
    count = jnp.maximum(valid.sum(), 1)

    def average(values):
        flags = valid.reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(flags, values, 0).sum(axis=0) / count

    # Added up as floats, exactly below 2**24, so that devices exchange it with the other sums.
    nonfinite = (asked & ~parts.finite).sum(dtype=jnp.float32).astype(int)
    grad_norm = ladder.norm(parts.grads)
    # A task with a finite loss may have a gradient that is not; only the sum shows it here.
    nonfinite = jnp.where(jnp.isfinite(grad_norm), nonfinite, jnp.maximum(nonfinite, 1))
    weights = valid.astype(float) if parts.coefficients is None else parts.coefficients
    squares = jnp.square(weights).sum()
    return {
        **{name: average(values) for name, values in parts.task_metrics.items()},
        "query_loss": average(parts.losses),
        "grad_norm": grad_norm,
        "n_valid": valid.sum(),
        "n_nonfinite": nonfinite,
        "effective_tasks": jnp.square(weights.sum()) / jnp.where(squares > 0, squares, 1),
        **_spread_metrics(parts.spread),
    }


def _spread_metrics(spread: Spread | None) -> dict[str, jax.Array]:
    if spread is None:
        return {}
    return {"gain": spread.gain, "divisor": spread.divisor, "coherence": spread.coherence}


def _replace_invalid(tasks: Task, valid: jax.Array) -> Task:
    """Puts a valid task's data in place of each invalid task's.

    Its coefficient is 0, and 0 times a finite gradient is 0, whatever the padding holds.
    """
    first = jnp.arange(len(valid)) == jnp.argmax(valid)
    return stand_ins.put_one_for_others(tasks, valid, first)


def _nothing_of_none(grads: Params, valid: jax.Array) -> Params:
    """Gives 0 where no task counts: none could stand in for those that hold what they like."""
    return jax.tree.map(lambda g: jnp.where(valid.any(), g, jnp.zeros_like(g)), grads)


def _sizes(examples: Examples) -> jax.Array:
    """Counts the unmasked examples of each task `[T]`."""
    if examples.mask is not None:
        return examples.mask.sum(axis=1)
    num_tasks, num_examples = jax.tree.leaves(examples.inputs)[0].shape[:2]
    return jnp.full(num_tasks, num_examples)
