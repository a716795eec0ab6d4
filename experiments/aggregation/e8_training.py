"""MAML on images in lanes: several seeds or learning rates at once, each with tasks of its own.

In shapes, `L` is the number of lanes, `B` the tasks of a meta-batch, `T` the outer steps. The tasks
of step t come from the lane's seed and t alone: all arms and learning rates see the same ones.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maml_jax as mj
from maml_jax.inner_loop import query_loss

WAY, SHOT, QUERY_SHOT = 5, 1, 4
INNER_RATE = 1.0  # on the mean cross-entropy of the support set
GUESSING = math.log(WAY)  # a loss above it, or none, counts as guessing
SAMPLINGS = ("independent", "correlated")
HELD_OUT = {"meta_validation": 1, "meta_test": 2}  # seeds of the tasks that judge


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """Images, a model, and how much of everything.

    Attributes:
      name: as in results.
      splits: the classes.
      model: maps images `[N, H, W, 1]` to logits `[N, 5]`.
      flat: whether the model wants vectors.
      steps: outer steps at a meta-batch of 1.
      sizes: meta-batch sizes that the learning rate is carried to.
      lanes: number L of learning rates of a grid, and of reporting seeds.
      tuning_seeds: how many seeds choose the learning rate.
      held_out: tasks that judge.
    """

    name: str
    splits: mj.data.Splits
    model: Any
    flat: bool
    steps: int = 512
    sizes: tuple = (4, 16)
    lanes: int = 8
    tuning_seeds: int = 3
    held_out: int = 300

    @functools.cached_property
    def loss_fn(self):
        """Cross-entropy and accuracy of the model."""

        def apply(params, images, mask):
            images = images.reshape(len(images), -1) if self.flat else images
            return self.model.apply(params, images, mask)

        return mj.losses.classification(apply)

    def init(self, key):
        """Draws the parameters of the model."""
        image = jnp.zeros((1, *self.splits.meta_train.image_shape))
        return self.model.init(key, image.reshape(1, -1) if self.flat else image)


@functools.cache
def sampler_of(bench, sampling, num_tasks):
    """Tasks of one alphabet each: of one for the whole meta-batch, or each of its own."""
    shared = num_tasks if sampling == "correlated" else 1
    counts = {"way": WAY, "shot": SHOT, "query_shot": QUERY_SHOT}
    return mj.data.grouped_episodes(bench.splits.meta_train, **counts, tasks_per_group=shared)


@functools.cache
def judges_of(bench, part):
    """The fixed tasks `[held_out, ...]` of a split, independent, of mixed alphabets."""
    counts = {"way": WAY, "shot": SHOT, "query_shot": QUERY_SHOT}
    sampler = mj.data.episodes(getattr(bench.splits, part), **counts)
    return mj.meta_batch(sampler, HELD_OUT[part], bench.held_out)


def momentum(learning_rate, max_norm):
    """SGD with momentum 0.9, behind a clip of the global norm."""
    return optax.chain(optax.clip_by_global_norm(max_norm), optax.sgd(learning_rate, momentum=0.9))


def adam(learning_rate, max_norm):
    """Adam, behind a clip of the global norm."""
    return optax.chain(optax.clip_by_global_norm(max_norm), optax.adam(learning_rate))


# Name: (optimizer, power of AdaScale's gain, middle of the grid of learning rates at B = 1)
OPTIMIZERS = {"momentum": (momentum, 1.0, 0.01), "adam": (adam, 0.5, 0.003)}
ARMS = ("mean", "sum", "adascale")


class Arm(NamedTuple):
    """An outer step for all lanes, compiled.

    Attributes:
      outer: that of one lane.
      init: `keys [L] -> state`.
      advance: `(state, stopped, tasks, horizon) -> (state, stopped, metrics)`.
    """

    outer: mj.OuterStep
    init: Callable
    advance: Callable


@functools.cache
def arm_of(bench, optimizer, name):
    """Makes one of ARMS for an optimizer; its learning rates and thresholds are data."""
    transform, power, _ = OPTIMIZERS[optimizer]
    outer = mj.make_outer_step(
        bench.loss_fn,
        mj.maml(optax.sgd(INNER_RATE), num_steps=1),
        optax.inject_hyperparams(transform)(learning_rate=1.0, max_norm=math.inf),
        aggregation="sum" if name == "sum" else "mean",
        gain=mj.gains.adascale(power=power) if name == "adascale" else None,
        on_nonfinite="propagate",
    )

    def init(key):
        return outer.init(bench.init(jax.random.fold_in(key, 2**31)))

    def advance(state, stopped, tasks, horizon):
        progress = state.gain_state.progress if name == "adascale" else state.step
        running = progress < horizon
        new, metrics = jax.vmap(outer.update)(state, tasks)
        stopped = jax.tree.map(
            lambda a, b: jnp.where(running.reshape(-1, *[1] * (a.ndim - 1)), a, b),
            new.params,
            stopped,
        )
        seen = {"grad_norm": metrics["grad_norm"], "running": running}
        return new, stopped, {**seen, "factor": metrics.get("step_factor", jnp.ones(len(running)))}

    return Arm(outer, jax.jit(jax.vmap(init)), jax.jit(advance))


class Run(NamedTuple):
    """What training leaves.

    Attributes:
      states: {step: state of all lanes} at the marks.
      stopped: parameters when progress had reached the horizon.
      trace: {name: `[T, L]`}: norm of the aggregate, step factor, whether below the horizon.
    """

    states: dict
    stopped: Any
    trace: dict


def train(bench, arm, *, num_tasks, sampling, seeds, rates, **options):
    """Trains all lanes.

    Args:
      bench: the bench.
      arm: of `arm_of`.
      num_tasks: B.
      sampling: one of SAMPLINGS.
      seeds: integers `[L]`.
      rates: learning rates `[L]`.
      **options: `max_norm` of the clip (infinite), `steps` (those of the bench), `marks`: steps
        at which states are kept.

    Returns:
      A `Run`.
    """
    steps = options.get("steps", bench.steps)
    marks = options.get("marks", (steps // num_tasks, steps))
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    state = _begin(arm, keys, rates, options.get("max_norm", math.inf))
    sampler, stopped, seen = sampler_of(bench, sampling, num_tasks), state.params, []
    states = {0: state} if 0 in marks else {}
    for step in range(1, steps + 1):
        tasks = _draw(sampler, keys, step, num_tasks=num_tasks)
        state, stopped, metrics = arm.advance(state, stopped, tasks, bench.steps)
        seen.append(metrics)
        if step in marks:
            states[step] = state
    trace = jax.tree.map(lambda *values: np.stack(values), *jax.device_get(seen))
    return Run(states, stopped, trace)


def _begin(arm, keys, rates, max_norm):
    state = arm.init(keys)
    known = state.opt_state.hyperparams
    given = {"learning_rate": rates, "max_norm": max_norm}
    given = {
        name: jnp.broadcast_to(jnp.asarray(value, known[name].dtype), known[name].shape)
        for name, value in given.items()
    }
    opt_state = state.opt_state._replace(hyperparams=given)
    return dataclasses.replace(state, opt_state=opt_state)


@functools.partial(jax.jit, static_argnames="num_tasks")
def _draw(sampler, keys, step, *, num_tasks):
    return jax.vmap(lambda key: mj.meta_batch(sampler, jax.random.fold_in(key, step), num_tasks))(
        keys
    )


def scores(bench, params, part):
    """Judges parameters of all lanes on the held-out tasks of a split.

    Returns:
      Query losses `[L]`, at most that of guessing, and accuracies `[L]`.
    """
    found = _judge(bench)(params, judges_of(bench, part))
    losses, accuracies = (np.asarray(values, float) for values in found)
    return np.where(losses < GUESSING, losses, GUESSING), accuracies


@functools.cache
def _judge(bench):
    inner = mj.maml(optax.sgd(INNER_RATE), num_steps=1)

    def one(params, task):
        loss, metrics = query_loss(inner, bench.loss_fn, params, task)
        return loss, metrics["accuracy"]

    def lane(params, tasks):
        return jax.tree.map(jnp.mean, jax.vmap(one, (None, 0))(params, tasks))

    return jax.jit(jax.vmap(lane, (0, None)))
