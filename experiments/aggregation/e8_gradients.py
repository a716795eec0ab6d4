"""E8a on one bench: how the gradients of related and of unrelated tasks agree along training."""

import e8_training as training
import jax
import numpy as np
from e8_cells import clip_tasks
from e8_training import arm_of, scores, train

import maml_jax as mj
from maml_jax.estimates import Look, averaged, estimate

DIAGNOSED = 32  # tasks of a meta-batch of the diagnosis
KEY = 777


def diagnose(bench, plan, sampling, rate):
    """One cell of E8a: gradients along training with Adam on the mean of independent tasks."""
    arm = arm_of(bench, "adam", "mean")
    ran = train(
        bench,
        arm,
        num_tasks=clip_tasks(bench),
        sampling="independent",
        seeds=range(bench.lanes),
        rates=[rate] * bench.lanes,
        marks=plan.states,
        steps=max(plan.states),
    )
    values = {}
    for step, states in ran.states.items():
        looked = [
            looks(bench, arm.outer, lane_of(states, lane), sampling, KEY + lane, plan.num_batches)
            for lane in range(plan.diagnosed)
        ]
        loss, accuracy = scores(bench, states.params, "meta_test")
        values[str(step)] = {
            "seeds": [summary(found) for found in looked],
            "loss": loss.mean(),
            "accuracy": accuracy.mean(),
        }
    return values


def lane_of(states, lane):
    """Takes one lane out of the states of all."""
    return jax.tree.map(lambda a: a[lane], states)


def looks(bench, outer, state, sampling, key, num_batches):
    """Gives the looks of `mj.diagnose`, whose program that draws is compiled once here.

    The tasks are those of `mj.diagnose` of the same key.
    """
    sampler = training.sampler_of(bench, sampling, DIAGNOSED)
    found = []
    for index in range(num_batches // 2):
        tasks = _pair(sampler, jax.random.fold_in(jax.random.key(key), index))
        seen = jax.device_get(outer.evidence(state, tasks))
        kept = np.asarray(seen.valid)
        found.append(
            Look(
                gram=np.asarray(seen.gram, np.float64)[np.ix_(kept, kept)],
                batches=np.repeat([0, 1], DIAGNOSED)[kept],
                groups=np.asarray(seen.task_ids)[kept],
                own_noise=float("nan"),
                num_broken=int((~kept).sum()),
            )
        )
    return found


@jax.jit
def _pair(sampler, key):
    halves = [mj.meta_batch(sampler, k, DIAGNOSED) for k in jax.random.split(key)]
    return jax.tree.map(lambda *parts: jax.numpy.concatenate(parts), *halves)


def summary(found):
    """Estimates with half-widths of their 95% intervals, and what other sizes are worth."""
    estimates = estimate(found, DIAGNOSED)
    average = averaged(found)
    return {
        "estimates": estimates,
        "worth": {n: average.gain(n) for n in (4, 16, 32)},
        "signal": average.signal,
        "variance": average.variance,
    }
