"""Compares what an optimizer makes of gradients and of a multiple of them.

Letters in shapes: S steps, P entries of all parameters together, L leaves.
"""

from typing import NamedTuple

import numpy as np

from maml_jax.optimizer_probe import VALUE, Probe, difference, size

CLOSE = 1e-2  # relative difference below which two updates count as the same


class Homogeneity(NamedTuple):
    """How updates change when gradients are multiplied by c, at one size of the gradients.

    Attributes:
      size: typical norm of u(g).
      exponent: p of ‖u(c·g)‖ = cᵖ ‖u(g)‖, over all steps, each run with its own parameters.
      late_exponent: the same over the second half of the steps.
      zero: `[S, L]`, relative difference of u(c·g) and u(g).
      one: `[S, L]`, relative difference of u(c·g)/c and u(g).
      moved: `[S]`, whether the step moved the parameters.
    """

    size: float
    exponent: float
    late_exponent: float
    zero: np.ndarray
    one: np.ndarray
    moved: np.ndarray

    def off(self, degree: int) -> float:
        """Returns the largest relative difference from one degree, 0 or 1."""
        return float((self.one if degree else self.zero).max())


def homogeneity(
    probe: Probe,
    norm: float,
    factor: float,
    *,
    params: np.ndarray | None = None,
    held: bool = False,
    value_factor: float = 1.0,
) -> Homogeneity:
    """Compares the updates of a stream of gradients g and of factor · g.

    Both runs see the parameters of the first, as they would with a converted learning rate.
    For degree 1 the second may also follow its own path: averages of the parameters inside the
    optimizer scale with the steps. Parameters are held where the first run diverges.

    Args:
      probe: the optimizer.
      norm: typical norm of the gradients.
      factor: c, above 1.
      params: `[P]`, where to start; None is the probe's parameters.
      held: whether the parameters stay there.
      value_factor: by how much the loss value is multiplied in the second run.

    Returns:
      Exponents and differences.
    """
    grads = norm * probe.stream
    start = probe.params if params is None else params
    still = np.zeros_like(grads) + start
    base = probe.run(grads, params=start, path=still if held else None)
    if not held and not np.isfinite(base.updates).all():
        base, held = probe.run(grads, params=start, path=still), True
    value = value_factor * VALUE
    along = probe.run(factor * grads, params=start, path=base.path, value=value)
    own = along if held else probe.run(factor * grads, params=start, value=value)
    ones = [difference(probe, base.updates, run.updates / factor) for run in (along, own)]
    better = int(ones[1].max() < ones[0].max())
    late = slice(probe.num_steps // 2, None)
    return Homogeneity(
        size=size(base.updates),
        exponent=_exponent(base.updates, own.updates, factor),
        late_exponent=_exponent(base.updates[late], own.updates[late], factor),
        zero=difference(probe, base.updates, along.updates),
        one=ones[better],
        moved=np.asarray(base.updates.any(axis=1)),
    )


def first_steps(found: Homogeneity) -> tuple[int, int] | None:
    """Finds a change of degree with time: (number of first steps, their degree), or None."""
    fits = [(off.max(axis=1) < CLOSE) | ~found.moved for off in (found.zero, found.one)]
    for degree in (0, 1):
        count = int(np.argmin(np.append(fits[degree], False)))
        before, after = found.moved[:count], found.moved[count:]
        if before.any() and after.any() and fits[1 - degree][count:].all():
            return count, degree
    return None


def leaf_degrees(found: Homogeneity) -> list[int | None]:
    """Degree of each leaf, `[L]`; None where it is neither 0 nor 1."""
    off = found.zero.max(axis=0), found.one.max(axis=0)
    return [
        0 if zero < CLOSE else 1 if one < CLOSE else None for zero, one in zip(*off, strict=True)
    ]


def fraction_of(exponent: float, others: list[float]) -> float | None:
    """Finds a degree that is neither 0 nor 1.

    Args:
      exponent: at one size of the gradients.
      others: at other sizes.

    Returns:
      It, if it is the same at all sizes, or None.
    """
    same = all(abs(other - exponent) < 0.02 for other in others)
    return exponent if same and 0.1 < exponent < 0.9 else None


def without_rounding(
    probe: Probe, norm: float, factor: float, base: int, own_params: bool
) -> tuple[Homogeneity, bool]:
    """Compares updates, from parameters of zero if only the rounding of others breaks a degree.

    Args:
      probe: the optimizer.
      norm: typical norm of the gradients.
      factor: by how much they are multiplied.
      base: 0 or 1, the degree to expect.
      own_params: whether the probe's parameters are a caller's, and to be kept.

    Returns:
      (homogeneity, whether it is from parameters of zero).
    """
    found = homogeneity(probe, norm, factor)
    if own_params or found.off(base) < CLOSE:
        return found, False
    if found.size * found.off(base) > 1e-6 * float(np.linalg.norm(probe.params)):
        return found, False
    at_zero = homogeneity(probe, norm, factor, params=0 * probe.params)
    return (at_zero, True) if at_zero.off(base) < CLOSE else (found, False)


def _exponent(first, second, factor) -> float:
    sizes = size(first), size(second)
    return float(np.log(sizes[1] / sizes[0]) / np.log(factor)) if min(sizes) > 0 else float("nan")
