"""E6: shards with 1, 3, 8 and 8 valid tasks: a mean of means is not the mean (H12)."""

import functools

import arms
import groups
import intervals
import jax.numpy as jnp
from arms import Arm
from records import cell
from simulate import constant, simulate

from maml_jax import aggregation

DELTA, RATE, STEPS = 0.5, 0.1, 1024


def mean_of_shard_means():
    """What `pmean` of local means computes: 1/(S nₛ) for each valid task of shard s."""

    def coefficients(evidence, state):
        shards = evidence.valid.reshape(groups.SHARDS, groups.SLOTS)
        counts = jnp.maximum(shards.sum(1, keepdims=True), 1)
        return (shards / (groups.SHARDS * counts)).reshape(-1), state

    return aggregation.Aggregation(
        name="mean of shard means", level=aggregation.Level.STATIC, coefficients=coefficients
    )


def sum_over_slots():
    """Divides by the number of slots, valid or not."""

    def coefficients(evidence, state):
        return evidence.valid / evidence.valid.size, state

    return aggregation.Aggregation(
        name="sum over slots", level=aggregation.Level.STATIC, coefficients=coefficients
    )


def run(budget):
    """Runs every cell that is not on disk yet."""
    valid, slots = sum(groups.COUNTS), groups.SHARDS * groups.SLOTS
    settings = {"steps": min(STEPS, budget.steps), "seeds": 4 * budget.seeds}
    cases = {
        "mean of valid tasks": (aggregation.mean(), RATE),
        "mean of shard means": (mean_of_shard_means(), RATE),
        "sum / slots": (sum_over_slots(), RATE),
        "mean of valid tasks, lr · 20/32": (aggregation.mean(), RATE * valid / slots),
    }
    for label, (rule, rate) in budget.few(cases.items(), 2):
        arm = arms.linear_arm(label, rule, arms.sgd())
        for by_shard in (1.0, 0.0):
            compute = functools.partial(_scores, arm, rate, by_shard, settings)
            cell(budget.folder / "e6.json", f"{label} by_shard={by_shard:.0f}", settings, compute)


def _scores(arm: Arm, rate, by_shard, settings):
    outcome = simulate(
        groups.RAGGED,
        arm,
        setting={"delta": DELTA, "by_shard": by_shard},
        num_tasks=groups.SHARDS * groups.SLOTS,
        num_steps=settings["steps"],
        learning_rates=[rate],
        seeds=range(settings["seeds"]),
        schedule=constant,
    )
    return {
        "risk": intervals.mean_interval(outcome.tail[:, 0, 0]),
        "offset": intervals.mean_interval(outcome.tail[:, 0, 1]),
    }
