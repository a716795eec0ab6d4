"""Projections on the dual cone {d: ⟨gᵢ, d⟩ ≥ 0 for all tasks}: no task is worked against."""

import jax
import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level
from maml_jax.aggregation.small_problems import nonnegative_minimum, per_length, unit_rows


def upgrad() -> Aggregation:
    """Averages the task gradients, each projected so that it conflicts with no task (UPGrad).

    (1/n) Σᵢ π(gᵢ), where π(gᵢ) is the nearest point to gᵢ of {d: ⟨gⱼ, d⟩ ≥ 0 for all j}. It is
    Σⱼ vⱼ gⱼ with v = argmin vᵀ G v over v ≥ eᵢ: one small problem for each task, all solved
    side by side, exactly, by pivoting.

    Returns:
      An aggregation of level GRAM, on the scale of the mean; the mean itself if no two tasks
      conflict. O(T³) for each of at most about T pivots. ⟨gⱼ, d⟩ is at least 0 up to rounding;
      where gradients are linearly dependent, G itself knows d only to about √eps of their
      lengths, and to less where they nearly point into a half space.

    References:
      Quinton, Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, proposition 1;
      https://arxiv.org/abs/2406.16232. The authors' code returns the mean where the trace of G
      is below a fixed threshold; here no scale is special.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> got = mj.aggregation.aggregate(mj.aggregation.upgrad(), grads)
      >>> print(jnp.array_str(got, precision=3))
      [0.25 0.75]
    """

    def coefficients(evidence, state):
        lengths, cosines = unit_rows(evidence.gram)
        longest = lengths.max()
        # The problem of ûᵢ, as v = eᵢ + x.
        added = jax.vmap(lambda row: nonnegative_minimum(cosines, row, size=1.0))(cosines)
        relative = lengths / jnp.where(longest > 0, longest, 1)
        points = jnp.eye(len(lengths), dtype=added.dtype) + added
        weights = per_length(relative @ points, relative)
        return evidence.over_valid(weights, evidence.num_valid), state

    return Aggregation(name="upgrad", level=Level.GRAM, coefficients=coefficients)


def dual_projection() -> Aggregation:
    """Projects the mean of the task gradients so that it conflicts with no task (DualProj).

    The nearest point to (1/n) Σᵢ gᵢ of {d: ⟨gⱼ, d⟩ ≥ 0 for all j}. It is Σⱼ vⱼ gⱼ with
    v = argmin vᵀ G v over v ≥ 1/n. Gradient episodic memory (GEM) projects the gradient of one
    task so; here the mean's is, and no task comes first.

    Returns:
      An aggregation of level GRAM, on the scale of the mean; the mean itself if it conflicts
      with no task. O(T²) for each of at most about T pivots; precision as of `upgrad`.

    References:
      Lopez-Paz, Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, the
      quadratic program in its dual form; https://arxiv.org/abs/1706.08840

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[1.0, 0.0], [-3.0, 4.0]])
      >>> got = mj.aggregation.aggregate(mj.aggregation.dual_projection(), grads)
      >>> print(jnp.array_str(got, precision=3, suppress_small=True))
      [0. 2.]
    """

    def coefficients(evidence, state):
        lengths, cosines = unit_rows(evidence.gram)
        longest = lengths.max()
        relative = lengths / jnp.where(longest > 0, longest, 1)
        added = nonnegative_minimum(cosines, cosines @ relative, size=relative.sum())
        weights = 1 + per_length(added, relative)
        return evidence.over_valid(weights, evidence.num_valid), state

    return Aggregation(name="dual_projection", level=Level.GRAM, coefficients=coefficients)
