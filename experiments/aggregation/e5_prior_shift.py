"""E5: trained on groups 90:10, judged on 50:50 and on the worse group."""

import dataclasses
import functools

import arms
import groups
import intervals
import numpy as np
from arms import Arm
from benches import FIRST_TUNING_SEED, finite
from records import cell
from scipy import stats
from simulate import constant, simulate

from maml_jax import aggregation

DELTA, CONSTANT_RATE = 1.0, 0.05


def shift_arms():
    """The arms: {name: Arm}."""
    weights = {"weights": lambda batch: batch["weights"]}
    rules = {
        "mean": (aggregation.mean(), {}),
        "importance / Σw": (aggregation.importance(normalize="weights"), weights),
        "importance / n": (aggregation.importance(normalize="count"), weights),
        "importance / running mean": (aggregation.importance(normalize="ema"), weights),
        "tilted (t = 0.3)": (aggregation.tilted(0.3), {}),
        "tilted (t = 1)": (aggregation.tilted(1.0), {}),
        "CVaR (worst 20%)": (aggregation.cvar(0.2), {}),
        "TR-MAML": (aggregation.worst_case(0.01, 2), {}),
        "TR-MAML, told of 90:10": (told(aggregation.worst_case(0.01, 2)), weights),
    }
    return {
        name: Arm(name=name, rule=rule, optimizer=arms.sgd(), **known)
        for name, (rule, known) in rules.items()
    }


def told(rule):
    """TR-MAML with losses and coefficients over the frequency of a task's group.

    The rule takes every task of its pool to be drawn equally often; with frequencies of 90:10 it
    sees the losses of the majority nine times too large.
    """

    def coefficients(evidence, state):
        weights = evidence.weights
        seen = dataclasses.replace(evidence, losses=evidence.losses * weights)
        found, state = rule.coefficients(seen, state)
        return found * weights, state

    return dataclasses.replace(rule, coefficients=coefficients, uses_weights=True)


def self_normalised_offset(num_tasks):
    """Offset in Δ of self-normalised weights: 1 - 2 E[9k/(B + 8k)], k ~ Bin(B, 0.1)."""
    minority = np.arange(num_tasks + 1)
    share = 9 * minority / (num_tasks + 8 * minority)
    return 1 - 2 * (stats.binom.pmf(minority, num_tasks, groups.MINORITY) * share).sum()


def run(budget):
    """Runs every cell that is not on disk yet."""
    settings = {
        "steps": budget.steps,
        "seeds": [budget.tuning_seeds, budget.seeds],
        "rates": 10 ** np.arange(-2.4, 0.5, 0.8 if budget.is_quick else 0.2),
    }
    for num_tasks in budget.few((4, 16, 64), 1):
        chosen = {
            label: arm
            for label, arm in shift_arms().items()
            if num_tasks < 64 or label.startswith("importance")  # whose bias is of order 1/B
        }
        for label, arm in budget.few(chosen.items(), 1):
            compute = functools.partial(_scores, arm, num_tasks, settings)
            cell(budget.folder / "e5.json", f"{label} B={num_tasks}", settings, compute)


def _scores(arm, num_tasks, settings):
    """Offset at a constant rate; balanced and worst risk at the rate tuned for either."""

    def play(seeds, rates, **options):
        return simulate(
            groups.SHIFTED,
            arm,
            setting={"delta": DELTA},
            num_tasks=num_tasks,
            num_steps=settings["steps"],
            learning_rates=rates,
            seeds=seeds,
            **options,
        ).tail.swapaxes(0, 1)

    tuning, reporting = settings["seeds"]
    tuned = finite(play(FIRST_TUNING_SEED + np.arange(tuning), settings["rates"]))
    values = {}
    for column, key in enumerate(("balanced", "worst")):
        choice = intervals.best_learning_rate(tuned[..., column])
        rate = settings["rates"][choice.index]
        scores = play(np.arange(reporting), [rate])[0, :, column]
        values[key] = {
            "rate": rate,
            "at_edge": choice.at_edge,
            "risk": intervals.mean_interval(scores),
        }
    offsets = play(np.arange(reporting), [CONSTANT_RATE], schedule=constant)[0, :, 2]
    return {**values, "offset": intervals.mean_interval(offsets)}
