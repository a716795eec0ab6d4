"""E2: how does a learning rate tuned at B = 1 carry over to B? (H5, H6, H7)

Steps fixed, tasks fixed, or quality fixed; the multiple of the learning rate on the mean is 1
("mean"), √B, B ("sum", with SGD), or AdaScale's gain. "Best" is tuned anew in each cell.
"""

import functools

import arms
import benches
import intervals
import numpy as np
from records import array, cell, load

from maml_jax import aggregation

TARGET = 1.1  # equal quality: within 10% of the risk of B = 1
COLLAPSE_SEEDS = 32  # times those of F1: H5 asks for 5%, one seed's risk varies by 60%


def optimizers(bench):
    """Gives {name: (transformation, power of AdaScale's gain)}."""
    one = {"sgd": (arms.sgd(), 1.0)} if bench.name == "f1" else {"momentum": (arms.momentum(), 1.0)}
    return {**one, "adam": (arms.adam(), 0.5)}


def run(budget):
    """Runs every cell that is not on disk yet, F1 first."""
    for bench in (benches.f1(budget), benches.f2(budget)):
        run_on(bench, budget)


def run_on(bench, budget):
    """Runs the cells of one family."""
    path = budget.folder / f"e2_{bench.name}.json"
    chosen = list(optimizers(bench).items())
    for name, (optimizer, power) in chosen[-1:] if budget.is_quick else chosen:
        base = tuned_at_one(bench, path, name, optimizer)
        for num_tasks in bench.sizes[1:]:
            _run_size(bench, path, name, (optimizer, power), num_tasks, base)
        if bench.name == "f1":
            _run_collapse(bench, path, name, optimizer, budget)


def settings_of(bench, name):
    """What the cells of an optimizer depend on."""
    return {
        "steps": bench.steps,
        "seeds": [bench.tuning_seeds, bench.seeds],
        "rates": bench.grids[name],
    }


def tuned_at_one(bench, path, name, optimizer):
    """The cell at B = 1: the learning rate that is carried over, and its risk."""

    def compute():
        arm = arms.linear_arm("mean", aggregation.mean(), optimizer)
        sizes = {"num_tasks": 1, "num_steps": bench.steps}
        risks = bench.tune(arm, bench.grids[name], **sizes)
        choice = intervals.best_learning_rate(risks)
        rate = intervals.vertex(bench.grids[name], risks.mean(1))
        reported, _ = bench.report(arm, [rate], **sizes)
        return {
            "curve": risks.mean(1),
            "best_rate": rate,
            "at_edge": choice.at_edge,
            "risk": intervals.mean_interval(reported[0, :, 0]),
            "risks": reported[0, :, 0],
        }

    return cell(path, f"{name} base", settings_of(bench, name), compute)


def _run_size(bench, path, name, optimizer_and_power, num_tasks, base):
    """All cells of one optimizer and one B: compiled once, for all correlations."""
    optimizer, power = optimizer_and_power
    mean = arms.linear_arm("mean", aggregation.mean(), optimizer)
    scaled = {
        "adascale": arms.adascale("adascale", optimizer, power=power),
        "adascale, decay 0.9": arms.adascale("adascale", optimizer, power=power, decay=0.9),
        "adascale, schedule over t": arms.adascale(
            "adascale", optimizer, power=power, schedule_by="step"
        ),
    }
    settings = {**settings_of(bench, name), "base": base["best_rate"]}
    for protocol in ("steps", "tasks", "quality"):
        for rho in bench.rhos:
            args = (bench, name, num_tasks, rho, base)
            if protocol == "quality":
                compute = functools.partial(_adascale, scaled, *args)
            else:
                horizon = bench.steps if protocol == "steps" else max(bench.steps // num_tasks, 4)
                compute = functools.partial(_carried, mean, horizon, *args)
            cell(path, f"{name} {protocol} B={num_tasks} rho={rho}", settings, compute)
        if protocol == "quality" and bench.name == "f1":
            for rho in bench.rhos[:: max(1, len(bench.rhos) // 3)]:
                compute = functools.partial(_steps_needed, mean, bench, name, num_tasks, rho, base)
                cell(path, f"{name} horizons B={num_tasks} rho={rho}", settings, compute)


def _run_collapse(bench, path, name, optimizer, budget):
    """Risks at the best learning rates with many seeds, on F1: {B_eff: risk} (H5)."""
    mean = arms.linear_arm("mean", aggregation.mean(), optimizer)
    found = read(path.parent, bench.name)
    best = {(1, 0.0): found[f"{name} base"]["best_rate"]}
    for num_tasks in bench.sizes[1:]:
        for rho in bench.rhos:
            cell_name = f"{name} steps B={num_tasks} rho={rho}"
            best[num_tasks, rho] = found[cell_name]["best_rate"]
    known = [num_tasks for num_tasks, rho in best if rho == 0]
    for between in (2**k for k in range(1, int(np.log2(max(known))), 2)):  # 2, 8, 32
        logs = np.log([best[num_tasks, 0.0] for num_tasks in known])
        best[between, 0.0] = float(np.exp(np.interp(np.log(between), np.log(known), logs)))
    settings = {**settings_of(bench, name), "seeds": COLLAPSE_SEEDS * budget.seeds}
    for (num_tasks, rho), rate in sorted(best.items()):
        sizes = {"num_tasks": num_tasks, "num_steps": bench.steps, "rho": rho}

        def compute(rate=rate, sizes=sizes):
            many = bench._replace(seeds=settings["seeds"])
            scores, _ = many.report(mean, [rate], **sizes)
            return {"risk": intervals.mean_interval(scores[0, :, 0])}

        cell(path, f"{name} collapse B={num_tasks} rho={rho}", {**settings, "rate": rate}, compute)


def multiples(num_tasks):
    """The factors of the learning rate on the mean, by name."""
    return {"mean": 1.0, "root": float(np.sqrt(num_tasks)), "sum": float(num_tasks)}


def _carried(arm, horizon, bench, name, num_tasks, rho, base):
    """Tunes anew, then reports the carried learning rates against the best one."""
    sizes = {"num_tasks": num_tasks, "num_steps": horizon, "rho": rho}
    risks = bench.tune(arm, bench.grids[name], **sizes)
    choice = intervals.best_learning_rate(risks)
    best_rate = intervals.vertex(bench.grids[name], risks.mean(1))
    factors = multiples(num_tasks)
    rates = [best_rate, *(base["best_rate"] * factor for factor in factors.values())]
    scores, _ = bench.report(arm, rates, **sizes)
    reported = dict(zip(["best", *factors], scores[..., 0], strict=True))
    return {
        "curve": risks.mean(1),
        "best_rate": best_rate,
        "at_edge": choice.at_edge,
        "multiple": best_rate / base["best_rate"],
        "horizon": horizon,
        "risk": intervals.mean_interval(reported["best"]),
        "ratio": {
            key: intervals.ratio_interval(reported[key], reported["best"]) for key in factors
        },
    }


def _adascale(variants, bench, name, num_tasks, rho, base):
    """Runs AdaScale at the learning rate of B = 1, against the quality of B = 1."""
    before = array(base["risks"])
    values = {}
    for label, arm in variants.items():
        scores, steps = bench.report(
            arm, [base["best_rate"]], num_tasks=num_tasks, num_steps=bench.steps, rho=rho
        )
        values[label] = {
            "ratio": intervals.ratio_interval(scores[0, :, 0], before),
            "steps": float(steps.mean()),
            "speed_up": intervals.ratio_interval(np.full(len(before), bench.steps), steps[0]),
        }
    return values


def _steps_needed(arm, bench, name, num_tasks, rho, base):
    """The least horizon (powers of √2) at which each multiple reaches the quality of B = 1."""
    target = TARGET * array(base["risks"]).mean()
    factors = multiples(num_tasks)
    carried = [base["best_rate"] * factor for factor in factors.values()]
    rates = np.concatenate([carried, bench.grids[name]])
    needed = dict.fromkeys([*factors, "best"])
    for power in np.arange(0, 2 * np.log2(bench.steps / 8) + 1):
        horizon = round(bench.steps / 2 ** (power / 2))
        risks = bench.tune(arm, rates, num_tasks=num_tasks, num_steps=horizon, rho=rho).mean(1)
        for index, key in enumerate(factors):
            needed[key] = horizon if risks[index] <= target else needed[key]
        needed["best"] = horizon if risks.min() <= target else needed["best"]
        if risks.min() > 3 * target:
            break
    return {"target": target, "steps": needed}


def read(folder, bench_name):
    """Reads the cells of E2 on a family: {name: values}."""
    return {name: entry["values"] for name, entry in load(folder / f"e2_{bench_name}.json").items()}
