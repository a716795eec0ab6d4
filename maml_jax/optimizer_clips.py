"""Searches for the size of a gradient at which an optimizer stops being homogeneous.

A clip ends it suddenly from below; ε and its like end it slowly from above. Letters in shapes:
S steps, P entries of all parameters together.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from maml_jax.optimizer_probe import Probe, difference, leaf_norms, run_held, size

_NORMS = 1.7 * 4.0 ** np.arange(-8, 8)  # searched for a clip; not round, for thresholds are
_ENTRIES = 10.0 ** np.arange(-14.0, 5.01, 0.25)  # searched for ε


class Clip(NamedTuple):
    """A sharp bound on the gradient.

    Attributes:
      what: what is bounded.
      threshold: the value of it above which the clip binds.
      norm: the global norm at which it binds when all entries are alike.
    """

    what: str
    threshold: float
    norm: float


class Floor(NamedTuple):
    """A constant that is compared with the gradient, and rules when gradients are small.

    Attributes:
      entry: the size of all entries at which the update is half of its plateau.
      under_root: whether it is added to the gradient's square.
    """

    entry: float
    under_root: bool


def clip_of(probe: Probe, *, at_zero: bool, period: int) -> Clip | None:
    """Searches for a size of the gradient from which on the optimizer holds it back.

    Gradients along one direction, of varying length, are multiplied until updates leave the
    degree they had, suddenly: entries alike everywhere, in one leaf, and a single entry. The
    measure in which the three thresholds agree is the one that is clipped.

    Args:
      probe: the optimizer.
      at_zero: whether to hold the parameters at zero, where no term of theirs disturbs.
      period: steps from one update to the next; gradients stay the same in between.

    Returns:
      The clip, with a threshold between 1e-4 and 1e4 in the global norm; None without one.
    """
    lengths = np.random.default_rng(1).uniform(0.3, 0.9, probe.num_steps)
    lengths[0] = 1.0
    lengths = np.repeat(lengths, period)[: probe.num_steps, None]
    smallest = int(np.argmin(probe.sizes))
    begin = int(np.sum(probe.sizes[:smallest]))
    leaf = np.zeros_like(probe.params)
    leaf[begin : begin + probe.sizes[smallest]] = 1 / np.sqrt(probe.sizes[smallest])
    entry = np.zeros_like(probe.params)
    entry[0] = 1.0
    directions = (probe.signs[0], leaf, entry)
    norms = [_onset(probe, lengths * direction, at_zero) for direction in directions]
    norm = norms[0]
    if norm is None:
        return None
    clipped = {
        what: [(n or math.nan) * measure(d) for n, d in zip(norms, directions, strict=True)]
        for what, measure in _measures(probe).items()
    }
    spread, what = min((max(at) / min(at), what) for what, at in clipped.items())
    if not spread < 1.05:
        return Clip("a measure of its own, here the global norm", norm, norm)
    return Clip(what, float(np.median(clipped[what])), norm)


def floor_of(probe: Probe, *, at_zero: bool) -> Floor | None:
    """Searches for the size of entries below which updates shrink with the gradient.

    With entries s all alike the update is s/(s + ε), or s/√(s² + ε²): from a tenth to nine
    tenths of its plateau s grows 81 times, or 20 times, which tells them apart.

    Args:
      probe: an optimizer of degree 0 at large gradients.
      at_zero: whether to hold the parameters at zero.

    Returns:
      The constant's reach; None if updates are the same down to entries of 1e-14.
    """
    alone = run_held(probe, np.zeros_like(probe.signs), at_zero=at_zero).updates
    late = slice(probe.num_steps // 2, None)
    ones = np.sign(probe.signs)
    sizes = [
        size((run_held(probe, s * ones, at_zero=at_zero).updates - alone)[late]) for s in _ENTRIES
    ]
    if not sizes[-5] > 0.95 * sizes[-1]:
        return None  # no plateau
    share = np.array(sizes) / sizes[-1]
    reached = [_crossing(share, level) for level in (0.1, 0.5, 0.9)]
    if reached[1] is None or reached[2] is None:
        return None
    return Floor(reached[1], reached[0] is not None and reached[2] / reached[0] < 40)


def _onset(probe: Probe, pattern: np.ndarray, at_zero: bool) -> float | None:
    """Smallest multiple of a pattern `[S, P]` of norm 1 at which homogeneity ends suddenly."""

    def updates_at(norm):
        return run_held(probe, norm * pattern, at_zero=at_zero).updates

    def off(first, second, factor):
        return [difference(probe, first, second / factor**degree) for degree in (0, 1)]

    def kept(offs, degree):
        return float(np.where(degree, offs[1], offs[0]).max())

    runs = [updates_at(norm) for norm in _NORMS]
    for j in range(1, len(_NORMS) - 1):
        before = off(runs[j - 1], runs[j], 4.0)
        degree = np.argmin(before, axis=0)  # below the threshold, by step and leaf
        noise = kept(before, degree)
        after = kept(off(runs[j], runs[j + 1], 4.0), degree)
        # ε fades in over decades: by 4 to 16 times per factor of 4. A clip is there at once.
        if not runs[j - 1].any() or noise > 1e-3 or after < max(2e-3, 50 * noise):
            continue
        low, high = 1.0, 4.0
        while high / low > 1.001:
            middle = np.sqrt(low * high)
            now = kept(off(runs[j], updates_at(middle * _NORMS[j]), middle), degree)
            low, high = (low, middle) if now > max(2e-4, 5 * noise) else (middle, high)
        return float(low * _NORMS[j])
    return None


def _measures(probe: Probe) -> dict[str, Callable[[np.ndarray], float]]:
    """What optimizers clip by, as functions of a gradient `[P]`."""
    sizes = np.array(probe.sizes)

    def leaves(vector):
        return leaf_norms(probe, vector[None])[0]

    def units(vector):  # columns of a matrix, whole vectors: Brock et al. 2021, section 4.1
        parts = np.split(vector, np.cumsum(sizes)[:-1])
        last = [shape[-1] if len(shape) > 1 else 1 for shape in probe.shapes]
        norms = [np.linalg.norm(p.reshape(-1, n), axis=0) for p, n in zip(parts, last, strict=True)]
        return np.concatenate(norms)

    return {
        "the global norm": lambda g: float(np.linalg.norm(g)),
        "each entry": lambda g: float(np.abs(g).max()),
        "the norm of each leaf": lambda g: float(leaves(g).max()),
        "the root mean square of each leaf": lambda g: float((leaves(g) / sizes**0.5).max()),
        "the norm of each unit over that of its parameters": lambda g: float(
            (units(g) / np.maximum(units(probe.params), 1e-3)).max()
        ),
    }


def _crossing(share: np.ndarray, level: float) -> float | None:
    """Largest entry at which the share of the plateau rises through a level."""
    below = np.flatnonzero(share[:-1] < level)
    if len(below) == 0:
        return None
    at = slice(below[-1], below[-1] + 2)
    logs = np.log(np.maximum(share[at], 1e-30)), np.log(_ENTRIES[at])
    return float(np.exp(np.interp(np.log(level), *logs)))
