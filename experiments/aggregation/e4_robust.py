"""E4: broken tasks, robust rules and gradient surgery, each at its own learning rate (H10, H11)."""

import functools

import arms
import benches
import controls
import intervals
import numpy as np
from records import cell

from maml_jax import aggregation

NUM_TASKS, QUICK_TASKS = 16, 8
TRIM = 4  # of 16 at either end; as many broken tasks as Krum is told of
SHARES = {"f1": (0.0, 0.05, 0.15, 0.3), "f2": (0.0, 0.15)}
F1_ONLY = ("normalised", "median", "Krum", "Aligned-MTL", "Nash-MTL")
CONTROLLED = ("PCGrad", "CAGrad", "UPGrad", "Aligned-MTL")
STEPS = {"f1": 256, "f2": 512}  # the quadratic programs of gradient surgery are what costs
LONGER = 4
F1_RATES = 10 ** np.arange(-1.8, 1.1, 0.2)


def rules(num_tasks):
    """Gives {name: rule}, all on the scale of the mean."""
    trim = TRIM * num_tasks // NUM_TASKS
    return {
        "mean": aggregation.mean(),
        "norm clip": aggregation.norm_clipped(),
        "normalised": aggregation.normalized(),
        "geometric median": aggregation.geometric_median(),
        "trimmed mean": aggregation.trimmed_mean(trim),
        "median": aggregation.median(),
        "Krum": aggregation.krum(trim, 1),
        "multi-Krum": aggregation.krum(trim, num_tasks // 2),
        "tilted (t = -1)": aggregation.tilted(-1.0),
        "MGDA": aggregation.mgda(),
        "UPGrad": aggregation.upgrad(),
        "PCGrad": aggregation.pcgrad(),
        "CAGrad": aggregation.cagrad(),
        "Aligned-MTL": aggregation.aligned_mtl(),
        "Nash-MTL": aggregation.nash_mtl(),
    }


SURGERY = ("MGDA", "UPGrad", "PCGrad", "CAGrad", "Aligned-MTL", "Nash-MTL")
ROBUST = ("norm clip", "geometric median", "trimmed mean", "median", "tilted (t = -1)")


def run(budget):
    """Runs every cell that is not on disk yet, F1 with SGD and F2 with Adam."""
    for bench, optimizer in ((_smaller(budget), "sgd"), (benches.f2(budget), "adam")):
        steps = min(STEPS[bench.name], bench.steps)
        num_tasks = QUICK_TASKS if budget.is_quick else NUM_TASKS
        settings = {
            "steps": steps,
            "num_tasks": num_tasks,
            "seeds": [bench.tuning_seeds, bench.seeds],
            "rates": bench.grids[optimizer],
        }
        path = budget.folder / f"e4_{bench.name}.json"
        for name, rule in budget.few(rules(num_tasks).items(), 2):
            if bench.name == "f2" and name in F1_ONLY:
                continue
            arm = arms.linear_arm(name, rule, getattr(arms, optimizer)())
            for share in budget.few(SHARES[bench.name], 1):
                compute = functools.partial(_scores, bench, arm, optimizer, share, settings)
                cell(path, f"{name} broken={share}", settings, compute)
        for name, rule in budget.few(controlled(num_tasks, bench.name).items(), 1):
            arm = arms.linear_arm(name, rule, getattr(arms, optimizer)())
            compute = functools.partial(_scores, bench, arm, optimizer, 0.0, settings)
            cell(path, f"{name} broken=0.0", settings, compute)
        if bench.name == "f1":
            _run_long(bench, path, settings, budget)


def controlled(num_tasks, bench_name):
    """Gives {name: rule} of both controls for the rules of gradient surgery."""
    known, made = rules(num_tasks), {}
    for name in CONTROLLED:
        if name in known and not (bench_name == "f2" and name in F1_ONLY):
            made[f"mean, length of {name}"] = controls.with_length_of(known[name])
            made[f"{name}, length of mean"] = controls.with_direction_of(known[name])
    return made


def _run_long(bench, path, settings, budget):
    """The mean and gradient surgery once more with four times the steps, where noise dominates."""
    known = rules(settings["num_tasks"])
    longer = {**settings, "steps": LONGER * settings["steps"]}
    for name in budget.few(("mean", *SURGERY), 1):
        arm = arms.linear_arm(name, known[name], arms.sgd())
        compute = functools.partial(_scores, bench, arm, "sgd", 0.0, longer)
        cell(path, f"{name} long", longer, compute)


def _smaller(budget):
    """F1 with fewer seeds and learning rates."""
    bench = benches.f1(budget)
    rates = F1_RATES[:: 6 if budget.is_quick else 1]
    return bench._replace(
        tuning_seeds=budget.tuning_seeds // 2, seeds=budget.seeds, grids={"sgd": rates}
    )


def _scores(bench, arm, optimizer, share, settings):
    sizes = {
        "num_tasks": settings["num_tasks"],
        "num_steps": settings["steps"],
        "corrupt": share,
    }
    risks = bench.tune(arm, bench.grids[optimizer], **sizes)
    choice = intervals.best_learning_rate(risks)
    rate = float(bench.grids[optimizer][choice.index])
    scores, _ = bench.report(arm, [rate], **sizes)
    values = {
        "curve": risks.mean(1),
        "best_rate": rate,
        "at_edge": choice.at_edge,
        "risk": intervals.mean_interval(scores[0, :, 0]),
        "risks": scores[0, :, 0],
    }
    if scores.shape[-1] > 1:
        values["percentile_95"] = scores[0, :, 1]
    return values
