"""The criteria of E8c: the divisor behind one clipping threshold, under Adam."""

import math

import numpy as np
from criteria import criterion
from e8_reading import size_of_largest
from e8_training import SAMPLINGS
from intervals import mean_interval, ratio_interval


def entries(cells, sampling):
    """The thresholds of a clipping cell, in order."""
    values = cells[f"clipping {sampling}"]
    found = [entry for entry in values.values() if isinstance(entry, dict)]
    return sorted(found, key=lambda entry: entry["threshold"])


def ratios(cells, sampling, kind):
    """{threshold: loss of sum over mean}; kind "losses" at lr₁, "best_losses" at the best."""
    return {
        entry["threshold"]: ratio_interval(entry["sum"][kind], entry["mean"][kind])
        for entry in entries(cells, sampling)
    }


def clipping(bench, cells):
    """E8c: does the divisor show, and where?"""
    del bench
    found = {s: ratios(cells, s, "losses") for s in SAMPLINGS}
    tuned = {s: ratios(cells, s, "best_losses") for s in SAMPLINGS}
    largest = {
        kind: max(size_of_largest(values) for values in both.values())
        for kind, both in (("at lr₁", found), ("at the best rates", tuned))
    }
    shift = {
        f"{s}, {e['threshold']:g} M": math.log2(e["sum"]["best"] / e["mean"]["best"])
        for s in SAMPLINGS
        for e in entries(cells, s)
    }
    return [
        binding(cells),
        criterion(
            "sum/mean at equal threshold within 5%, at lr₁ and at the best rates",
            {"at lr₁": found, "at the best rates": tuned, "largest |log|": largest},
            max(largest.values()) <= math.log(1.05),
        ),
        criterion(
            "best rates of sum and mean within one grid step",
            shift,
            max(map(abs, shift.values())) <= 1,
        ),
        larger_effect(cells, found),
    ]


def binding(cells):
    """How often the threshold binds."""
    shares = {
        f"{s}, {e['threshold']:g} M": [e["mean"]["binding"], e["sum"]["binding"]]
        for s in SAMPLINGS
        for e in entries(cells, s)
    }
    both = [e for s in SAMPLINGS for e in entries(cells, s)]
    often = [e["sum"]["binding"] for e in both if e["threshold"] <= 2]
    rarely = [e["mean"]["binding"] for e in both if e["threshold"] >= 8]
    claim = "share of steps that bind [mean, sum]: sum above 0.95 to 2 M, mean below 0.1 from 8 M"
    return criterion(claim, shares, min(often) > 0.95 and max(rarely) < 0.1)


def larger_effect(cells, found):
    """Whether the largest effect is at least as large for correlated tasks."""
    sizes = {s: size_of_largest(found[s]) for s in SAMPLINGS}
    at = {
        s: max(found[s], key=lambda c, s=s: abs(math.log(found[s][c].estimate))) for s in SAMPLINGS
    }
    logs = {}
    for sampling in SAMPLINGS:
        entry = next(e for e in entries(cells, sampling) if e["threshold"] == at[sampling])
        logs[sampling] = np.log(entry["sum"]["losses"]) - np.log(entry["mean"]["losses"])
        logs[sampling] = mean_interval(logs[sampling])
    claim = "largest |log(sum/mean)| at lr₁: correlated at least as large"
    return criterion(claim, {**sizes, "there": logs}, sizes["correlated"] >= sizes["independent"])
