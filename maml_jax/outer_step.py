"""The outer step: adapt to every task, reduce their gradients, update; compiled once."""

from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh

from maml_jax import checks, devices, gains
from maml_jax.aggregation import Aggregation, resolve
from maml_jax.aggregation.resolve import check_task_ids, check_weights, valid_tasks
from maml_jax.gains import Gain
from maml_jax.gradients import traced_once
from maml_jax.inner_loop import InnerLoop
from maml_jax.layout import TaskAxis, check_task_axis
from maml_jax.losses import LossFn
from maml_jax.nonfinite import NonFiniteTaskError, make_explain
from maml_jax.outer_programs import OBSERVER, OuterPrograms
from maml_jax.outer_state import OuterState, OuterStep, check_state
from maml_jax.tasks import num_tasks_of

ON_NONFINITE = ("raise", "skip", "propagate")


def make_outer_step(
    loss_fn: LossFn,
    inner: InnerLoop,
    optimizer: optax.GradientTransformation,
    *,
    aggregation: str | Aggregation = "mean",
    gain: Gain | None = None,
    task_axis: TaskAxis = "auto",
    mesh: Mesh | None = None,
    on_nonfinite: str = "raise",
) -> OuterStep:
    """Builds the compiled outer step.

    For a meta-batch of T tasks with adaptation A it computes

        gᵢ = ∇ ℓ(A(θ, supportᵢ), queryᵢ),   θ ← optimizer(θ, aggregation(g₁…g_T)).

    Compiled at the first call, and again only for other shapes. Metrics are scalars:
    `query_loss` and what `loss_fn` reports, after adaptation, and `support_loss`, before
    it, averaged over the tasks that count, whatever the aggregation; `grad_norm`;
    `n_valid`, the number of tasks that count (not masked, weight not 0, not skipped);
    `n_nonfinite`; `effective_tasks`, (Σc)²/Σc² of the coefficients; and, for aggregations
    from level NORMS up, `gain`, `divisor` and `coherence` (see `maml_jax.spread`); with a gain
    `step_factor` and `progress`;
    `side_by_side`, how many tasks each device ran at once. When no task counts, parameters
    and optimizer state stay as they are.

    Args:
      loss_fn: loss of parameters on one set of examples, a scalar, or a scalar and a dict
        of scalars. Average it over the examples.
      inner: the inner loop, such as `maml(optax.sgd(0.4), num_steps=1)`.
      optimizer: the outer optimizer, any optax transformation; it is also given the query
        loss as `value`, for those that ask.
      aggregation: "mean", "sum", "weighted", or a value of `maml_jax.aggregation`.
      gain: how far a step goes for the number of tasks, a value of `maml_jax.gains`; it
        multiplies the optimizer's update. None leaves it as it is.
      task_axis: "vmap" runs all tasks side by side, "scan" one after the other, a number
        so many at a time. "auto" takes as many as fit in an accelerator's memory;
        on a CPU one at a time if they are large (`maml_jax.layout`). It changes speed and
        memory, never the result. Processes of unlike memory or devices need a number here, the
        same for all.
      mesh: devices that share the tasks, with an axis "tasks"; where its size does not divide T
        the last ones have fewer. With an axis "model" too, parameters and optimizer state are
        split over it. None is the default device.
      on_nonfinite: what to do with a task whose loss or gradient is not finite. "raise":
        no update, and `NonFiniteTaskError`; inside compiled code, where nothing can be
        raised, the state stays as it is and `n_nonfinite` tells. It waits for each step's
        result. "skip": leave the task out, which needs per-task gradients; a sum of finite
        gradients that overflows is no update. "propagate": compute on.

    Returns:
      `OuterStep(init, update, gradient, evidence, explain, fits_one_core, optimizer, mesh)`.

    Raises:
      TypeError: if an argument is of the wrong kind.
      ValueError: if a choice is unknown; in `update`, if a meta-batch is malformed.

    References:
      Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
      Networks", ICML 2017, algorithm 1; https://arxiv.org/abs/1703.03400

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import maml_jax as mj
      >>> model = mj.models.Mlp(features=(40, 40, 1))
      >>> loss_fn = mj.losses.regression(model.apply)
      >>> inner = mj.maml(optax.sgd(0.01), num_steps=1)
      >>> outer = mj.make_outer_step(loss_fn, inner, optax.adam(1e-3), aggregation="mean")
      >>> tasks = mj.meta_batch(mj.data.sinusoid(), jax.random.key(0), 4)
      >>> state = outer.init(model.init(jax.random.key(1), jnp.zeros((1, 1))))
      >>> state, metrics = outer.update(state, tasks)
      >>> int(state.step), int(metrics["n_valid"])
      (1, 4)
    """
    _check_arguments(loss_fn, inner, optimizer, task_axis, on_nonfinite)
    devices.check_mesh(mesh)
    rule = resolve(aggregation)
    programs = OuterPrograms(
        loss_fn=traced_once(loss_fn),
        inner=inner,
        optimizer=optax.with_extra_args_support(optimizer),
        rule=rule,
        gain=gains.for_optimizer(gain, optimizer),
        task_axis=task_axis,
        mesh=mesh,
        on_nonfinite=on_nonfinite,
    )
    compiled_reduce, compiled_update = jax.jit(programs.reduce), jax.jit(programs.update)
    compiled_observe = jax.jit(programs.observe, static_argnames="noise")
    explain = make_explain(inner, loss_fn)

    def init(params):
        checks.check_params(params)
        return programs.init(params)

    def raise_if_asked(state, tasks, weights, mask, metrics):
        def find():
            valid = valid_tasks(num_tasks_of(tasks), weights=weights, mask=mask)
            return explain(state.params, tasks, valid)

        if on_nonfinite == "raise" and not checks.is_traced(metrics):
            raise_if_nonfinite(find, state, metrics["n_nonfinite"])

    def update(state, tasks, *, weights=None, mask=None):
        _check_call(state, tasks, rule, weights, mask)
        new_state, metrics = compiled_update(state, tasks, weights, mask)
        raise_if_asked(state, tasks, weights, mask, metrics)
        return new_state, metrics

    def gradient(state, tasks, *, weights=None, mask=None):
        _check_call(state, tasks, rule, weights, mask)
        reduced = compiled_reduce(state, tasks, weights, mask)
        raise_if_asked(state, tasks, weights, mask, reduced.metrics)
        return reduced.grads, reduced.metrics

    def evidence(state, tasks, *, mask=None, noise=False):
        _check_call(state, tasks, OBSERVER, None, mask)
        return compiled_observe(state, tasks, mask, noise=noise)

    return OuterStep(
        init=init,
        update=update,
        gradient=gradient,
        evidence=evidence,
        explain=explain,
        fits_one_core=programs.fits_one_core,
        optimizer=programs.optimizer,
        mesh=mesh,
    )


def raise_if_nonfinite(
    find: Callable[[], tuple[list[int], str]], state: OuterState, n_nonfinite: jax.Array
) -> None:
    """Raises the error that names the tasks that are not finite, if there are any.

    Args:
      find: gives their positions and the reason; called only if needed.
      state: the state before the step.
      n_nonfinite: how many tasks the step found not finite.

    Raises:
      NonFiniteTaskError: if `n_nonfinite` is above 0.
    """
    if int(n_nonfinite) == 0:
        return
    indices, reason = find()
    raise NonFiniteTaskError(step=int(state.step), task_indices=indices, reason=reason, state=state)


def _check_call(state, tasks, rule, weights, mask) -> None:
    check_state(state)
    checks.check_meta_batch(tasks)
    checks.warn_rounded(tasks)
    check_weights(rule, num_tasks_of(tasks), weights=weights, mask=mask)
    check_task_ids(rule, tasks.task_id)


def _check_arguments(loss_fn, inner, optimizer, task_axis, on_nonfinite) -> None:
    if not callable(loss_fn):
        raise TypeError(
            "loss_fn must be a function (params, examples) -> scalar, got "
            f"{type(loss_fn).__name__}."
        )
    if not isinstance(inner, InnerLoop):
        raise TypeError(
            "inner must be an InnerLoop such as maml(optax.sgd(0.4), num_steps=1), got "
            f"{type(inner).__name__}."
        )
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "optimizer must be an optax transformation such as optax.adam(1e-3), got "
            f"{type(optimizer).__name__}."
        )
    check_task_axis(task_axis)
    checks.check_choice("on_nonfinite", on_nonfinite, ON_NONFINITE)
