"""Estimates with intervals, from inner products of several pairs of meta-batches."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from maml_jax.gram_moments import Moments, effective_tasks, moments

# Quantiles of Student's t for 95%, by degrees of freedom.
_T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
_NORMAL_95 = 1.96


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What one pair of meta-batches shows, of the M tasks whose gradients are finite.

    Attributes:
      gram: inner products `[M, M]`.
      batches: 0 or 1, the meta-batch of each task `[M]`.
      groups: integers `[M]`, or None.
      own_noise: mean variance of a gradient over query sets; NaN where it was not measured.
      num_broken: how many tasks were left out.

    Example:
      >>> import numpy as np
      >>> from maml_jax.estimates import Look
      >>> look = Look(gram=np.eye(4), batches=np.array([0, 0, 1, 1]), groups=None,
      ...     own_noise=np.nan, num_broken=0)
      >>> look.conflicts
      0.0
    """

    gram: np.ndarray
    batches: np.ndarray
    groups: np.ndarray | None
    own_noise: float
    num_broken: int

    @property
    def moments(self) -> Moments:
        """Means of inner products over kinds of pairs."""
        return moments(self.gram, batches=self.batches, groups=self.groups)

    @property
    def conflicts(self) -> float:
        """Share of pairs of tasks of one meta-batch with a negative inner product."""
        together = self.batches[:, None] == self.batches[None, :]
        apart = together & ~np.eye(len(self.gram), dtype=bool)
        return float((self.gram[apart] < 0).mean())


def estimate(looks: list[Look], size: int) -> dict[str, tuple[float, float]]:
    """Estimates how task gradients relate.

    Args:
      looks: at least 2, at the same parameters, independent of each other.
      size: the meta-batch size.

    Returns:
      Name to (value, half-width of the 95% interval), see `maml_jax.Diagnosis`; what is not
      known is left out. Numerators and denominators are averaged apart: the mean of ratios is
      biased.
    """
    everything = np.arange(len(looks))
    value = _values(looks, size)
    others = [_values([looks[j] for j in everything if j != i], size) for i in everything]
    found = {
        name: (value[name], _jackknife(np.array([other[name] for other in others])))
        for name in value
        if not math.isnan(value[name])
    }
    if "effective_tasks" in found:
        value, half_width = found["correlation"]
        # By ρ's interval: where ρ is cut off at 0, the jackknife would see no spread.
        low, high = (effective_tasks(size, value + sign * half_width) for sign in (1, -1))
        found["effective_tasks"] = (found["effective_tasks"][0], float(high - low) / 2)
    return found


def _values(looks: list[Look], size: int) -> dict[str, float]:
    found = averaged(looks)
    values = {name: float(function(found)) for name, function in _statistics(size).items()}
    own = [look.own_noise for look in looks if not math.isnan(look.own_noise)]
    values["own_noise"] = _share(float(np.mean(own)), found.variance) if own else math.nan
    values["conflicts"] = float(np.mean([look.conflicts for look in looks]))
    return values


def _statistics(size: int) -> dict[str, Callable[[Moments], float]]:
    return {
        "gain": lambda found: found.gain(size),
        "divisor": lambda found: size / found.gain(size),
        "coherence": lambda found: found.coherence,
        "correlation": lambda found: found.correlation,
        "group_correlation": lambda found: found.group_correlation,
        "effective_tasks": lambda found: found.effective_tasks(size),
        "noise_scale": lambda found: found.noise_scale,
    }


def averaged(looks: list[Look]) -> Moments:
    """Averages the moments of several looks.

    Args:
      looks: at the same parameters.

    Returns:
      The averages.
    """
    kinds = np.array([dataclasses.astuple(look.moments) for look in looks]).mean(axis=0)
    names = (field.name for field in dataclasses.fields(Moments))
    return Moments(**dict(zip(names, kinds.tolist(), strict=True)))


def norm_spread(looks: list[Look]) -> float:
    """Compares the largest norm of a task's gradient with the median norm.

    Args:
      looks: at the same parameters.

    Returns:
      The ratio; NaN if the median is 0.
    """
    norms = np.sqrt(np.concatenate([np.diagonal(look.gram) for look in looks]))
    return _share(float(norms.max()), float(np.median(norms)))


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _jackknife(others: np.ndarray) -> float:
    """Half-width of the 95% interval from what all but one give."""
    count = len(others)
    if not np.isfinite(others).all():
        return math.nan
    error = math.sqrt((count - 1) / count * np.square(others - others.mean()).sum())
    return _T95.get(count - 1, _NORMAL_95) * error
