"""E8a on one bench: how the gradients of related and of unrelated tasks agree along training."""

import e8_training as training
import jax
from e8_cells import clip_tasks
from e8_training import arm_of, scores, train

from maml_jax.diagnosis import take_looks
from maml_jax.estimates import averaged, estimate

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
    """Takes the looks that `mj.diagnose` of the same key takes."""
    sampler = training.sampler_of(bench, sampling, DIAGNOSED)
    sizes = {"meta_batch_size": DIAGNOSED, "num_batches": num_batches}
    return take_looks(outer, state, sampler, key, **sizes)


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
