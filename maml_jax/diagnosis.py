"""How the gradients of a user's own tasks relate, and what follows for the reduction."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maml_jax import checks
from maml_jax.advice import Facts, advise
from maml_jax.estimates import Look, averaged, estimate, norm_spread
from maml_jax.gram_moments import cosines
from maml_jax.inner_checks import check_count
from maml_jax.outer_state import OuterState, OuterStep
from maml_jax.reduction_report import degree_of
from maml_jax.tasks import Sampler, Task, as_key, meta_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `diagnose` found; `str` of it is a report in plain words.

    Estimates are (value, half-width of the 95% interval), the latter by a jackknife over pairs
    of meta-batches.

    Attributes:
      step: number of outer steps behind the parameters.
      facts: the figures that the advice is made of.
      estimates: by name: `gain` (steps of one task that a step is worth, r of AdaScale),
        `divisor` (by what AdaScale divides the sum, meta-batch size / gain), `coherence` (mean
        inner product of two tasks over the mean square), `correlation` (of the noise of two
        tasks of a meta-batch), `group_correlation` (of two tasks of one group),
        `effective_tasks` (independent tasks that the meta-batch is worth), `noise_scale`
        (variance of a gradient over its squared mean), `own_noise` (share of the variance that
        a larger query set would take away), `conflicts` (share of pairs of tasks with a
        negative inner product).
      worth: meta-batch size to gain, as predicted for other sizes.
      cosines: between the gradients of two meta-batches of n tasks, `[2 n, 2 n]`.
      groups: the `task_id` of each row of `cosines`, or None.
      advice: sentences, the most important first.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import maml_jax as mj
      >>> model = mj.models.Mlp(features=(8, 1))
      >>> outer = mj.make_outer_step(
      ...     mj.losses.regression(model.apply), mj.maml(optax.sgd(0.01), 1), optax.adam(1e-3)
      ... )
      >>> state = outer.init(model.init(jax.random.key(1), jnp.zeros((1, 1))))
      >>> found = mj.diagnose(outer, state, mj.data.sinusoid(), key=0, meta_batch_size=8)
      >>> 1 <= found.estimates["gain"][0] <= 8
      True
    """

    step: int
    facts: Facts
    estimates: dict[str, tuple[float, float]]
    worth: dict[int, float]
    cosines: np.ndarray
    groups: np.ndarray | None
    advice: tuple[str, ...]

    def __str__(self) -> str:
        facts = self.facts
        head = (
            f"Gradients of {facts.num_tasks} tasks in {facts.num_batches} meta-batches of "
            f"{facts.meta_batch_size}, after {self.step} outer steps:"
        )
        rows = [f"  {_LABELS[name]:<46}{_shown(*pair)}" for name, pair in self.estimates.items()]
        advice = [f"- {sentence}" for sentence in self.advice]
        return "\n".join([head, *rows, "", "What follows:", *advice])

    def as_dict(self) -> dict[str, Any]:
        """Gives the figures and the advice as JSON, None where a figure is not finite."""
        return {
            "step": self.step,
            "meta_batch_size": self.facts.meta_batch_size,
            "num_batches": self.facts.num_batches,
            **{name: _finite(value) for name, (value, _) in self.estimates.items()},
            "half_widths": {name: _finite(half) for name, (_, half) in self.estimates.items()},
            "worth": {str(size): _finite(gain) for size, gain in self.worth.items()},
            "advice": list(self.advice),
        }


_LABELS = {
    "gain": "one step is worth so many steps of one task",
    "divisor": "divisor of the sum that this means",
    "coherence": "coherence of two tasks",
    "correlation": "correlation within a meta-batch",
    "group_correlation": "correlation within a group",
    "effective_tasks": "independent tasks that a meta-batch is worth",
    "noise_scale": "noise scale",
    "own_noise": "share of noise from small query sets",
    "conflicts": "share of pairs in conflict",
}


def diagnose(
    outer: OuterStep,
    state: OuterState,
    sampler: Sampler,
    key: jax.Array,
    *,
    meta_batch_size: int,
    num_batches: int = 16,
) -> Diagnosis:
    """Measures how the task gradients relate at given parameters, and says what follows.

    Draws independent pairs of meta-batches. What two tasks of different meta-batches share is
    signal; what tasks of one share beyond that is correlated noise, which no meta-batch size
    averages out. Nothing is updated.

    Args:
      outer: the outer step, of any aggregation.
      state: where to measure: its parameters.
      sampler: a pure function from a key to one `Task`, or a `Grouped` one.
      key: random key, or an integer seed.
      meta_batch_size: tasks of a meta-batch, at least 2.
      num_batches: meta-batches to draw, even, at least 4. Gradients of two of them are held at
        a time.

    Returns:
      The diagnosis.

    Raises:
      TypeError: if an argument is of the wrong kind.
      ValueError: if a number is too small or odd, or fewer than two tasks of each meta-batch
        have finite gradients.

    References:
      Johnson et al., "AdaScale SGD", ICML 2020 (gain); Yin et al., "Gradient Diversity: a Key
      Ingredient for Scalable Distributed Learning", AISTATS 2018 (1 / divisor); McCandlish et
      al., "An Empirical Model of Large-Batch Training", 2018 (noise scale); Kish, "Survey
      Sampling", 1965 (effective number).

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import maml_jax as mj
      >>> loss_fn = mj.losses.regression(lambda params, inputs, mask: inputs @ params)
      >>> outer = mj.make_outer_step(loss_fn, mj.maml(optax.sgd(0.01), 1), optax.sgd(0.01))
      >>> state = outer.init(jnp.zeros((1, 1)))
      >>> found = mj.diagnose(outer, state, mj.data.sinusoid(), key=0, meta_batch_size=4)
      >>> found.facts.num_tasks
      64
    """
    check_count("meta_batch_size", meta_batch_size, at_least=2)
    check_count("num_batches", num_batches, at_least=4)
    if num_batches % 2:
        raise ValueError(f"num_batches must be even, they go in pairs, got {num_batches}.")
    sizes = {"meta_batch_size": meta_batch_size, "num_batches": num_batches}
    looks = take_looks(outer, state, sampler, key, **sizes, num_noisy=max(2, num_batches // 8))
    return _conclude(outer, state, looks, meta_batch_size, num_batches)


def take_looks(
    outer: OuterStep,
    state: OuterState,
    sampler: Sampler,
    key: jax.Array,
    *,
    meta_batch_size: int,
    num_batches: int,
    num_noisy: int = 0,
) -> list[Look]:
    """Draws pairs of meta-batches and takes the inner products of their tasks' gradients.

    Args:
      outer: the outer step, of any aggregation.
      state: where to measure: its parameters.
      sampler: a pure function from a key to one `Task`, or a `Grouped` one.
      key: random key, or an integer seed.
      meta_batch_size: tasks of a meta-batch.
      num_batches: meta-batches to draw; even.
      num_noisy: in how many looks to measure the gradients' own noise too, where the query sets
        have halves.

    Returns:
      A look for each pair.

    Raises:
      ValueError: if fewer than two tasks of a meta-batch have finite gradients.
    """
    key, sampler = as_key(key), checks.as_sampler(sampler)
    draw = functools.partial(_pair, meta_batch_size=meta_batch_size)
    halves = _has_halves(jax.eval_shape(draw, sampler, key))
    looks = []
    for index in range(num_batches // 2):
        tasks = draw(sampler, jax.random.fold_in(key, index))
        looks.append(_look(outer, state, tasks, noise=halves and index < num_noisy))
    return looks


@functools.lru_cache(maxsize=16)
def _degree(optimizer: optax.GradientTransformation) -> float | None:
    """Asks once for the degree of an optimizer: trying it out takes a second."""
    return degree_of(optimizer)


@functools.partial(jax.jit, static_argnames="meta_batch_size")
def _pair(sampler, key: jax.Array, *, meta_batch_size: int) -> Task:
    """Draws two meta-batches that have nothing in common, one after the other."""
    drawn = [meta_batch(sampler, k, meta_batch_size) for k in jax.random.split(key)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *drawn)


def _has_halves(tasks: Task) -> bool:
    return jax.tree.leaves(tasks.query.inputs)[0].shape[1] % 2 == 0


def _look(outer: OuterStep, state: OuterState, tasks: Task, *, noise: bool) -> Look:
    seen = jax.device_get(outer.evidence(state, tasks))
    batches = np.repeat([0, 1], len(seen.valid) // 2)
    kept = np.asarray(seen.valid)
    if min(np.bincount(batches[kept], minlength=2)) < 2:
        raise ValueError(
            "diagnosis needs at least 2 tasks of each meta-batch with a finite loss and gradient, "
            f"got {int(kept.sum())} of {len(kept)}; lower the inner learning rate, or diagnose "
            "earlier parameters."
        )
    own = float("nan")
    if noise:
        split = jax.device_get(outer.evidence(state, tasks, noise=True))
        own = float(split.noise[np.asarray(split.valid)].mean())
    return Look(
        gram=np.asarray(seen.gram, np.float64)[np.ix_(kept, kept)],
        batches=batches[kept],
        groups=None if seen.task_ids is None else np.asarray(seen.task_ids)[kept],
        own_noise=own,
        num_broken=int((~kept).sum()),
    )


def _conclude(outer, state, looks: list[Look], size: int, num_batches: int) -> Diagnosis:
    estimates = estimate(looks, size)
    facts = Facts(
        meta_batch_size=size,
        num_batches=num_batches,
        num_tasks=size * num_batches,
        num_broken=sum(look.num_broken for look in looks),
        degree=_degree(outer.optimizer),
        norm_spread=norm_spread(looks),
    )
    found = averaged(looks)
    worth = {n: found.gain(n) for n in _sizes(size)}
    return Diagnosis(
        step=int(state.step),
        facts=facts,
        estimates=estimates,
        worth=worth,
        cosines=cosines(looks[0].gram),
        groups=looks[0].groups,
        advice=advise(facts, estimates, worth),
    )


def _sizes(size: int) -> list[int]:
    powers = {2**power for power in range(int(math.log2(4 * size)) + 1)}
    return sorted(powers | {size, 2 * size, 4 * size})


def _shown(value: float, half_width: float) -> str:
    spread = f" ± {half_width:.2g}" if math.isfinite(half_width) else ""
    return f"{value:.3g}{spread}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
