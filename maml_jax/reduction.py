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
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maml_jax.aggregation import ladder
from maml_jax.aggregation.rule import Aggregation, Evidence, Level, State
from maml_jax.layout import Layout
from maml_jax.nonfinite import finite_losses
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
    """

    grads: Params
    aggregation_state: State
    metrics: dict[str, jax.Array]


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
    spread: dict[str, jax.Array]


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

    Returns:
      The aggregated gradient, the rule's next state, and the metrics.
    """
    if valid is None:
        valid = jnp.ones(num_tasks_of(tasks), bool)
    else:
        tasks = _replace_invalid(tasks, valid)
    evidence = Evidence(
        valid=valid,
        weights=weights,
        num_support=_sizes(tasks.support),
        num_query=_sizes(tasks.query),
    )
    path = (
        _contracted
        if aggregation.level <= Level.LOSS and not skip_nonfinite
        else functools.partial(_per_task, skip_nonfinite=skip_nonfinite)
    )
    parts = path(task_loss, params, tasks, aggregation, state, evidence, layout)
    metrics = {**_metrics(parts, valid), "side_by_side": jnp.asarray(layout.side_by_side)}
    return Reduced(grads=parts.grads, aggregation_state=parts.state, metrics=metrics)


def _contracted(task_loss, params, tasks, aggregation, state, evidence, layout) -> _Parts:
    """Takes the coefficients as the cotangent of the losses: one backward pass."""
    needs_losses = aggregation.level == Level.LOSS

    def decide(losses):
        seen = dataclasses.replace(evidence, losses=losses) if needs_losses else evidence
        return ladder.checked_coefficients(aggregation, seen, state)

    losses, task_metrics, grads = contracted_gradient(
        task_loss,
        params,
        tasks,
        lambda losses: decide(losses)[0],
        layout,
        needs_losses=needs_losses,
    )
    coefficients, state = decide(losses)
    return _Parts(
        losses=losses,
        task_metrics=task_metrics,
        grads=grads,
        coefficients=coefficients,
        state=state,
        finite=finite_losses(losses, task_metrics),
        evidence=evidence,
        spread={},
    )


def _per_task(
    task_loss, params, tasks, aggregation, state, evidence, layout, *, skip_nonfinite
) -> _Parts:
    """Holds the gradient of every task, then reduces."""
    losses, task_metrics, task_grads = task_gradients(task_loss, params, tasks, layout)
    finite = finite_losses(losses, task_metrics) & jnp.isfinite(ladder.sq_norms(task_grads))
    evidence = dataclasses.replace(evidence, losses=losses)
    if skip_nonfinite:
        evidence = dataclasses.replace(evidence, valid=evidence.valid & finite)
    grads, coefficients, state = ladder.reduce_task_grads(aggregation, task_grads, evidence, state)
    spread = _spread(task_grads, evidence.valid) if aggregation.level >= Level.NORMS else {}
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


def _metrics(parts: _Parts, asked: jax.Array) -> dict[str, jax.Array]:
    """Averages what tasks report over those that count, whatever the aggregation."""
    valid = parts.evidence.valid
    count = jnp.maximum(valid.sum(), 1)

    def average(values):
        flags = valid.reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(flags, values, 0).sum(axis=0) / count

    # Added up as floats, exactly below 2**24, so that devices exchange it with the other sums.
    nonfinite = (asked & ~parts.finite).sum(dtype=jnp.float32).astype(int)
    grad_norm = optax.tree.norm(parts.grads)
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
        **parts.spread,
    }


def _spread(task_grads: Any, valid: jax.Array) -> dict[str, jax.Array]:
    """Measures how far the gradients of the valid tasks agree.

    With a = mean ‖gᵢ‖² and q = ‖mean gᵢ‖²: the gain r = a / q of AdaScale (Johnson et al.,
    ICML 2020), the divisor D = n / r that it means for the sum (n for identical gradients,
    1 for orthogonal ones), and the coherence (D - 1) / (n - 1), the mean inner product of
    two different tasks over the mean square.
    """
    task_grads = ladder.zero_invalid(task_grads, valid)
    count = jnp.maximum(valid.sum(), 1)
    average = ladder.contract(valid / count, task_grads)
    mean_square = ladder.sq_norms(task_grads).sum() / count
    square_mean = sum(
        jnp.square(leaf.astype(mean_square.dtype)).sum() for leaf in jax.tree.leaves(average)
    )
    gain = jnp.where(
        mean_square > 0, mean_square / jnp.where(square_mean > 0, square_mean, 0.0), 1.0
    )
    divisor = count / gain
    coherence = jnp.where(count > 1, (divisor - 1) / jnp.maximum(count - 1, 1), 1.0)
    return {"gain": gain, "divisor": divisor, "coherence": coherence}


def _replace_invalid(tasks: Task, valid: jax.Array) -> Task:
    """Puts a valid task's data in place of each invalid task's.

    Its coefficient is 0, and 0 times a finite gradient is 0, whatever the padding holds.
    """
    index = jnp.where(valid, jnp.arange(len(valid)), jnp.argmax(valid))
    return jax.tree.map(lambda leaf: leaf[index], tasks)


def _sizes(examples: Examples) -> jax.Array:
    """Counts the unmasked examples of each task `[T]`."""
    if examples.mask is not None:
        return examples.mask.sum(axis=1)
    num_tasks, num_examples = jax.tree.leaves(examples.inputs)[0].shape[:2]
    return jnp.full(num_tasks, num_examples)
