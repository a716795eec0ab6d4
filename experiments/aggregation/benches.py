"""The two families behind one face, so that one experiment runs on both."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gaussian
import numpy as np
import sinusoids
from simulate import Family, simulate

FIRST_TUNING_SEED = 10_000
TUNING_TASKS, REPORT_TASKS = 1, 2  # seeds of the held-out tasks of F2
NOTHING_LEARNED = 4.25  # MSE of predicting 0 on F2: E[A²]/2; a diverged run counts as that
TAIL_MARKS = (0.8, 0.9, 1.0)


class Bench(NamedTuple):
    """A family with its sizes and its score.

    Attributes:
      name: "f1" or "f2".
      family: the tasks.
      setting: `(rho, corrupt) -> setting`.
      score: `(outcome, tuning) -> [L, S, k]`, risks first.
      options: further options of `simulate`.
      steps: outer steps at a meta-batch of 1.
      sizes: meta-batch sizes.
      rhos: correlations.
      tuning_seeds: how many choose the learning rate.
      seeds: how many are reported.
      grids: learning rates by optimizer.
    """

    name: str
    family: Family
    setting: Callable[..., Any]
    score: Callable[..., np.ndarray]
    options: dict
    steps: int
    sizes: tuple
    rhos: tuple
    tuning_seeds: int
    seeds: int
    grids: dict

    def tune(self, arm, rates, *, num_tasks, num_steps, **setting):
        """Gives scores `[L, S]` on tuning seeds and tuning tasks."""
        seeds = FIRST_TUNING_SEED + np.arange(self.tuning_seeds)
        outcome = self._run(arm, rates, seeds, num_tasks, num_steps, setting)
        return self.score(outcome, True)[..., 0]

    def report(self, arm, rates, *, num_tasks, num_steps, **setting):
        """Gives scores `[L, S, k]` on reporting seeds, and the steps taken `[L, S]`."""
        outcome = self._run(arm, rates, np.arange(self.seeds), num_tasks, num_steps, setting)
        return self.score(outcome, False), outcome.steps.T

    def _run(self, arm, rates, seeds, num_tasks, num_steps, setting):
        return simulate(
            self.family,
            arm,
            setting=self.setting(**setting),
            num_tasks=num_tasks,
            num_steps=num_steps,
            learning_rates=rates,
            seeds=seeds,
            **self.options,
        )


def f1(budget, rhos=(0.0, 0.05, 0.2, 0.5, 0.9, 1.0)):
    """F1 at the sizes of a budget."""
    spacing = np.arange(-8, 13, 5 if budget.is_quick else 1) * 0.2
    return Bench(
        name="f1",
        family=gaussian.FAMILY,
        setting=gaussian.setting,
        score=lambda outcome, tuning: finite(outcome.tail.swapaxes(0, 1)),
        options={},
        steps=budget.steps,
        sizes=budget.sizes,
        rhos=(0.0, 0.9) if budget.is_quick else rhos,
        tuning_seeds=budget.tuning_seeds,
        seeds=4 * budget.seeds,
        grids={
            "sgd": 10 ** (-1.2 + spacing),
            "momentum": 10 ** (-2.2 + spacing),
            "adam": 10 ** (-1.8 + spacing),
        },
    )


def f2(budget):
    """F2 at the sizes of a budget."""

    def score(outcome, tuning):
        num_tasks = budget.f2_tasks // 4 if tuning else budget.f2_tasks
        seed = TUNING_TASKS if tuning else REPORT_TASKS
        risks = sinusoids.held_out_risks(outcome.snapshots, num_tasks=num_tasks, seed=seed)
        risks[..., 0] = np.minimum(risks[..., 0], NOTHING_LEARNED)
        return risks.mean(2).swapaxes(0, 1)

    spacing = np.linspace(-0.8, 0.8, budget.f2_rates)
    return Bench(
        name="f2",
        family=sinusoids.FAMILY,
        setting=sinusoids.setting,
        score=score,
        options={"fractions": TAIL_MARKS},
        steps=budget.f2_steps,
        sizes=budget.f2_sizes,
        rhos=budget.f2_rhos,
        tuning_seeds=budget.f2_tuning_seeds,
        seeds=budget.f2_seeds,
        grids={
            "sgd": 10 ** (-1.8 + spacing),
            "momentum": 10 ** (-2.6 + spacing),
            "adam": 10 ** (-2.0 + spacing),
        },
    )


def finite(risks):
    """Turns what is not a number, a run that diverged, into infinity."""
    return np.where(np.isfinite(risks), risks, np.inf)
