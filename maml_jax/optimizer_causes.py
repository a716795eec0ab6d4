"""Experiments that find out why an optimizer is, or is not, homogeneous in the gradient.

Each takes a `Probe` and answers one question. Letters in shapes: S steps, P entries of all
parameters together, L leaves.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maml_jax.optimizer_clips import Clip, Floor, clip_of, floor_of
from maml_jax.optimizer_degree import CLOSE, Homogeneity, fraction_of, homogeneity, without_rounding
from maml_jax.optimizer_probe import VALUE, Probe, difference, leaf_norms, run_held, size
from maml_jax.tasks import Params

BEHIND = "what is made of the gradient, for entries all alike,"  # what a clip may bound


def uses_value(probe: Probe) -> bool:
    """Tells whether the updates depend on the loss value."""
    first, second = (probe.run(probe.stream, value=c * VALUE).updates for c in (1.0, 2.0))
    return bool(difference(probe, first, second).max() > CLOSE)


def moves_alone(probe: Probe) -> tuple[bool, bool]:
    """Runs on gradients of zero: (the parameters alone move them, something else does)."""
    rng, none = np.random.default_rng(2), np.zeros_like(probe.stream)
    spreads = [probe.params * rng.uniform(0.5, 1.5, len(probe.params)) for _ in range(6)]
    runs = [probe.run(none, params=spread, path=none + spread).updates for spread in spreads]
    runs = [np.where(np.isfinite(updates), updates, 0.0) for updates in runs]
    # A weak decay is no larger than what averages of parameters leave by rounding; but it moves all
    # entries of a leaf the same way, in or out, where rounding moves some, to and fro.
    alike = [
        _one_way(probe, updates, spread) for updates, spread in zip(runs, spreads, strict=True)
    ]
    rounding = 1e-6 * float(np.linalg.norm(probe.params))
    moves = bool(np.all(alike, axis=0).any()) or size(runs[0]) > rounding
    noise = bool(np.nan_to_num(run_held(probe, none, at_zero=True).updates).any())
    return moves and not noise, noise


def is_added_after(probe: Probe) -> bool:
    """Tells whether the parameters' own term is added to the rest: u(g,θ) = u(g,0) + u(0,θ)."""
    none = np.zeros_like(probe.stream)
    whole, rest, alone = (
        run_held(probe, grads, at_zero=at_zero).updates
        for grads, at_zero in ((probe.stream, False), (probe.stream, True), (none, False))
    )
    return size(whole - rest - alone) < 0.05 * size(alone) + 1e-6 * size(rest)


def period_of(probe: Probe) -> int:
    """Number of steps from one update to the next; 1 unless the optimizer accumulates."""
    moved = np.flatnonzero(probe.run(probe.stream).updates.any(axis=1)) + 1
    period = int(moved[0])
    regular = np.arange(period, probe.num_steps + 1, period)
    return period if len(regular) > 1 and np.array_equal(moved, regular) else 1


def accumulates(
    optimizer: optax.GradientTransformation, *, params: Params | None = None
) -> str | None:
    """Tells a mean from a sum over steps by what the state holds after one and two equal steps.

    Args:
      optimizer: one whose update comes every few steps.
      params: parameters that it takes; None is one matrix.

    Returns:
      "mean", "sum", or None where the state does not tell, as with updates every 2 steps.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    tree: Params = jnp.full((3, 3), 0.5, jnp.float32) if params is None else params
    grads = jax.tree.map(jnp.ones_like, tree)
    states, shapes = [optimizer.init(tree)], {leaf.shape for leaf in jax.tree.leaves(grads)}
    for _ in range(2):
        states.append(optimizer.update(grads, states[-1], tree, value=VALUE)[1])
    leaves = [[np.asarray(leaf) for leaf in jax.tree.leaves(state)] for state in states]
    ratios = [
        float(np.median(second / first))
        for before, first, second in zip(*leaves, strict=True)
        if first.shape in shapes and first.ndim and first.all() and not before.any()
    ]
    if not ratios or not (0.95 < min(ratios) < 1.05 or min(ratios) > 1.5):
        return None
    return "mean" if min(ratios) < 1.5 else "sum"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What the experiments found.

    Attributes:
      at: from the norm of the gradients to homogeneity there, the loss value left as it is.
      base: 0 or 1, the degree below a clip, above ε, after the first steps.
      fraction: another degree, the same at all usual gradients, or None.
      blurred: whether the parameters' rounding is larger than updates of small gradients.
      clip: where gradients are held back, or None.
      floor: where ε or its like takes over, for base 0, or None.
      floor_matters: whether that is seen at usual gradients.
      decays: whether the parameters alone move them.
      coupled: whether that term goes through what makes base 0 of degree 0.
      noise: whether something else moves the parameters at gradients of zero.
      value: homogeneity at norm 1 with the loss value multiplied too; None if it is not used.
      at_zero: homogeneity at norm 1 from parameters of zero; None for a caller's parameters.
      period: steps from one update to the next.
      usual: norms at which a degree must hold.
    """

    at: Mapping[float, Homogeneity]
    base: int
    fraction: float | None
    blurred: bool
    clip: Clip | None
    floor: Floor | None
    floor_matters: bool
    decays: bool
    coupled: bool
    noise: bool
    value: Homogeneity | None
    at_zero: Homogeneity | None
    period: int
    usual: tuple[float, ...]

    @property
    def value_matters(self) -> bool:
        """Whether the degree is kept only if the loss value is multiplied too."""
        return self.value is not None and self.value.off(self.base) < CLOSE < self.off

    @property
    def zero_matters(self) -> bool:
        """Whether the degree is another where parameters are zero."""
        return self.at_zero is not None and self.at_zero.off(self.base) > CLOSE >= self.off

    @property
    def off(self) -> float:
        """Largest relative difference from the base degree at gradients of norm 1."""
        return self.at[1.0].off(self.base)

    @property
    def is_homogeneous(self) -> bool:
        """Whether the base degree holds without a condition."""
        decays = self.decays and (self.base == 1 or self.coupled)
        broken = self.clip or decays or self.noise or self.value_matters or self.zero_matters
        return not broken and all(self.at[norm].off(self.base) < CLOSE for norm in self.usual)


def find(probe: Probe, factor: float, *, norms, usual, own_params: bool) -> Findings:
    """Makes all experiments.

    Args:
      probe: the optimizer.
      factor: by how much the gradients are multiplied, above 1.
      norms: of the gradients at which to measure; 1.0 is among them.
      usual: those at which a degree must hold.
      own_params: whether the probe's parameters are a caller's.

    Returns:
      The findings.
    """
    period, (decays, noise), valued = period_of(probe), moves_alone(probe), uses_value(probe)
    scaled = functools.partial(homogeneity, probe, factor=factor, value_factor=factor)
    held = functools.partial(scaled, held=True)
    clip = None if valued else clip_of(probe, at_zero=decays, period=period)
    exponent = held(100.0).late_exponent
    fraction = fraction_of(exponent, [held(norm).late_exponent for norm in usual])
    base, floor = int(exponent > 0.5), None
    if not (base or fraction or valued):
        floor = floor_of(probe, at_zero=decays)
    least = 0.5 * CLOSE * min(usual) / len(probe.params) ** 0.5
    if floor and floor.sharp and floor.entry > least:
        alike = len(probe.params) ** 0.5
        clip = clip or Clip(BEHIND, 2 * floor.entry, 2 * floor.entry * alike)
        floor = None
    if clip:
        # Below it even for the longest gradient with its largest entry, but not far below: ε.
        start = 0 * probe.params if decays else None
        below = homogeneity(probe, clip.norm / 32, 2.0, params=start, held=True)
        base = int(below.late_exponent > 0.5)
    at, blurred = {}, False
    for norm in norms:
        at[norm], lost = without_rounding(probe, norm, factor, base, own_params)
        blurred |= lost and norm in usual
    zero = None if own_params else homogeneity(probe, 1.0, factor, params=0 * probe.params)
    return Findings(
        at=at,
        base=base,
        fraction=fraction,
        blurred=blurred,
        clip=clip,
        floor=floor,
        floor_matters=floor is not None and floor.entry > least,
        decays=decays,
        coupled=decays and base == 0 and _is_coupled(probe, min(usual), factor),
        noise=noise,
        value=scaled(1.0) if valued else None,
        at_zero=zero,
        period=period,
        usual=usual,
    )


def _one_way(probe: Probe, updates: np.ndarray, params: np.ndarray) -> np.ndarray:
    """Leaves `[L]` that move, and whenever they do, all entries towards zero or all away."""
    moved = leaf_norms(probe, updates) > 0
    ways = [
        np.isclose(leaf_norms(probe, (way | (params == 0)).astype(float)) ** 2, probe.sizes)
        for way in (updates * params < 0, updates * params > 0)
    ]
    return np.asarray(np.all((ways[0] | ways[1] | ~moved) & moved.any(axis=0), axis=0))


def _is_coupled(probe: Probe, norm: float, factor: float) -> bool:
    """Whether it is the parameters' own term that breaks degree 0 at small gradients."""
    if is_added_after(probe):
        return False
    none = homogeneity(probe, norm, factor, params=0 * probe.params, held=True)
    off = homogeneity(probe, norm, factor, held=True).off(0)
    return off > max(1e-4, 3 * min(none.off(0), none.off(1)))
