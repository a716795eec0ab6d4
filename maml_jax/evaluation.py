"""Evaluation as a protocol: a number, its interval, and how it was got, together.

The protocol moves few-shot results by points, so it travels with the number.
"""

import dataclasses
import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maml_jax import checks, devices, placement
from maml_jax.gradients import loss_and_metrics, traced_once
from maml_jax.inner_checks import check_count
from maml_jax.inner_loop import InnerLoop, MetaParams, query_loss
from maml_jax.layout import TaskAxis, check_task_axis, layout_of
from maml_jax.losses import LossFn
from maml_jax.task_axis import map_tasks
from maml_jax.tasks import Grouped, Sampler, as_key, draw_one, meta_batch

_NORMAL_95 = 1.959964  # Two-sided 95% quantile; the number of tasks is large.
_SIDE_BY_SIDE = 100  # Keeps memory flat when thousands of tasks are evaluated at once.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `evaluate`: means over tasks after each inner step, and the protocol.

    Attributes:
      means: of "loss" and each metric of the loss function, a mean per entry of
        `inner_steps`.
      half_widths: half of the 95% interval of each mean, 1.96 s / √tasks.
      inner_steps: after how many inner steps; 0 is before adaptation.
      num_tasks: number of tasks.
      num_support: support examples of a task, padding included.
      num_query: query examples of a task, padding included.
      transductive: whether query examples were normalised with their own statistics;
        False: with the support set's.
      seed: of the tasks.

    Example:
      >>> import maml_jax as mj
      >>> result = mj.Evaluation(
      ...     means={"loss": (2.0, 0.5)}, half_widths={"loss": (0.1, 0.05)}, inner_steps=(0, 1),
      ...     num_tasks=600, num_support=5, num_query=75, transductive=True, seed="0"
      ... )
      >>> result.headline()
      '0.5000 ± 0.0500'
    """

    means: dict[str, tuple[float, ...]]
    half_widths: dict[str, tuple[float, ...]]
    inner_steps: tuple[int, ...]
    num_tasks: int
    num_support: int
    num_query: int
    transductive: bool
    seed: str

    @property
    def metric(self) -> str:
        """Name of the headline metric: "accuracy" if it is reported, else "loss"."""
        return "accuracy" if "accuracy" in self.means else "loss"

    @property
    def mean(self) -> float:
        """The headline metric after the last inner step, averaged over tasks."""
        return self.means[self.metric][-1]

    @property
    def half_width(self) -> float:
        """Half of the 95% interval of `mean`."""
        return self.half_widths[self.metric][-1]

    @property
    def protocol(self) -> str:
        """How the number was got, in one line."""
        batch = "transductive" if self.transductive else "not transductive"
        return (
            f"{self.num_tasks:,} tasks, {self.num_support} support and {self.num_query} query "
            f"examples, {batch}, seed {self.seed}"
        )

    def as_dict(self) -> dict:
        """Gives everything as plain values for JSON."""
        return {**dataclasses.asdict(self), "metric": self.metric, "mean": self.mean}

    def __str__(self) -> str:
        steps = self.inner_steps[-1]
        after = f"after {steps} inner step{'' if steps == 1 else 's'}"
        return f"{self.metric} {self.headline()} {after} ({self.protocol})"

    def headline(self) -> str:
        """Gives mean ± half width, in percent if the metric is an accuracy."""
        if self.metric == "accuracy":
            return f"{100 * self.mean:.2f}% ± {100 * self.half_width:.2f}%"
        return f"{self.mean:.4f} ± {self.half_width:.4f}"


def evaluate(
    loss_fn: LossFn,
    inner: InnerLoop,
    params: MetaParams,
    sampler: Sampler,
    key: jax.Array,
    *,
    num_tasks: int = 600,
    num_steps: int | None = None,
    transductive: bool = True,
    task_axis: TaskAxis = "auto",
    mesh: Mesh | None = None,
) -> Evaluation:
    """Adapts to many tasks and averages what is measured on their query sets.

    Task i is `sampler(fold_in(key, i))`: two evaluations with one key see the same tasks. Of a
    `Grouped` sampler each is from a group of its own, so that the interval holds.

    Args:
      loss_fn: loss of parameters on one set of examples, with metrics.
      inner: the inner loop.
      params: the meta-parameters, `state.params`.
      sampler: a pure function from a key to one `Task`, or a `Grouped` one.
      key: random key, or an integer seed.
      num_tasks: how many tasks; at least 2.
      num_steps: inner steps at test time; those of `inner` by default.
      transductive: True: query examples are normalised together, as in the MAML paper.
        False: with the statistics of the support set, so that each is judged alone;
        `loss_fn` must then use `examples.reference`, as those of `maml_jax.losses` do.
      task_axis: as in `make_outer_step`; at most 100 tasks run side by side.
      mesh: devices that share the tasks, as in `make_outer_step`.

    Returns:
      An `Evaluation`: means and 95% intervals after 0, 1, …, `num_steps` inner steps.

    Raises:
      TypeError: if an argument is of the wrong kind, or the sampler does not give a `Task`.
      ValueError: if a number is too small, or if `transductive=False` and the loss of one
        query example still depends on the others.

    Warns:
      UserWarning: if the loss of a task is not finite; the means hold it all the same.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import maml_jax as mj
      >>> model = mj.models.Mlp(features=(8, 1))
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 1)))
      >>> result = mj.evaluate(
      ...     mj.losses.regression(model.apply), mj.maml(optax.sgd(0.01), 1), params,
      ...     mj.data.sinusoid(), key=0, num_tasks=20, num_steps=3
      ... )
      >>> result.inner_steps
      (0, 1, 2, 3)
    """
    check_count("num_tasks", num_tasks, at_least=2)
    check_task_axis(task_axis)
    devices.check_mesh(mesh)
    if num_steps is not None:
        check_count("num_steps", num_steps)
    key = as_key(key)
    sampler = checks.as_sampler(sampler)
    if isinstance(sampler, Grouped):
        sampler = dataclasses.replace(sampler, tasks_per_group=1)
    shapes = jax.eval_shape(lambda: meta_batch(sampler, key, num_tasks))
    checks.check_meta_batch(shapes)
    if not transductive:
        _check_judged_alone(loss_fn, inner, params, draw_one(sampler, key, 0))
    per_task = _measure(
        sampler,
        params,
        key,
        loss_fn=loss_fn,
        inner=inner,
        num_tasks=num_tasks,
        num_steps=num_steps,
        transductive=transductive,
        task_axis=task_axis,
        mesh=mesh,
    )
    values = {name: np.asarray(v, np.float64) for name, v in per_task.items()}
    _warn_nonfinite(values["loss"])
    last = len(values["loss"][0]) - 1
    data = jax.random.key_data(key).tolist()
    return Evaluation(
        means={name: tuple(v.mean(axis=0).tolist()) for name, v in values.items()},
        half_widths={name: _half_widths(v) for name, v in values.items()},
        inner_steps=tuple(range(last + 1)) if inner.observe else (last,),
        num_tasks=num_tasks,
        num_support=jax.tree.leaves(shapes.support.inputs)[0].shape[1],
        num_query=jax.tree.leaves(shapes.query.inputs)[0].shape[1],
        transductive=transductive,
        seed=str(data[-1] if not any(data[:-1]) else data),
    )


def _warn_nonfinite(losses: np.ndarray) -> None:
    """Warns of tasks whose loss `[tasks, inner steps + 1]` is not finite after some step."""
    bad = np.flatnonzero(~np.isfinite(losses).all(axis=1))
    if len(bad):
        warnings.warn(
            f"the loss of {len(bad)} of {len(losses)} tasks is not finite, the first being "
            f"sampler(fold_in(key, {bad[0]})), so the means are not to be trusted; check its data "
            "and labels, then lower the inner learning rate.",
            stacklevel=3,
        )


def _half_widths(values: np.ndarray) -> tuple[float, ...]:
    spread = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    return tuple((_NORMAL_95 * spread).tolist())


@functools.partial(
    jax.jit,
    static_argnames=(
        "loss_fn",
        "inner",
        "num_tasks",
        "num_steps",
        "transductive",
        "task_axis",
        "mesh",
    ),
)
def _measure(
    sampler, params, key, *, loss_fn, inner, num_tasks, num_steps, transductive, task_axis, mesh
):
    """Gives of each metric the values `[tasks, inner steps + 1]`."""
    loss_fn = traced_once(loss_fn)
    shapes = jax.eval_shape(lambda: meta_batch(sampler, key, num_tasks))
    adapted_loss = functools.partial(query_loss, inner, loss_fn)
    layout = layout_of(task_axis, adapted_loss, params, shapes, mesh=mesh)
    layout = dataclasses.replace(layout, side_by_side=min(layout.side_by_side, _SIDE_BY_SIDE))

    def one(shared, index):
        sampler, params, key = shared
        task = draw_one(sampler, key, index)
        return _after_each_step(loss_fn, inner, params, task, num_steps, transductive)

    values = map_tasks(one, (sampler, params, key), jnp.arange(num_tasks), layout)
    return placement.known_everywhere(values, mesh)


def _after_each_step(loss_fn, inner, params, task, num_steps, transductive):
    """Measures one task's query set before the first inner step and after each."""
    query = task.query
    if not transductive:
        query = dataclasses.replace(query, reference=task.support)

    def view(adapted):
        loss, metrics = loss_and_metrics(loss_fn, adapted, query)
        return {"loss": loss, **metrics}

    if inner.observe is not None:
        options = {} if num_steps is None else {"num_steps": num_steps}
        return inner.observe(loss_fn, params, task.support, view, **options)
    if num_steps is not None:
        raise ValueError(
            "num_steps can be changed only for an inner loop with an `observe` function; leave "
            "num_steps out or give the InnerLoop one."
        )
    adapted, _ = inner.adapt(loss_fn, params, task.support)
    return jax.tree.map(lambda value: jnp.asarray(value)[None], view(adapted))


def _check_judged_alone(loss_fn, inner, params, task) -> None:
    """Refuses a loss whose value on a query example depends on the other ones."""
    count = len(jax.tree.leaves(task.query.inputs)[0])
    if count < 2:
        return
    middle = count // 2
    loss_fn = traced_once(loss_fn)

    @jax.jit  # Op by op, this takes longer than the evaluation.
    def losses(params, task):
        adapted, _ = inner.adapt(loss_fn, params, task.support)

        def loss_of(part):
            query = jax.tree.map(lambda leaf: leaf[part], task.query)
            query = dataclasses.replace(query, reference=task.support)
            return loss_and_metrics(loss_fn, adapted, query)[0]

        return [loss_of(part) for part in (slice(middle), slice(middle, None), slice(None))]

    first, second, together = map(float, losses(params, task))
    apart = (middle * first + (count - middle) * second) / count
    masked = task.query.mask is not None
    if not masked and abs(together - apart) > 1e-3 * max(abs(together), 1e-3):
        raise ValueError(
            "transductive=False needs a loss that averages over query examples judged alone, but "
            f"it is {together:.6g} on all of them and {apart:.6g} on two halves; normalise with "
            "examples.reference, as maml_jax.losses.predict does."
        )
