"""E8b and E8c on one bench: learning rates carried from B = 1 to B, and clipping under Adam."""

import e8_training as training
import intervals
import numpy as np
from e8_training import arm_of, scores, train

SPACING = 2.0  # of the grids of learning rates
CLIP_STEPS, CLIP_TASKS = 256, 16
PROTOCOLS = ("tasks", "steps", "progress")


def grid(bench, lowest):
    """Factors of a learning rate, `[lanes]`: powers of SPACING from 2^lowest."""
    return SPACING ** (lowest + np.arange(bench.lanes, dtype=float))


def tuning_seeds(bench):
    """Seeds that choose, apart from those that are reported."""
    return range(10_000, 10_000 + bench.tuning_seeds)


def tune_base(bench, optimizer):
    """Chooses the learning rate at B = 1, and reports what it reaches."""
    arm = arm_of(bench, optimizer, "mean")
    rates = training.OPTIMIZERS[optimizer][2] * grid(bench, -(bench.lanes // 2))
    sizes = {"num_tasks": 1, "sampling": "independent", "marks": (bench.steps,)}
    losses = np.stack(
        [
            _final(bench, arm, [s] * bench.lanes, rates, "meta_validation", **sizes)[0]
            for s in tuning_seeds(bench)
        ],
        axis=1,
    )
    choice = intervals.best_learning_rate(losses)
    rate = rates[choice.index]
    reported, accuracies = _final(
        bench, arm, range(bench.lanes), [rate] * bench.lanes, "meta_test", **sizes
    )
    return {
        "rates": rates,
        "curve": losses.mean(1),
        "rate": rate,
        "at_edge": choice.at_edge,
        "losses": reported,
        "accuracies": accuracies,
    }


def _final(bench, arm, seeds, rates, part, **options):
    """Losses and accuracies `[L]` at the last step."""
    ran = train(bench, arm, seeds=list(seeds), rates=rates, **options)
    return scores(bench, ran.states[max(ran.states)].params, part)


def carry(bench, optimizer, sampling, num_tasks, rate):
    """One cell of E8b: each arm at the carried learning rate, and at its own best one."""
    sizes = {"num_tasks": num_tasks, "sampling": sampling}
    factors = grid(bench, -2)
    curves, best, at_edge = {}, {}, {}
    for name in ("mean", "adascale"):
        arm = arm_of(bench, optimizer, name)
        per_seed = [
            _protocols(bench, arm, [s] * bench.lanes, rate * factors, "meta_validation", **sizes)
            for s in tuning_seeds(bench)
        ]
        losses = {p: np.stack([seen[0][p] for seen in per_seed], axis=1) for p in PROTOCOLS}
        choices = {p: intervals.best_learning_rate(losses[p]) for p in PROTOCOLS}
        curves[name] = {p: losses[p].mean(1) for p in PROTOCOLS}
        best[name] = {p: factors[choices[p].index] for p in PROTOCOLS}
        at_edge[name] = {p: choices[p].at_edge for p in PROTOCOLS}
    reported = report(bench, optimizer, rate, best, **sizes)
    return {"factors": factors, "curves": curves, "best": best, "at_edge": at_edge, **reported}


def report(bench, optimizer, rate, best, *, num_tasks, sampling):
    """Losses `[seeds]` of each arm and protocol on reporting seeds and meta-test tasks."""
    wanted = {
        "mean": {1.0, float(np.sqrt(num_tasks)), float(num_tasks), *best["mean"].values()},
        "sum": {1.0},
        "adascale": {1.0, *best["adascale"].values()},
    }
    known = {}
    for name, factors in wanted.items():
        arm = arm_of(bench, optimizer, name)
        for factor in sorted(factors):
            known[name, factor] = _protocols(
                bench,
                arm,
                range(bench.lanes),
                [rate * factor] * bench.lanes,
                "meta_test",
                num_tasks=num_tasks,
                sampling=sampling,
            )
    picked = _picked(known, best, num_tasks)
    _, _, trace = known["adascale", 1.0]
    gains = trace["factor"] ** (1 / training.OPTIMIZERS[optimizer][1])
    return {
        "losses": picked[0],
        "accuracies": picked[1],
        "steps_to_progress": trace["running"].sum(0),
        "gain": {"first": gains[: max(4, len(gains) // 16)].mean(0), "last": gains[-32:].mean(0)},
    }


def _picked(known, best, num_tasks):
    """Losses, then accuracies, of each arm and protocol from {(rule, factor): ...}."""
    arms = {
        "mean": ("mean", lambda p: 1.0),
        "root": ("mean", lambda p: float(np.sqrt(num_tasks))),
        "linear": ("mean", lambda p: float(num_tasks)),
        "sum": ("sum", lambda p: 1.0),
        "adascale": ("adascale", lambda p: 1.0),
        "best": ("mean", lambda p: best["mean"][p]),
        "best adascale": ("adascale", lambda p: best["adascale"][p]),
    }
    return [
        {
            arm: {p: known[name, factor(p)][kind][p] for p in PROTOCOLS}
            for arm, (name, factor) in arms.items()
        }
        for kind in (0, 1)
    ]


def _protocols(bench, arm, seeds, rates, part, *, num_tasks, sampling):
    """Trains once; gives losses and accuracies `[L]` of each of PROTOCOLS, and the trace."""
    ran = train(bench, arm, num_tasks=num_tasks, sampling=sampling, seeds=list(seeds), rates=rates)
    params = {
        "tasks": ran.states[bench.steps // num_tasks].params,
        "steps": ran.states[bench.steps].params,
        "progress": ran.stopped,
    }
    seen = {p: scores(bench, value, part) for p, value in params.items()}
    return {p: s[0] for p, s in seen.items()}, {p: s[1] for p, s in seen.items()}, ran.trace


def clip_tasks(bench):
    """The meta-batch size of E8a's training and of E8c."""
    return max(n for n in bench.sizes if n <= CLIP_TASKS)


def clip(bench, plan, sampling, rate):
    """One cell of E8c: mean and sum under Adam behind one clipping threshold, for several."""
    num_tasks = clip_tasks(bench)
    steps = min(CLIP_STEPS, bench.steps)
    sizes = {"num_tasks": num_tasks, "sampling": sampling, "steps": steps, "marks": (steps,)}
    seeds, same = list(range(bench.lanes)), [rate] * bench.lanes
    mean = arm_of(bench, "adam", "mean")
    free = train(bench, mean, seeds=seeds, rates=same, **sizes)
    usual = float(np.median(free.trace["grad_norm"]))
    values = {
        "usual_norm": usual,
        "unclipped": scores(bench, free.states[steps].params, "meta_test")[0],
    }
    factors = grid(bench, -3)
    for threshold in plan.thresholds:
        entry = {"threshold": threshold}
        for name in ("mean", "sum"):
            arm = arm_of(bench, "adam", name)
            options = {**sizes, "max_norm": threshold * usual}
            losses = np.stack(
                [
                    _final(
                        bench, arm, [s] * bench.lanes, rate * factors, "meta_validation", **options
                    )[0]
                    for s in list(tuning_seeds(bench))[:2]
                ],
                axis=1,
            )
            choice = intervals.best_learning_rate(losses)
            ran = train(bench, arm, seeds=seeds, rates=same, **options)
            best = [rate * factors[choice.index]] * bench.lanes
            entry[name] = {
                "losses": scores(bench, ran.states[steps].params, "meta_test")[0],
                "binding": float(np.mean(ran.trace["grad_norm"] > threshold * usual)),
                "best": factors[choice.index],
                "best_losses": _final(bench, arm, seeds, best, "meta_test", **options)[0],
                "curve": losses.mean(1),
            }
        values[f"{threshold:g}"] = entry
    return values
