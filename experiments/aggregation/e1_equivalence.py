"""E1: where does the divisor act at all? Mean against sum for ten outer optimizers (H1 to H4).

On F1 each cell runs the mean on a grid of learning rates, the sum on the same grid and on the
grid over B, and the sum with every threshold converted (clip · B, ε · B, λ · B), which should be
the mean again. On F2 mean and sum are tuned apart and compared.
"""

import functools

import benches
import gaussian
import intervals
import jax
import numpy as np
import optax
from arms import Arm
from records import cell
from simulate import simulate

from maml_jax import aggregation

SIZES = (4, 12, 48)  # scaling by a power of 2 is exact in floating point; 12 and 48 are none
SHOWN_SIZE, EXACT_SIZE = 12, 16
SAME_GRID = {"momentum": "sum, lr/B", "adam": "sum"}  # where the sum should be the mean
RHOS = (0.0, 0.2, 0.9)
STEPS = 512
CLIP, L2, LARGE_EPS = 1.0, 0.1, 1e-3
F2_SIZE, F2_STEPS, F2_GRIDS = 12, 512, {"momentum": "momentum", "adam": "adam", "clip + sgd": "sgd"}
THRESHOLDS = tuple(float(c) for c in 10 ** np.arange(-2, 2.1, 0.5))

# Name: (degree in the gradient, transformation for thresholds times s, λ, log10 of mid-grid)
OPTIMIZERS = {
    "sgd": (1, lambda s: optax.identity(), 0.0, -0.8),
    "momentum": (1, lambda s: optax.trace(0.9), 0.0, -1.8),
    "adam": (0, lambda s: optax.scale_by_adam(), 0.0, -1.6),
    "adam, ε = 1e-3": (0, lambda s: optax.scale_by_adam(eps=LARGE_EPS * s), 0.0, -1.6),
    "adamw": (
        0,
        lambda s: optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.01)),
        0.0,
        -1.6,
    ),
    "radam": (None, lambda s: optax.scale_by_radam(), 0.0, -1.6),
    "lion": (0, lambda s: optax.scale_by_lion(), 0.0, -2.0),
    "sgd + L2": (1, lambda s: optax.identity(), L2, -0.8),
    "clip + sgd": (1, lambda s: optax.clip_by_global_norm(CLIP * s), 0.0, -0.8),
    "clip + adam": (
        0,
        lambda s: optax.chain(optax.clip_by_global_norm(CLIP * s), optax.scale_by_adam()),
        0.0,
        -1.6,
    ),
}


def arms_of(name, num_tasks):
    """Gives {arm: (Arm, factor of its learning rate)} for an optimizer."""
    degree, transform, l2, _ = OPTIMIZERS[name]
    factor = 1 / num_tasks if degree == 1 else 1.0
    mean, total = aggregation.mean(), aggregation.sum()
    plain = Arm(name="sum", rule=total, optimizer=transform(1.0), l2=l2)
    arms = {
        "mean": (Arm(name="mean", rule=mean, optimizer=transform(1.0), l2=l2), 1.0),
        "sum": (plain, 1.0),
        "sum, lr/B": (plain, 1 / num_tasks),
    }
    if degree is not None:  # RAdam has no setting that undoes its first five steps
        converted = Arm(
            name="converted", rule=total, optimizer=transform(float(num_tasks)), l2=l2 * num_tasks
        )
        arms["sum, converted"] = (converted, factor)
    return arms


def run(budget):
    """Runs every cell that is not on disk yet."""
    path = budget.folder / "e1.json"
    rates = np.arange(-10, 11, 5 if budget.is_quick else 1) * 0.2
    settings = {
        "steps": min(STEPS, budget.steps),
        "seeds": [3 * budget.tuning_seeds // 2, budget.seeds // 2],
    }
    for num_tasks in budget.few(SIZES, 1):
        for name in budget.few(OPTIMIZERS, 1):
            arms = arms_of(name, num_tasks)
            for rho in budget.few(RHOS, 1):
                grid = 10 ** (OPTIMIZERS[name][3] + rates)
                compute = functools.partial(_compare, arms, grid, num_tasks, rho, settings)
                cell(path, f"{name} B={num_tasks} rho={rho}", {**settings, "rates": grid}, compute)
    grid = 10 ** np.arange(-3.2, 3.3, 2.4 if budget.is_quick else 0.2)
    for threshold in budget.few(THRESHOLDS, 1):
        compute = functools.partial(_clip, threshold, grid, SHOWN_SIZE, RHOS[0], settings)
        cell(path, f"threshold {threshold:.3g}", {**settings, "rates": grid}, compute)
    for num_tasks in budget.few(SIZES, 1):
        compute = functools.partial(_shift, num_tasks, budget)
        cell(path, f"L2 shift B={num_tasks}", {"steps": budget.steps, "l2": L2}, compute)
    _run_f2(budget)


def _shift(num_tasks, budget):
    """How far L2 moves the optimum, per coordinate, with the mean and with the sum."""
    values = {}
    for label, (arm, factor) in arms_of("sgd + L2", num_tasks).items():
        if label in ("mean", "sum, lr/B"):
            outcome = simulate(
                gaussian.FAMILY,
                arm,
                setting=gaussian.setting(0.0),
                num_tasks=num_tasks,
                num_steps=2 * budget.steps,
                learning_rates=[0.2 * factor],
                seeds=range(8 * budget.seeds),
            )
            values[label] = gaussian.CENTRE - outcome.params[:, 0].mean(0)
    return values


def _run_f2(budget):
    """Mean and sum on F2, each at its own learning rate, and bit for bit where that is exact."""
    bench, path = benches.f2(budget), budget.folder / "e1_f2.json"
    num_steps = min(F2_STEPS, budget.f2_steps)
    for name, grid in budget.few(F2_GRIDS.items(), 1):
        rates = bench.grids[grid]
        settings = {"steps": num_steps, "seeds": [bench.tuning_seeds, bench.seeds], "rates": rates}
        arms = arms_of(name, F2_SIZE)
        for rho in budget.few((bench.rhos[0], bench.rhos[-1]), 1):
            compute = functools.partial(_compare_f2, bench, arms, rates, num_steps, rho, name)
            cell(path, f"{name} rho={rho}", settings, compute)
        if name in SAME_GRID:
            compute = functools.partial(_exact_f2, bench, name, rates, num_steps)
            cell(path, f"{name} B={EXACT_SIZE}, a power of 2", settings, compute)


def _compare_f2(bench, arms, rates, num_steps, rho, name):
    """One cell of F2: best learning rates, and risks at them, of mean and sum.

    Where the degree is known, so is the learning rate at which the sum should be the mean; else
    the sum is tuned apart, on the mean's grid and on that over B.
    """
    sizes = {"num_tasks": F2_SIZE, "num_steps": num_steps, "rho": rho}
    values, reported = {"best": {}, "at_edge": {}, "risk": {}, "curves": {}}, {}
    for label in ("mean", SAME_GRID[name]) if name in SAME_GRID else ("mean", "sum", "sum, lr/B"):
        arm, _ = arms[label]
        factor = 1 / F2_SIZE if label == "sum, lr/B" else 1.0
        risks = bench.tune(arm, rates * factor, **sizes)
        if label == "mean" or name not in SAME_GRID:
            choice = intervals.best_learning_rate(risks)
        best = rates[choice.index] * factor
        reported[label] = bench.report(arm, [best], **sizes)[0][0, :, 0]
        values["curves"][label] = risks.mean(1)
        values["best"][label], values["at_edge"][label] = best, choice.at_edge
        values["risk"][label] = intervals.mean_interval(reported[label])
    sums = [label for label in reported if label != "mean"]
    best_sum = min(sums, key=lambda label: values["curves"][label].min())
    pair = reported[best_sum], reported["mean"]
    return {
        **values,
        "ratio": intervals.ratio_interval(*pair),
        "tost": intervals.equivalence(*pair),
    }


def _exact_f2(bench, name, rates, num_steps):
    """Largest difference of parameters at a B by which floating point divides exactly."""
    outcomes = []
    for label in ("mean", SAME_GRID[name]):
        arm, _ = arms_of(name, EXACT_SIZE)[label]
        factor = 1 / EXACT_SIZE if label == "sum, lr/B" else 1.0
        outcome = simulate(
            bench.family,
            arm,
            setting=bench.setting(),
            num_tasks=EXACT_SIZE,
            num_steps=num_steps,
            learning_rates=rates[[len(rates) // 2]] * factor,
            seeds=range(bench.tuning_seeds),
        )
        outcomes.append(outcome.params)
    return {"difference": largest_difference(*outcomes, [True])}


def _run_arms(arms, grid, num_tasks, rho, settings, **options):
    """Runs arms of `arms_of` on F1; seeds for tuning come first."""
    outcomes = {}
    for label, (arm, factor) in arms.items():
        outcomes[label] = simulate(
            gaussian.FAMILY,
            arm,
            setting=gaussian.setting(rho),
            num_tasks=num_tasks,
            num_steps=settings["steps"],
            learning_rates=grid * factor,
            seeds=range(sum(settings["seeds"])),
            **options,
        )
    return outcomes


def _compare(arms, grid, num_tasks, rho, settings):
    """One cell: curves, best learning rates, differences of parameters and of tuned risks."""
    outcomes = _run_arms(arms, grid, num_tasks, rho, settings)
    tuning = settings["seeds"][0]
    mean = outcomes["mean"]
    start = 0.5 * gaussian.CURVATURE.sum() * gaussian.START_SECOND_MOMENT
    stable = mean.tail[..., 0].max(0) < 2 * start
    values = {"curves": {}, "best": {}, "at_edge": {}, "difference": {}, "ratio": {}, "tost": {}}
    tuned = {}
    for label, outcome in outcomes.items():
        risks = outcome.tail[..., 0].T  # [L, S]
        choice = intervals.best_learning_rate(risks[:, :tuning])
        tuned[label] = risks[choice.index, tuning:]
        if label != "sum, converted":
            values["curves"][label] = risks[:, tuning:].mean(1)
        factor = arms[label][1]
        values["best"][label] = intervals.vertex(grid, risks[:, :tuning].mean(1)) * factor
        values["at_edge"][label] = choice.at_edge
        values["difference"][label] = largest_difference(outcome.params, mean.params, stable)
        values["ratio"][label] = intervals.ratio_interval(tuned[label], tuned["mean"])
        values["tost"][label] = intervals.equivalence(tuned[label], tuned["mean"])
    return values


def largest_difference(first, second, stable):
    """Largest ‖θ - θ'‖/‖θ'‖ over seeds and the stable learning rates; trees `[S, L, ...]`."""

    def flat(tree):
        leaves = [np.asarray(leaf, float)[:, stable] for leaf in jax.tree.leaves(tree)]
        return np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)

    first, second = flat(first), flat(second)
    scale = np.maximum(np.linalg.norm(second, axis=2), 1e-30)
    return (np.linalg.norm(first - second, axis=2) / scale).max()


def _clip(threshold, grid, num_tasks, rho, settings):
    """One clipping threshold in front of SGD: best learning rates, and how often it binds."""
    values = {"threshold": threshold, "num_tasks": num_tasks, "best": {}, "binding": {}}
    for label in ("mean", "sum"):
        rule = getattr(aggregation, label)()
        arm = Arm(name=label, rule=rule, optimizer=optax.clip_by_global_norm(threshold))
        short = {**settings, "seeds": [settings["seeds"][0], 0]}
        outcome = _run_arms({label: (arm, 1.0)}, grid, num_tasks, rho, short, trace=True)[label]
        means = outcome.tail[..., 0].mean(0)
        index = int(np.nanargmin(means))
        values["best"][label] = intervals.vertex(grid, means)
        values["binding"][label] = np.mean(outcome.trace[:, :, index, -1] > threshold)
    return values
