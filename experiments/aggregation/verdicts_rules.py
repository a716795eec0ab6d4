"""H8 to H12: weights, robust rules, gradient surgery, shards; and what else was measured."""

import e3_weights
import e5_prior_shift
import gaussian
import groups
import numpy as np
from verdicts_divisor import criterion, matching, values_of
from verdicts_robust import robust, surgery

ESTIMATED = "inverse variance, known"


def criteria(folder):
    """Computes {hypothesis: [criterion]} for H8 to H12, "prior shift" and "diagnostics"."""
    e3, e5, e6 = (values_of(folder, name) for name in ("e3", "e5", "e6"))
    e4 = {name: values_of(folder, f"e4_{name}") for name in ("f1", "f2")}
    return {
        "H8": inverse_variance(e3),
        "H9": by_size(e3),
        "H10": robust(e4),
        "H11": surgery(e4),
        "H12": shards(e6),
        "prior shift": prior_shift(e5),
        "diagnostics": diagnostics(values_of(folder, "e7"), values_of(folder, "e2_f1")),
    }


def _risk(e3, label, between, delta, label_noise=0):
    values = e3.get(f"{label} tau2={between} delta={delta} label_noise={label_noise}")
    return None if values is None else values["risk"][0]


def _crossing(e3, label, between):
    """δ at which an arm is as bad as the mean, from risk = r₀ + s δ², least squares in δ²."""
    squares = np.array(e3_weights.DELTAS) ** 2
    curves = {}
    for name in ("mean", label):
        risks = [_risk(e3, name, between, delta) for delta in e3_weights.DELTAS]
        if None in risks:
            return None
        weights = 1 / np.array(risks)
        curves[name] = np.polyfit(squares, risks, 1, w=weights)
    slope = curves[label][0] - curves["mean"][0]
    return float(np.sqrt(max(curves["mean"][1] - curves[label][1], 0.0) / slope))


def _expected_crossing(between):
    own = np.asarray(groups.own_variance(0.0), float)
    weights, uniform = 1 / (between + own), np.ones_like(own)
    saved = e3_weights.predicted_variance(uniform, between)
    saved -= e3_weights.predicted_variance(weights, between)
    bias = (weights * groups.GROUP_SHIFT).sum() / weights.sum()
    slope = 0.5 * gaussian.CURVATURE.mean() * bias**2
    return float(np.sqrt(e3_weights.stationary_factor() * saved / slope))


def _variance_ratios(e3, numerator, denominator):
    """Gives {τ²: (measured, theory)} of risks at δ = 0."""
    own = np.asarray(groups.own_variance(0.0), float)
    found = {}
    for between in e3_weights.BETWEEN:
        weights = {
            "mean": np.ones_like(own),
            "by size": groups.SIZES,
            ESTIMATED: 1 / (between + own),
        }
        risks = [_risk(e3, name, between, 0.0) for name in (numerator, denominator)]
        if None in risks:
            continue
        variances = [
            e3_weights.predicted_variance(weights[name], between)
            for name in (numerator, denominator)
        ]
        found[str(between)] = (risks[0] / risks[1], variances[0] / variances[1])
    return found


def _all_near(pairs, tolerance):
    return all(abs(got / want - 1) < tolerance for got, want in pairs.values()) if pairs else None


def inverse_variance(e3):
    ratios = _variance_ratios(e3, "mean", ESTIMATED)
    crossings = {
        str(between): (_crossing(e3, ESTIMATED, between), _expected_crossing(between))
        for between in e3_weights.BETWEEN
        if _crossing(e3, ESTIMATED, between) is not None
    }
    return [
        criterion(
            "risk of mean over inverse variance by τ² (measured, theory) within 10%",
            ratios,
            _all_near(ratios, 0.1),
        ),
        criterion(
            "crossing δ* by τ² (measured, theory) within 20%", crossings, _all_near(crossings, 0.2)
        ),
    ]


def by_size(e3):
    ratios = _variance_ratios(e3, "by size", "mean")
    hurts = {between: got > 1 for between, (got, _) in ratios.items()}
    expected = {between: float(between) > 0.158 for between in ratios}
    return [
        criterion(
            "risk by size over mean, by τ² (measured, theory) within 10%",
            ratios,
            _all_near(ratios, 0.1),
        ),
        criterion(
            "by size is worse than the mean for τ² > 0.158 only",
            hurts,
            hurts == expected if ratios else None,
        ),
    ]


def shards(e6):
    def get(label, by_shard, field):
        values = e6.get(f"{label} by_shard={by_shard}")
        return None if values is None else values[field][0]

    mean, means = "mean of valid tasks", "mean of shard means"
    if get(mean, 1, "offset") is None:
        return [criterion("not run", None, None)]
    moved = get(means, 1, "offset") - get(mean, 1, "offset")
    ratio = get(means, 0, "risk") / get(mean, 0, "risk")
    slots = e6.get("sum / slots by_shard=1")
    slower = e6.get("mean of valid tasks, lr · 20/32 by_shard=1")
    same = None if slots is None or slower is None else slots["risk"] == slower["risk"]
    return [
        criterion("the optimum moves by 0.30 (5%)", moved, abs(moved / 0.30 - 1) < 0.05),
        criterion("variance 1.98 times (10%)", ratio, abs(ratio / 1.98 - 1) < 0.1),
        criterion("dividing by slots is the mean at 0.625 lr", same, same),
    ]


def prior_shift(e5):
    lines = []
    offsets = {}
    for (label, size), values in matching(e5, r"(.*) B=(\d+)").items():
        offsets[label, int(size)] = values["offset"]
    theory = {
        f"B={size}": (
            offsets["importance / Σw", size][0],
            e5_prior_shift.self_normalised_offset(size),
        )
        for size in (4, 16, 64)
        if ("importance / Σw", size) in offsets
    }
    near = [abs(got - want) < 0.03 for got, want in theory.values()]
    claim = "offset of self-normalised weights (measured, theory) within 0.03 Δ"
    lines.append(criterion(claim, theory, all(near) if near else None))
    for label, limit in (
        ("importance / n", 0.02),
        ("importance / running mean", 0.02),
        ("TR-MAML", 0.1),
        ("TR-MAML, told of 90:10", 0.1),
    ):
        found = {f"B={size}": value[0] for (name, size), value in offsets.items() if name == label}
        holds = max(map(abs, found.values())) < limit if found else None
        lines.append(criterion(f"offset of {label} below {limit} Δ", found, holds))
    return lines


def diagnostics(e7, e2):
    """Whether D at the start, or at the end, tells the best learning rate and the correlation."""
    first, last, at_steps, at_tasks, ends = [], [], [], [], {}
    for (size, rho), values in matching(e7, r"f1 sgd B=(\d+) rho=(.*)").items():
        steps = e2.get(f"sgd steps B={size} rho={rho}")
        tasks = e2.get(f"sgd tasks B={size} rho={rho}")
        if steps is None or tasks is None:
            continue
        first.append(values["first_gain"])
        last.append(values["last_gain"])
        at_steps.append(steps["multiple"])
        at_tasks.append(tasks["multiple"])
        effect = int(size) / gaussian.effective_tasks(float(rho), int(size))
        ends[f"B={size} rho={rho}"] = (int(size) / values["last_gain"], effect)
    if len(first) < 3:
        return [criterion("not run", None, None)]
    off = np.log([np.array(first) / at_tasks, np.array(last) / at_tasks])
    errors = np.exp(np.abs(off).mean(1))
    end = {name: got / want for name, (got, want) in ends.items()}
    return [
        criterion(
            "gain at the start is off the best multiple at fixed tasks by more than ×2 on average",
            {"start": errors[0], "end": errors[1], "gain at the start": [min(first), max(first)]},
            errors[0] > 2,
        ),
        criterion(
            "D at the end is within 25% of the design effect 1 + (B-1)ρ",
            {"D over design effect": end},
            all(abs(ratio - 1) < 0.25 for ratio in end.values()),
        ),
    ]
