"""Numbers of E8 with intervals over seeds, from its results files."""

import math

import numpy as np
from e8_training import SAMPLINGS
from intervals import Interval, mean_interval, ratio_interval
from records import load
from scipy import stats

BENCHES = ("omniglot", "omniglot sets", "glyphs", "omniglot conv4")


def cells_of(folder, bench):
    """Reads {cell: values} of a bench; empty where it was not run."""
    cells = load(folder / f"e8_{bench.replace(' ', '_')}.json")
    return {
        name: {**entry["values"], "planned_steps": entry["settings"]["steps"]}
        for name, entry in cells.items()
    }


def measured(cells, sampling, state, name):
    """Mean and t interval over seeds of an estimate of a diagnosis."""
    seeds = cells[f"diagnosis {sampling}"][state]["seeds"]
    known = [seed["estimates"][name][0] for seed in seeds if name in seed["estimates"]]
    return t_interval(known) if len(known) > 1 else Interval(math.nan, math.nan, math.nan)


def t_interval(values):
    """Mean and 95% t interval of few values, where a bootstrap has nothing to draw from."""
    values = np.asarray(values, float)
    error = values.std(ddof=1) / math.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * error
    return Interval(values.mean(), values.mean() - half, values.mean() + half)


def ratio(cell, first, second, protocol):
    """Loss of an arm over that of another, paired over seeds."""
    losses = cell["losses"]
    return ratio_interval(losses[first][protocol], losses[second][protocol])


def log_difference(cells, pattern, first, second, protocol):
    """Difference of log(first/second) between correlated and independent, paired over seeds."""
    logs = {}
    for sampling in SAMPLINGS:
        losses = cells[pattern.format(sampling)]["losses"]
        logs[sampling] = np.log(losses[first][protocol]) - np.log(losses[second][protocol])
    return mean_interval(logs["correlated"] - logs["independent"])


def gain_of(cell):
    """Steps at B = 1 over steps that AdaScale took to the same progress, mean over seeds."""
    return float(np.mean(cell["planned_steps"] / np.asarray(cell["steps_to_progress"], float)))


def size_of_largest(ratios):
    """The largest |log ratio|."""
    return max(abs(math.log(found.estimate)) for found in ratios.values())
