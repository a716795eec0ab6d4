"""What a user is told when a task's loss or gradient is not finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from maml_jax.aggregation.ladder import norm
from maml_jax.inner_loop import InnerLoop, task_loss
from maml_jax.layout import Layout
from maml_jax.losses import LossFn
from maml_jax.task_axis import map_tasks
from maml_jax.tasks import Params, Task

Explain = Callable[..., tuple[list[int], str]]
"""From meta-parameters, a meta-batch and what counts in it to the tasks not finite, and why."""


class NonFiniteTaskError(FloatingPointError):
    """A task of a meta-batch had a loss or gradient that is not finite.

    The update was not made.

    Attributes:
      step: the outer step at which it happened.
      task_indices: positions of those tasks in the meta-batch.
      state: the `OuterState` before that step.

    Example:
      >>> from maml_jax import NonFiniteTaskError
      >>> NonFiniteTaskError(step=3, task_indices=[1], reason="why", state=None).step
      3
    """

    def __init__(self, *, step: int, task_indices: list[int], reason: str, state: Any):
        super().__init__(
            f"outer step {step}: the loss or gradient of task {task_indices} of the meta-batch "
            f"is not finite: {reason} The parameters are unchanged; on_nonfinite='skip' leaves "
            "such tasks out."
        )
        self.step = step
        self.task_indices = task_indices
        self.state = state


def make_explain(inner: InnerLoop, loss_fn: LossFn) -> Explain:
    """Builds the function that finds which tasks are not finite, and why.

    It runs only after a failure, one task at a time, outside of the compiled step.

    Args:
      inner: the inner loop.
      loss_fn: loss of parameters on one set of examples.

    Returns:
      `explain(params, tasks, valid=None) -> (task indices, one sentence)`, of the tasks that
      booleans `valid` `[T]` say count; None is all.
    """

    def one(params, task):
        (loss, metrics), grads = jax.value_and_grad(
            lambda params: task_loss(inner, loss_fn, params, task), has_aux=True
        )(params)
        # The norm, for the step takes one whose square overflows for not finite too.
        return loss, metrics, norm(grads)

    @jax.jit
    def per_task(params, tasks):
        return map_tasks(one, params, tasks, Layout(side_by_side=1))

    def explain(params: Params, tasks: Task, valid: jax.Array | None = None):
        losses, metrics, norms = jax.device_get(per_task(params, tasks))
        finite = finite_losses(losses, metrics) & np.isfinite(norms)
        counts = True if valid is None else np.asarray(valid)
        bad = [int(index) for index in np.flatnonzero(~finite & counts)]
        if not bad:
            return bad, "only the sum over tasks overflows; scale the loss down."
        task = jax.tree.map(lambda leaf: leaf[bad[0]], tasks)
        start = metrics.get("support_loss")
        before = None if start is None else float(start[bad[0]])
        return bad, _reason(inner, loss_fn, params, task, before)

    return explain


def finite_losses(losses: jax.Array, task_metrics: dict[str, jax.Array]) -> jax.Array:
    """Says of each task `[T]` whether its query loss and its support loss are finite.

    A support set whose mask leaves no example has loss NaN with gradient 0: the query loss
    alone does not show that nothing was adapted.

    Args:
      losses: query losses `[T]`.
      task_metrics: what the tasks report, each `[T, ...]`.

    Returns:
      Booleans `[T]`.
    """
    return jnp.isfinite(losses) & jnp.isfinite(task_metrics.get("support_loss", losses))


def _reason(inner, loss_fn, params, task, support_loss) -> str:
    """Looks for the cause: a failed check, bad data, or an inner loop that diverged."""
    stages = {
        "support": lambda params, task: inner.adapt(loss_fn, params, task.support)[0],
        "query": lambda params, task: task_loss(inner, loss_fn, params, task)[0],
    }
    for name, stage in stages.items():
        error, _ = jax.jit(checkify.checkify(stage, errors=checkify.user_checks))(params, task)
        if error.get() is not None:
            return f"in its {name} set, {error.get().split(' (`check` failed)')[0]}"
    for path, leaf in jax.tree_util.tree_leaves_with_path(task):
        array = np.asarray(leaf)
        if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            name = jax.tree_util.keystr(path).lstrip(".")
            return f"its {name} hold {count} values that are nan or inf; clean or mask the data."
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(params)):
        return "the parameters themselves hold nan or inf; restart from an earlier state."
    for name in ("support", "query"):
        mask = getattr(task, name).mask
        if mask is not None and not np.asarray(mask).any():
            return f"its {name} mask leaves no example; mask the whole task instead."
    if support_loss is not None and np.isfinite(support_loss):
        return (
            f"its support loss starts at {support_loss:.4g} and its data are finite, so the inner "
            "loop diverged; lower the inner learning rate or clip the inner gradients."
        )
    return "its loss is not finite before adaptation; check loss_fn on this task."
