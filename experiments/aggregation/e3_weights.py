"""E3: tasks of different reliability, weighted by size, by inverse variance, or not (H8, H9)."""

import functools

import arms
import groups
import intervals
import numpy as np
from arms import Arm
from records import cell
from simulate import constant, simulate

from maml_jax import aggregation

RATE, STEPS = 0.1, 1024
BETWEEN = (0.0, 0.05, 0.25, 1.0)
DELTAS = (0.0, 0.03, 0.1, 0.3, 1.0)


def weight_arms():
    """The arms: {name: Arm}; "known" is told τ² and σᵢ², "estimated" sees gradients only."""
    rules = {
        "mean": (aggregation.mean(), {}),
        "by size": (aggregation.by_size("query"), {}),
        "inverse variance, known": (
            aggregation.weighted(),
            {"weights": lambda batch: batch["precision"]},
        ),
        "inverse variance, estimated": (
            aggregation.inverse_variance(),
            {"noise": lambda batch: batch["noise"]},
        ),
        "inverse variance, τ² left out": (
            aggregation.inverse_variance(between=0.0),
            {"noise": lambda batch: batch["noise"]},
        ),
    }
    return {
        name: Arm(name=name, rule=rule, optimizer=arms.sgd(), **known)
        for name, (rule, known) in rules.items()
    }


def predicted_variance(weights, between, label_noise=0.0):
    """Σ wᵢ² vᵢ / (Σ wᵢ)² with vᵢ = τ² + σᵢ²."""
    own = np.asarray(groups.own_variance(label_noise), float)
    return (weights**2 * (between + own)).sum() / weights.sum() ** 2


def stationary_factor(rate=RATE):
    """Risk of SGD at a constant rate per unit of variance: ½ Σ h ηh/(2 - ηh)."""
    curvature = groups.CURVATURE
    return (0.5 * curvature * rate * curvature / (2 - rate * curvature)).sum()


def run(budget):
    """Runs every cell that is not on disk yet."""
    settings = {"rate": RATE, "steps": min(STEPS, budget.steps), "seeds": 4 * budget.seeds}
    cases = [(between, delta, 0) for between in BETWEEN for delta in DELTAS] + [(0.05, 0.0, 1)]
    for label, arm in budget.few(weight_arms().items(), 2):
        for between, delta, label_noise in budget.few(cases, 2):
            setting = {"between": between, "delta": delta, "label_noise": label_noise}
            name = f"{label} tau2={between} delta={delta} label_noise={label_noise}"
            compute = functools.partial(_risks, arm, setting, settings)
            cell(budget.folder / "e3.json", name, settings, compute)


def _risks(arm, setting, settings):
    outcome = simulate(
        groups.RELIABILITY,
        arm,
        setting=setting,
        num_tasks=len(groups.SIZES),
        num_steps=settings["steps"],
        learning_rates=[settings["rate"]],
        seeds=range(settings["seeds"]),
        schedule=constant,
    )
    return {"risk": intervals.mean_interval(outcome.tail[:, 0, 0])}
