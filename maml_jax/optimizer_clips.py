"""Searches for the size of a gradient at which an optimizer stops being homogeneous.

A clip ends it suddenly from below; ε and its like end it slowly from above. Letters in shapes:
S steps, P entries of all parameters together.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from maml_jax.optimizer_probe import Probe, difference, leaf_norms, run_held, size

_NORMS = 4.0 ** np.arange(-7, 7)  # searched for a clip
_SHORTEST = 0.3  # the shortest gradient of a stream, in units of the longest
_ALIKE = 1e-4  # relative difference of updates that is rounding
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
      sharp: whether updates are s/max(s, ε), which a clip of what momentum makes of the gradient
        does as well.
    """

    entry: float
    under_root: bool
    sharp: bool


def clip_of(probe: Probe, *, at_zero: bool, period: int) -> Clip | None:
    """Searches for a size of the gradient from which on the optimizer holds it back.

    What is clipped in every step has lost its length: two streams of gradients of the same
    directions and other lengths then make the same updates. The threshold is where that begins,
    for entries alike everywhere, in one leaf, and for a single entry; the measure in which the
    three thresholds agree is the one that is clipped. One behind momentum is not found here.

    Args:
      probe: the optimizer.
      at_zero: whether to hold the parameters at zero, where no term of theirs disturbs.
      period: steps from one update to the next; gradients stay the same in between.

    Returns:
      The clip, with a threshold between 1e-4 and 1e3 in the global norm; None without one.
    """
    rng = np.random.default_rng(1)
    lengths = rng.uniform(_SHORTEST, 1.0, (2, probe.num_steps, 1))
    lengths[0, 1] = lengths[1, 0] = _SHORTEST
    signs = np.sign(probe.signs)
    smallest = int(np.argmin(probe.sizes))
    begin = int(np.sum(probe.sizes[:smallest]))
    supports = np.zeros((3, len(probe.params)))
    supports[0] = 1.0
    supports[1, begin : begin + probe.sizes[smallest]] = 1.0
    supports[2, 0] = 1.0
    directions = [support / np.linalg.norm(support) for support in supports]
    norms = []
    for direction in directions:
        streams = [np.repeat(length * signs * direction, period, axis=0) for length in lengths]
        norms.append(_start(probe, [stream[: probe.num_steps] for stream in streams], at_zero))
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

    With entries s all alike the update is s/(s + ε), or s/√(s² + ε²), or min(s, ε): from a tenth
    to nine tenths of its plateau s grows 81 times, 20 times, or 9 times, which tells them apart.

    Args:
      probe: an optimizer of degree 0 at large gradients.
      at_zero: whether to hold the parameters at zero.

    Returns:
      The constant's reach; None if updates are the same down to entries of 1e-14.
    """
    alone = run_held(probe, np.zeros_like(probe.signs), at_zero=at_zero).updates
    late = slice(probe.num_steps // 2, None)
    ones = np.sign(probe.signs[:1]) + np.zeros_like(probe.signs)
    sizes = [
        size((run_held(probe, s * ones, at_zero=at_zero).updates - alone)[late]) for s in _ENTRIES
    ]
    share = np.array(sizes) / sizes[-1]
    reached = [_crossing(share, level) for level in (0.1, 0.5, 0.9)]
    if reached[1] is None or reached[2] is None:
        return None
    width = reached[2] / reached[0] if reached[0] else math.inf
    return Floor(reached[1], under_root=14 < width < 40, sharp=width < 14)


def _start(probe: Probe, streams: list[np.ndarray], at_zero: bool) -> float | None:
    """Norm from which on streams that differ in lengths make the same updates, all at once."""

    def apart(factor):
        runs = [run_held(probe, factor * stream, at_zero=at_zero).updates for stream in streams]
        return float(np.nan_to_num(difference(probe, *runs), nan=1.0).max())

    if apart(_NORMS[-1]) > _ALIKE:
        return None
    differing = [norm for norm in _NORMS if apart(norm) > _ALIKE]
    if not differing:
        return None
    low, high = differing[-1], 4.0 * differing[-1]
    while high / low > 1.001:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if apart(middle) > _ALIKE else (low, middle)
    # A constant that is added, ε, fades by 4 to 16 times per factor of 4; a clip is there at once.
    return high * _SHORTEST if apart(high / 4) > 100 * _ALIKE else None


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
