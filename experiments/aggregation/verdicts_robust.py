"""H10 and H11: robust rules and gradient surgery."""

import e4_robust
import intervals
import numpy as np
from criteria import criterion
from records import array

SIGNIFICANT = 0.05


def _seeds(cells, name, share):
    values = cells.get(f"{name} broken={share}")
    return None if values is None else array(values["risks"])


def _ratios(cells, names, share):
    """Gives {name: interval of its risk over the mean's}, of the rules that were run."""
    mean = _seeds(cells, "mean", share)
    return {
        name: intervals.ratio_interval(_seeds(cells, name, share), mean)
        for name in names
        if mean is not None and _seeds(cells, name, share) is not None
    }


COSTS = {
    "norm clip": (0.9, 1.1),
    "geometric median": (0.9, 1.1),
    "trimmed mean": (1.1, 1.25),
    "median": (1.35, 1.6),
    "Krum": (2.5, np.inf),
}


def robust(e4):
    cells = e4["f1"]
    clean = _ratios(cells, COSTS, 0.0)
    inside = [COSTS[name][0] <= found.estimate <= COSTS[name][1] for name, found in clean.items()]
    broken, spared = {}, {}
    for share in e4_robust.SHARES["f1"][1:]:
        for name, found in _ratios(cells, e4_robust.ROBUST, share).items():
            broken[f"{name} {share}"] = 1 / found.estimate
        for name, found in _ratios(cells, ("PCGrad", "UPGrad", "CAGrad"), share).items():
            spared[f"{name} {share}"] = found
    names = ("norm clip", "geometric median", "trimmed mean")
    f2 = _ratios(e4["f2"], names, 0.15)
    better = intervals.holm(
        {
            n: intervals.smaller(_seeds(e4["f2"], n, 0.15), _seeds(e4["f2"], "mean", 0.15))
            for n in f2
        }
    )
    return [
        criterion(
            "F1, none broken: risk over the mean's in the predicted ranges",
            clean,
            all(inside) if clean else None,
        ),
        criterion(
            "F1, ≥ 5% broken: the mean is at least 5 times as bad",
            broken,
            min(broken.values()) >= 5 if broken else None,
        ),
        criterion(
            "F1: PCGrad, UPGrad, CAGrad within a factor 2 of the mean",
            spared,
            all(0.5 <= found.estimate <= 2 for found in spared.values()) if spared else None,
        ),
        criterion(
            "F2, 15% broken: better than the mean (Holm)",
            {"ratio": f2, "p": better},
            max(better.values()) < SIGNIFICANT if better else None,
        ),
    ]


def surgery(e4):
    lines = []
    for bench in ("f1", "f2"):
        found = _ratios(e4[bench], e4_robust.SURGERY, 0.0)
        lines.append(
            criterion(
                f"{bench.upper()}, none broken: no rule below the mean by more than 2% (interval)",
                found,
                all(interval.high >= 0.98 for interval in found.values()) if found else None,
            )
        )
    found = _ratios(e4["f1"], ("MGDA", "PCGrad", "UPGrad", "CAGrad"), 0.0)
    holds = None
    if found:
        near = [abs(found[name].estimate - 1) < 0.2 for name in found if name != "MGDA"]
        holds = all(near) and found["MGDA"].low > 1.0
    lines.append(criterion("F1: MGDA worse; the others within 20%", found, holds))
    return lines + controls(e4)


def controls(e4):
    """Added after the first run: is it the direction of a rule, or its length?"""
    lines = []
    for bench in ("f1", "f2"):
        names = [name for name in e4_robust.CONTROLLED if _seeds(e4[bench], name, 0.0) is not None]
        for kind in ("mean, length of {}", "{}, length of mean"):
            found = _ratios(e4[bench], [kind.format(name) for name in names], 0.0)
            claim = f"{bench.upper()} (added): {kind.format('rule')}, risk over the mean's"
            lines.append(criterion(claim, found, None))
    mean = e4["f1"].get("mean long")
    long = {
        name: intervals.ratio_interval(array(values["risks"]), array(mean["risks"]))
        for name in e4_robust.SURGERY
        if (values := e4["f1"].get(f"{name} long")) is not None
    }
    lines.append(criterion("F1, 4 times the steps (added): risk over the mean's", long, None))
    return lines
