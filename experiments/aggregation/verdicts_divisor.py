"""H1 to H7: mean against sum, and how learning rates carry over."""

import itertools
import re

import e1_equivalence
import gaussian
import intervals
import moments
import numpy as np
from criteria import criterion, matching, values_of
from records import array
from verdicts_transfer import transfer_f1, transfer_f2

EQUAL = 0.05  # level of a test of equivalence


def criteria(folder):
    """Computes {hypothesis: [criterion]} for H1 to H7."""
    e1, e1_f2 = values_of(folder, "e1"), values_of(folder, "e1_f2")
    e2 = {name: values_of(folder, f"e2_{name}") for name in ("f1", "f2")}
    e7 = values_of(folder, "e7")
    return {
        "H1": degree_one(e1, e1_f2),
        "H2": degree_zero(e1, e1_f2),
        "H3": clipping(e1),
        "H4": penalty(e1),
        "H5": collapse(e1, e1_f2, e2, e7),
        "H6": transfer(e2),
        "H7": adascale(e2),
    }


def cells_of(e1, *names):
    """The F1 cells of some optimizers: {(name, B, rho): values}."""
    found = {}
    for name in names:
        for key, values in matching(e1, re.escape(name) + r" B=(\d+) rho=(.*)").items():
            found[name, *key] = values
    return found


def largest(cells, field, label):
    """Largest value of a field over cells, None where there are no cells."""
    numbers = [values[field][label] for values in cells.values()]
    return max((np.inf if number is None else number for number in numbers), default=None)


def below(claim, number, limit):
    """Criterion "number < limit"."""
    return criterion(claim, number, None if number is None else number < limit)


def equal_on_f2(e1_f2, name):
    """Criterion: tuned risks on F2 within 2%, by TOST with Holm over the correlations."""
    cells = matching(e1_f2, re.escape(name) + r" rho=(.*)")
    adjusted = intervals.holm({key: values["tost"] for key, values in cells.items()})
    worst = max(adjusted.values(), default=None)
    ratios = {f"rho={key[0]}": values["ratio"] for key, values in cells.items()}
    claim = f"F2, {name}: tuned risks within 2% (TOST, Holm)"
    return criterion(claim, {"p": worst, "ratio": ratios}, None if not cells else worst < EQUAL)


def degree_one(e1, e1_f2):
    number = largest(cells_of(e1, "sgd", "momentum"), "difference", "sum, lr/B")
    return [
        below("F1: parameters, largest relative difference < 1e-4", number, 1e-4),
        equal_on_f2(e1_f2, "momentum"),
        exact_on_f2(e1_f2, "momentum", 0.0),
    ]


def exact_on_f2(e1_f2, name, limit):
    """Added after the first run: at B = 16, where floating point divides exactly, no rounding."""
    values = e1_f2.get(f"{name} B={e1_equivalence.EXACT_SIZE}, a power of 2")
    found = None if values is None else values["difference"]
    claim = f"F2, {name}, B = 16, a power of 2 (added): parameters differ by at most {limit:g}"
    return criterion(claim, found, None if found is None else found <= limit)


def degree_zero(e1, e1_f2):
    adam = largest(cells_of(e1, "adam", "adamw"), "difference", "sum")
    lion = largest(cells_of(e1, "lion"), "difference", "sum")
    large = {k: v for k, v in cells_of(e1, "adam, ε = 1e-3").items() if k[1] == "48"}
    differs = [values["difference"]["sum"] for values in large.values()]
    absorbed = [values["tost"]["sum"] for values in large.values()]
    radam = cells_of(e1, "radam")
    apart = [abs(values["ratio"]["sum"][0] - 1) for values in radam.values()]
    grid = 10 ** (e1_equivalence.OPTIMIZERS["radam"][3] + np.arange(-10, 11) * 0.2)
    broken = []
    for (_, num_tasks, _), values in radam.items():
        curves = array(values["curves"]["sum"]) / array(values["curves"]["mean"])
        first = grid[curves > 1.5].min(initial=np.inf)
        broken.append(first * int(num_tasks))
    return [
        below("F1, Adam and AdamW: parameters differ by < 1e-4", adam, 1e-4),
        below("F1, Lion: parameters differ by < 1e-2", lion, 1e-2),
        criterion(
            "F1, Adam with ε = 1e-3 at B = 48: differs by > 1e-3, tuned risk within 2%",
            {"difference": differs, "p": absorbed},
            all(d > 1e-3 for d in differs) and max(absorbed) < EQUAL if differs else None,
        ),
        criterion(
            "F1, RAdam: tuned risk within 5%; apart (1.5 times) only where lr·B·h_max > 2",
            {"tuned apart by": max(apart, default=None), "least lr·B where apart": broken},
            max(apart) < 0.05 and min(broken) > 2 if apart else None,
        ),
        equal_on_f2(e1_f2, "adam"),
        exact_on_f2(e1_f2, "adam", 1e-2),
    ]


def clipping(e1):
    sweep = [values for _, values in sorted(matching(e1, r"threshold (.*)").items())]
    rows = sorted(
        (v["threshold"], v["best"]["sum"] / v["best"]["mean"], v["binding"]) for v in sweep
    )
    step, num_tasks = 10**0.2, sweep[0]["num_tasks"] if sweep else 1
    always = [ratio for _, ratio, binding in rows if min(binding.values()) > 0.95]
    never = [ratio * num_tasks for _, ratio, binding in rows if max(binding.values()) < 0.05]
    one = [1 / step <= ratio <= step for ratio in always + never]
    ratios = [ratio for _, ratio, _ in rows]
    falls = all(b <= a * step for a, b in itertools.pairwise(ratios))
    converted = largest(cells_of(e1, "clip + sgd"), "difference", "sum, converted")
    with_adam = cells_of(e1, "clip + adam")
    effect = [abs(values["ratio"]["sum"][0] - 1) for values in with_adam.values()]
    return [
        criterion(
            "F1: lr*(sum)/lr*(mean) is 1 where clipping binds, 1/B where not, and falls between",
            {"binding": always, "times B, not binding": never, "by threshold": ratios},
            all(one) and falls and bool(always) and bool(never) if rows else None,
        ),
        below("F1: clip · B and lr / B restore equality to 1e-4", converted, 1e-4),
        below("F1, clip + Adam: effect on tuned risk < 10%", max(effect, default=None), 0.1),
    ]


def penalty(e1):
    identity = largest(cells_of(e1, "sgd + L2"), "difference", "sum, converted")
    found, expected, curvature, l2 = {}, {}, gaussian.CURVATURE, e1_equivalence.L2
    for (size,), values in matching(e1, r"L2 shift B=(\d+)").items():
        ratio = np.asarray(values["mean"]) / np.asarray(values["sum, lr/B"])
        found[size] = ratio[[0, -1]]
        expected[size] = ((int(size) * curvature + l2) / (curvature + l2))[[0, -1]]
    near = [np.abs(found[size] / expected[size] - 1).max() < 0.15 for size in found]
    return [
        below("F1: λ · B and lr / B restore equality to 1e-4", identity, 1e-4),
        criterion(
            "F1: the shift of the optimum is (Bh+λ)/(h+λ) times as large with the mean (15%)",
            {"h = 0.1 and 1, by B": found, "theory": expected},
            all(near) if near else None,
        ),
    ]


def collapse(e1, e1_f2, e2, e7):
    lines = []
    for bench, names, limit in (("f1", ("sgd", "adam"), 0.05), ("f2", ("momentum", "adam"), 0.15)):
        for name in names:
            gaps = deviations(e2[bench], e7 if bench == "f2" else {}, name)
            middle = (max if bench == "f1" else np.median)(gaps) if gaps else None
            which = "largest" if bench == "f1" else "median"
            claim = (
                f"{bench.upper()}, {name}: {which} deviation from the ρ = 0 curve at equal B_eff"
            )
            lines.append(below(f"{claim} < {limit:.0%}", middle, limit))
    tuned = [("sgd", "sum, lr/B"), ("momentum", "sum, lr/B"), ("adam", "sum"), ("adamw", "sum")]
    apart = {name: largest(cells_of(e1, name), "tost", label) for name, label in tuned}
    known = [value for value in apart.values() if value is not None]
    holds = max(known) < EQUAL if known else None
    lines.append(criterion("F1: tuned sum and mean within 2% (TOST)", apart, holds))
    lines += [equal_on_f2(e1_f2, "momentum"), equal_on_f2(e1_f2, "adam")]
    return lines


def effective(bench_cells, name, e7):
    """Gives {(B, rho): (B_eff, best risk)} at fixed steps, B_eff by measured ICC where known."""
    base = bench_cells.get(f"{name} base")
    found = {} if base is None else {(1, 0.0): (1.0, base["risk"][0])}
    # On F1 the same cells once more with many seeds, where they were run.
    many = matching(bench_cells, name + r" collapse B=(\d+) rho=(.*)")
    cells = many or matching(bench_cells, name + r" steps B=(\d+) rho=(.*)")
    for (size, rho), values in cells.items():
        measured = e7.get(f"f2 adam B={size} rho={rho}")
        icc = float(rho) if measured is None else max(measured["icc"]["end"], 0.0)
        tasks = gaussian.effective_tasks(icc, int(size))
        found[int(size), float(rho)] = (tasks, values["risk"][0])
    return found


def deviations(bench_cells, e7, name):
    """Relative distances of the cells with ρ > 0 from the ρ = 0 curve, log-log interpolated."""
    points = effective(bench_cells, name, e7)
    curve = sorted(point for (_, rho), point in points.items() if rho == 0)
    if len(curve) < 2:
        return []
    x, y = np.log(np.array(curve)).T
    return [
        abs(np.expm1(np.log(risk) - np.interp(np.log(tasks), x, y)))
        for (_, rho), (tasks, risk) in points.items()
        if rho > 0
    ]


def transfer(e2):
    return transfer_f1(e2["f1"]) + transfer_f2(e2["f2"])


def adascale(e2):
    lines = []
    for bench, name, limit in (
        ("f1", "sgd", 0.2),
        ("f1", "adam", 0.3),
        ("f2", "momentum", 0.2),
        ("f2", "adam", 0.3),
    ):
        cells = matching(e2[bench], name + r" quality B=(\d+) rho=(.*)")
        ratios = {f"B={b} rho={r}": v["adascale"]["ratio"] for (b, r), v in cells.items()}
        apart = [
            abs(array(v["adascale"]["ratio"])[0] - 1)
            for (size, rho), v in cells.items()
            if not (bench == "f1" and name == "sgd" and (size, rho) == ("64", "0.0"))
        ]
        claim = f"{bench.upper()}, {name}: risk within {limit:.0%} of B = 1"
        lines.append(criterion(claim, ratios, max(apart) < limit if apart else None))
    cells = matching(e2["f1"], r"sgd quality B=(\d+) rho=(.*)")
    excess, wrong = [], []
    for (size, rho), values in cells.items():
        tasks = gaussian.effective_tasks(float(rho), int(size))
        excess.append(values["adascale"]["speed_up"][0] / tasks)
        if tasks >= 2:
            wrong.append(array(values["adascale, schedule over t"]["ratio"])[0])
    holds = (max(excess) < 1.05, min(wrong) > 2) if excess and wrong else (None, None)
    claims = "F1, SGD: speed-up over B_eff < 1.05", "F1, SGD: schedule over t costs a factor > 2"
    lines.append(criterion(claims[0], max(excess, default=None), holds[0]))
    lines.append(criterion(claims[1], min(wrong, default=None), holds[1]))
    return lines


def theory_table():
    """Risk over best risk from the recursion: {(protocol, arm, rho, B): ratio}."""
    rates, steps = 10 ** np.arange(-3, 0.81, 0.05), 1024
    base = rates[np.argmin(moments.risk_of_sgd(rates, steps, 1.0))]
    table = {}
    for rho in (0.0, 0.2, 1.0):
        for size in (4, 16, 64):
            variance = gaussian.variance_of_mean(rho, size)
            for protocol, horizon in (("steps", steps), ("tasks", steps // size)):
                best = moments.risk_of_sgd(rates, horizon, variance).min()
                for arm, factor in (("mean", 1), ("sum", size)):
                    risk = moments.risk_of_sgd(base * factor, horizon, variance)
                    table[protocol, arm, rho, size] = float(risk / best)
    return table
