"""Paired intervals, equivalence tests, Holm's correction, and the choice of a learning rate.

In shapes, `S` is the number of seeds and `L` the number of learning rates.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

MARGIN = 0.02  # two risks within 2% count as equal
LEVEL = 0.95
NUM_RESAMPLES = 2000


class Interval(NamedTuple):
    """An estimate and its interval of level 95%."""

    estimate: float
    low: float
    high: float

    def as_list(self):
        """Gives [estimate, low, high] for a JSON file."""
        return [float(value) for value in self]


def mean_interval(values, *, seed=0):
    """Bootstrap-t interval of the mean of values `[S]`, as of paired differences.

    With t* = (mean* - mean) / se* over resamples, the interval is
    [mean - q(0.975) se, mean - q(0.025) se]: it is right to second order for skewed values,
    where the plain t interval is not. A seed that diverged makes it infinite.

    Args:
      values: numbers `[S]`, S at least 2.
      seed: of the resampling.

    Returns:
      An `Interval`.

    References:
      Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, section 12.5.
    """
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        return Interval(math.inf, math.nan, math.inf)
    return _bootstrap_t(values[:, None], lambda rows: _mean_and_error(rows[..., 0]), seed)


def ratio_interval(numerator, denominator, *, seed=0):
    """Bootstrap-t interval of mean(a) / mean(b) for pairs `[S]` of the same seeds.

    Resampled on the log scale; the error of log(mean a / mean b) is that of the mean of
    aᵢ/mean(a) - bᵢ/mean(b) (delta method), which pairs them.
    """
    pairs = np.stack([np.asarray(numerator, float), np.asarray(denominator, float)], axis=1)
    if not np.isfinite(pairs).all():
        return Interval(math.inf, math.nan, math.inf)
    return Interval(*np.exp(_bootstrap_t(pairs, _log_ratio_and_error, seed)))


def _bootstrap_t(rows, estimate_and_error, seed):
    """Resamples rows `[S, ...]`; the statistic maps `[..., S, ...]` to (estimate, error)."""
    if len(rows) < 2:
        raise ValueError(f"an interval needs at least 2 seeds, got {len(rows)}.")
    estimate, error = estimate_and_error(rows)
    if error <= 1e-14 * max(1.0, abs(estimate)):
        return Interval(float(estimate), float(estimate), float(estimate))
    chosen = np.random.default_rng(seed).integers(len(rows), size=(NUM_RESAMPLES, len(rows)))
    estimates, errors = estimate_and_error(rows[chosen])
    # Resamples that miss the few seeds that differ have next to no error, and blow t* up.
    kept = errors > 0.1 * error
    ratios = (estimates[kept] - estimate) / errors[kept]
    low, high = np.quantile(ratios, [(1 + LEVEL) / 2, (1 - LEVEL) / 2])
    return Interval(float(estimate), float(estimate - low * error), float(estimate - high * error))


def _mean_and_error(values):
    return values.mean(-1), values.std(-1, ddof=1) / math.sqrt(values.shape[-1])


def _log_ratio_and_error(pairs):
    means = pairs.mean(-2)
    relative = pairs[..., 0] / means[..., 0, None] - pairs[..., 1] / means[..., 1, None]
    error = relative.std(-1, ddof=1) / math.sqrt(relative.shape[-1])
    return np.log(means[..., 0] / means[..., 1]), error


def equivalence(first, second, *, margin=MARGIN):
    """TOST: p-value for "mean(first) is within `margin` of mean(second), relatively".

    Two one-sided paired t tests of (firstᵢ - secondᵢ)/mean(second) against ±margin; the
    p-value is the larger. Below 5% the two are equal within the margin.

    Args:
      first: numbers `[S]`.
      second: numbers `[S]` of the same seeds, with a mean above 0.
      margin: above 0.

    Returns:
      A p-value in [0, 1]; 1 where a number is not finite.

    References:
      Schuirmann, "A comparison of the two one-sided tests procedure and the power
      approach", Journal of Pharmacokinetics and Biopharmaceutics, 1987.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return 1.0
    center, error = _mean_and_error((first - second) / second.mean())
    if error == 0:
        return 0.0 if abs(center) < margin else 1.0
    freedom = len(first) - 1
    below = stats.t.sf((center + margin) / error, freedom)
    above = stats.t.cdf((center - margin) / error, freedom)
    return float(max(below, above))


def smaller(first, second):
    """P-value of the paired one-sided t test that mean(log first) is below mean(log second)."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    if not np.isfinite(first).all():
        return 1.0
    if not np.isfinite(second).all():
        return 0.0
    center, error = _mean_and_error(np.log(first) - np.log(second))
    if error == 0:
        return 0.0 if center < 0 else 1.0
    return float(stats.t.cdf(center / error, len(first) - 1))


def holm(p_values):
    """Holm's step-down adjustment: p-values to compare with the level of the whole family.

    Args:
      p_values: mapping from names to p-values.

    Returns:
      Mapping from the same names to adjusted p-values, at most 1.

    References:
      Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.get)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


class Choice(NamedTuple):
    """The learning rate chosen on tuning seeds: its index, and whether it is at an edge."""

    index: int
    at_edge: bool


def best_learning_rate(risks):
    """Chooses the learning rate of least mean risk over the tuning seeds.

    Args:
      risks: `[L, S]`, of tuning seeds only; what is not finite has diverged and counts as
        infinite. The learning rates are in order.

    Returns:
      A `Choice`; `at_edge` says that a better rate may lie outside of the grid.

    Raises:
      ValueError: if every learning rate diverged for some seed.
    """
    risks = np.asarray(risks, float)
    means = np.where(np.isfinite(risks), risks, np.inf).mean(axis=1)
    if not np.isfinite(means).any():
        raise ValueError("every learning rate diverged: take a grid with smaller ones.")
    index = int(np.argmin(means))
    return Choice(index, len(means) > 1 and index in (0, len(means) - 1))


def vertex(learning_rates, means):
    """Refines a minimum on a log grid by the parabola through its neighbours, in log-log.

    Args:
      learning_rates: `[L]`, increasing, log-spaced.
      means: mean risks `[L]`; infinite where diverged.

    Returns:
      The learning rate at the vertex; the grid's own where the minimum is at an edge or
      beside a divergence.
    """
    means = np.where(np.isfinite(means), means, np.inf)
    index = int(np.argmin(means))
    x = np.log(np.asarray(learning_rates, float))
    if index in (0, len(x) - 1) or not np.isfinite(means[index - 1 : index + 2]).all():
        return float(np.exp(x[index]))
    left, middle, right = np.log(means[index - 1 : index + 2])
    curvature = left - 2 * middle + right
    if curvature <= 0:
        return float(np.exp(x[index]))
    return float(np.exp(x[index] + (x[1] - x[0]) * 0.5 * (left - right) / curvature))
