"""What changes for an optimizer when task gradients are summed instead of averaged.

The sum over B tasks is B times their mean. An optimizer is of degree p when B times the gradient
makes Bᵖ times the update:

    degree 1   SGD, momentum        the sum at η/B is the mean at η
    degree 0   Adam and its kin     the divisor does nothing
    mixed      a clip, an L2 term, a large ε, …   as if other settings had been changed too

The optimizer is a black box here: it is run on made-up gradients, and on B times the same.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import optax

from maml_jax.inner_checks import check_count
from maml_jax.optimizer_causes import accumulates, find
from maml_jax.optimizer_degree import homogeneity
from maml_jax.optimizer_probe import make_probe
from maml_jax.reduction_reasons import reasons_for, settings_for
from maml_jax.tasks import Params

Degree = Literal["0", "1", "mixed"]
_NORMS = (1e-6, 1e-3, 1e-2, 1.0, 1e3)
_USUAL = (1e-2, 1.0, 1e3)  # a degree must hold at these


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReductionReport:
    """What the divisor of the meta-batch does to an optimizer; `print` it for advice.

    Attributes:
      degree: "1", "0" or "mixed", at gradients of norm 0.01 to 1000·B over some 30 entries.
      base_degree: 0 or 1, the degree without what breaks it: below a clip, above ε, late.
      exponents: from the norm of the gradients to p of ‖u(B·g)‖ = Bᵖ ‖u(g)‖; nan where the
        optimizer does not move.
      reasons: plain sentences: what breaks the degree, and where.
      settings: from a setting to the factor that takes its value under the mean to the value
        that does the same under the sum; empty where nothing is to be done, or can be. "eps"
        is one added to a root, "eps_under_root" one added to squares, as an initial
        accumulator is; both of the denominator alone (optax.adadelta has its ε in the numerator
        too: divide the learning rate by B as well).
      effect: largest relative difference, in [0, 2], of an update under the sum and under the
        mean at gradients of norm about 1; for base degree 1 with the learning rate over B.
      meta_batch_size: B.

    Example:
      >>> import optax
      >>> import maml_jax as mj
      >>> report = mj.reduction_report(optax.sgd(0.1, momentum=0.9), meta_batch_size=4)
      >>> report.degree, report.settings
      ('1', {'learning_rate': 0.25})
    """

    degree: Degree
    base_degree: int
    exponents: Mapping[float, float]
    reasons: tuple[str, ...]
    settings: Mapping[str, float]
    effect: float
    meta_batch_size: int

    def __str__(self) -> str:
        """Says what to do, in a few lines."""
        size, notes = self.meta_batch_size, "".join(f"\n- {reason}" for reason in self.reasons)
        if size == 1:
            return f"Degree {self.degree}. The sum over 1 task is its mean.{notes}"
        off = f"largest difference {self.effect:.0e}" if self.effect else "no difference"
        if self.degree == "0":
            head = (
                f"Degree 0. Mean and sum give the same updates ({off}): the divisor does nothing."
            )
        elif self.degree == "1":
            head = f"Degree 1. The sum at learning rate η/{size} is the mean at η ({off})."
        else:
            how = f"at η/{size}" if self.base_degree else "at the same settings"
            percent = 100 * self.effect
            most = f"{percent:.0f}%" if percent > 99 else f"{percent:.2g}%"
            head = f"Mixed. The sum's updates {how} differ from the mean's, by {most} at norm 1:"
        return f"{head}{notes}{self._advice()}"

    def _advice(self) -> str:
        if self.degree != "mixed":
            return ""
        if not self.settings:
            return "\nNo setting makes them the same: stay with the mean."
        factors = ", ".join(f"{name} × {factor:g}" for name, factor in self.settings.items())
        return f"\nTo go from mean to sum: {factors}."


def reduction_report(
    optimizer: optax.GradientTransformation,
    meta_batch_size: int,
    *,
    params: Params | None = None,
    num_steps: int = 24,
) -> ReductionReport:
    """Tells what it means for an optimizer to sum task gradients instead of averaging them.

    Runs the optimizer, compiled once, on some hundred streams of gradients of various sizes
    and on B times the same, in the precision of the parameters; a second or less.

    Args:
      optimizer: any optax transformation that needs no more than (grads, state, params) and the
        loss `value`.
      meta_batch_size: B, number of tasks, at least 1.
      params: parameters to try it on, for optimizers that treat leaves by name, or to see what
        holds at yours; None is a vector and two matrices of 33 entries in float32.
      num_steps: steps of each run, at least 4; more to see a change that comes later.

    Returns:
      The report.

    Raises:
      TypeError: if the optimizer is not an optax transformation or a count is not an integer.
      ValueError: if a count is too small, or the optimizer cannot run this way.

    Example:
      >>> import optax
      >>> import maml_jax as mj
      >>> clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
      >>> print(mj.reduction_report(clipped, meta_batch_size=4))
      Mixed. The sum's updates at η/4 differ from the mean's, by 75% at norm 1:
      - A clip of the global norm binds above 1; under the sum, where the mean is above 0.25.
      To go from mean to sum: learning_rate × 0.25, clip × 4.
    """
    _check(optimizer, num_steps)
    check_count("meta_batch_size", meta_batch_size, at_least=1)
    probe = make_probe(optimizer, params=params, num_steps=num_steps)
    factor = float(max(2, meta_batch_size))
    found = find(probe, factor, norms=_NORMS, usual=_USUAL, own_params=params is not None)
    accumulated = accumulates(optimizer, params=params) if found.period > 1 else None
    mixed, several = not found.is_homogeneous, meta_batch_size > 1
    return ReductionReport(
        degree="mixed" if mixed else "1" if found.base else "0",
        base_degree=found.base,
        exponents={norm: found.at[norm].exponent for norm in _NORMS},
        reasons=reasons_for(found, probe, factor, accumulated=accumulated),
        settings=settings_for(found, probe, factor) if several else {},
        effect=found.off if several else 0.0,
        meta_batch_size=meta_batch_size,
    )


def degree_of(
    optimizer: optax.GradientTransformation, *, params: Params | None = None
) -> float | None:
    """Tells the degree of an optimizer at usual gradients, after its first steps.

    Less strict than `reduction_report`: a weak L2 term, or a clip in front of Adam, does not
    change the size of updates and is not seen.

    Args:
      optimizer: any optax transformation, as for `reduction_report`.
      params: parameters to try it on; None is a small tree.

    Returns:
      1.0, 0.0, or None if it depends on the size of the gradients (norms 0.1 to 320).

    Raises:
      TypeError: if the optimizer is not an optax transformation.
      ValueError: if the optimizer cannot run this way.

    Example:
      >>> import optax
      >>> from maml_jax.reduction_report import degree_of
      >>> degree_of(optax.sgd(0.1)), degree_of(optax.adamw(1e-3))
      (1.0, 0.0)
    """
    _check(optimizer)
    probe = make_probe(optimizer, params=params)
    found = [homogeneity(probe, norm, 32.0).late_exponent for norm in (0.1, 1.0, 10.0)]
    fits = [p for p in (0.0, 1.0) if all(abs(exponent - p) < 0.15 for exponent in found)]
    return fits[0] if fits else None


def _check(optimizer, num_steps: int = 24) -> None:
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "optimizer must be an optax transformation such as optax.adam(1e-3), got "
            f"{type(optimizer).__name__}."
        )
    check_count("num_steps", num_steps, at_least=4)
