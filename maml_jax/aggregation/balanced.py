"""Rules that give every task the same say, each in its own sense."""

from typing import Literal

import jax
import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level
from maml_jax.aggregation.small_problems import (
    bargain,
    equal_projections,
    per_length,
    spectrum,
    unit_rows,
)


def imtl_g() -> Aggregation:
    """Takes the combination that has equal projections on all task gradients (IMTL-G).

    g = Σᵢ cᵢ gᵢ with ⟨ûᵢ, g⟩ the same for all i, ûᵢ = gᵢ / ‖gᵢ‖, and Σᵢ cᵢ = 1. With the
    lengths d it is c ∝ G⁻¹ d, computed as cᵢ ∝ (K⁺ 1)ᵢ / dᵢ from the cosines K. Coefficients
    may be negative.

    Where linearly dependent gradients admit no equal projections, the direction is that of
    unit gradients' least squares; where Σᵢ cᵢ = 1 cannot be had because G⁻¹ d sums to 0 (up to
    rounding), the result is 0.

    Returns:
      An aggregation of level GRAM, on the scale of the mean. One eigendecomposition, O(T³).

    References:
      Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang, "Towards Impartial Multi-task Learning",
      ICLR 2021, the closed form of IMTL-G; https://openreview.net/forum?id=IMPnRXEWpvr.
      Implementations take G⁺ d, which weighs tasks by their lengths where gradients are
      dependent, and loses those shorter than √eps of the longest.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> got = mj.aggregation.aggregate(mj.aggregation.imtl_g(), grads)
      >>> print(jnp.array_str(got, precision=3))
      [0.667 0.667]
    """

    def coefficients(evidence, state):
        lengths, cosines = unit_rows(evidence.gram)
        point, _ = equal_projections(cosines, evidence.num_valid)
        weights = per_length(point, lengths / _or_one(lengths.max()))
        noise = 16 * evidence.num_valid * jnp.finfo(weights.dtype).eps
        total = weights.sum()
        determined = jnp.abs(total) > noise * jnp.abs(weights).sum()
        return evidence.over_valid(jnp.where(determined, weights, 0), total), state

    return Aggregation(name="imtl_g", level=Level.GRAM, coefficients=coefficients)


def config() -> Aggregation:
    """Takes the direction of equal cosines with all tasks, as long as they agree (ConFIG).

    (1/n) Σᵢ ⟨gᵢ, u⟩ u, with the unit vector u in the direction U⁺ 1, where the rows of U are
    the gradients' directions. It needs the cosines K only: U⁺ 1 = Uᵀ K⁺ 1.

    Returns:
      An aggregation of level GRAM, on the scale of the mean; 0 for opposite gradients. The
      authors' result is n times this. One eigendecomposition, O(T³).

    References:
      Liu, Chu, Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural
      Networks", ICLR 2025, equation 2; https://arxiv.org/abs/2408.11104

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> got = mj.aggregation.aggregate(mj.aggregation.config(), grads)
      >>> print(jnp.array_str(got, precision=3))
      [0.75 0.75]
    """

    def coefficients(evidence, state):
        lengths, cosines = unit_rows(evidence.gram)
        relative = lengths / _or_one(lengths.max())
        point, projections = equal_projections(cosines, evidence.num_valid)
        # ⟨gᵢ, u⟩ u = dᵢ (K x)ᵢ Uᵀ x / xᵀ K x.
        length = relative @ projections / _or_one(point @ projections)
        return evidence.over_valid(per_length(length * point, relative), evidence.num_valid), state

    return Aggregation(name="config", level=Level.GRAM, coefficients=coefficients)


def nash_mtl() -> Aggregation:
    """Takes the tasks' bargaining solution, in which each gains the same share (Nash-MTL).

    c > 0 with (Ĝ c)ᵢ = 1 / cᵢ, where Ĝ = G / ‖G‖_F, and the result is (1/n) Σᵢ cᵢ gᵢ. Its
    direction does not depend on the lengths of the gradients. The paper solves G c = 1/c, of
    which Σᵢ cᵢ gᵢ always has the length √n; dividing G by its norm makes the rule of degree 1,
    and identical gradients g give g.

    Linearly dependent gradients with 0 among their positive combinations have no solution: a
    ridge of 16 eps bounds c, and the tasks concerned get 0 up to √eps. A task with a gradient
    of 0 takes no part.

    Returns:
      An aggregation of level GRAM, on the scale of the mean. Some 10 Newton steps of O(T³), 40
      where there is no solution.

    References:
      Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik, Fetaya, "Multi-Task Learning as a
      Bargaining Game", ICML 2022; https://arxiv.org/abs/2202.01017. Ours is √‖G‖_F / n times the
      paper's. We solve the equation by Newton's method on the convex ½ cᵀ G c - Σ log cᵢ, whose
      gradient it is, in place of a sequence of convex programs, and clip nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> got = mj.aggregation.aggregate(mj.aggregation.nash_mtl(), grads)
      >>> print(jnp.array_str(got, precision=3))
      [0.595 0.595]
    """

    def coefficients(evidence, state):
        lengths, cosines = unit_rows(evidence.gram)
        relative = lengths / _or_one(lengths.max())
        norm = jnp.linalg.norm(cosines * relative[:, None] * relative[None])
        weights = per_length(jnp.sqrt(norm) * bargain(cosines), relative)
        return evidence.over_valid(weights, evidence.num_valid), state

    return Aggregation(name="nash_mtl", level=Level.GRAM, coefficients=coefficients)


def aligned_mtl(by: Literal["min", "median", "rmse"] = "min") -> Aggregation:
    """Averages the task gradients after making them orthogonal and equally long (Aligned-MTL).

    With the eigenvalues and eigenvectors G = V Λ Vᵀ, c = √λ V Λ^(-1/2) Vᵀ 1/n: the gradients
    become the nearest system of condition number 1, of length √λ.

    Args:
      by: what λ is among the eigenvalues above 0 (up to rounding): the least, the median (the
        lower of the middle two) or the mean, "rmse". "min" takes no longer a step than any task
        can bear, and makes it short where two tasks nearly agree.

    Returns:
      An aggregation of level GRAM, on the scale of the mean. One eigendecomposition, O(T³). It
      jumps where the rank of G changes.

    Raises:
      ValueError: if `by` is none of these.

    References:
      Senushkin, Patakin, Kuznetsov, Konushin, "Independent Component Alignment for Multi-Task
      Learning", CVPR 2023; https://arxiv.org/abs/2305.19000. The authors' code sums over the
      tasks: n times this.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> got = mj.aggregation.aggregate(mj.aggregation.aligned_mtl(), grads)
      >>> print(jnp.array_str(got, precision=3))
      [0.5 0.5]
    """
    if by not in ("min", "median", "rmse"):
        raise ValueError(f"by must be one of 'min', 'median', 'rmse', got {by!r}.")

    def coefficients(evidence, state):
        scaled = evidence.gram / _or_one(jnp.diagonal(evidence.gram).max())
        values, vectors, kept = spectrum(scaled, evidence.num_valid)
        rank = kept.sum()
        first = len(values) - rank  # They ascend, so those kept are the last.
        if by == "rmse":
            reference = jnp.where(kept, values, 0).sum() / _or_one(rank)
        else:
            after = 0 if by == "min" else jnp.maximum(rank - 1, 0) // 2
            reference = values[jnp.minimum(first + after, len(values) - 1)]
        along = jnp.where(evidence.valid, 1, 0) @ vectors
        along = jnp.where(kept, along * jnp.sqrt(reference / jnp.where(kept, values, 1)), 0)
        return evidence.over_valid(vectors @ along, evidence.num_valid), state

    return Aggregation(name=f"aligned_mtl({by!r})", level=Level.GRAM, coefficients=coefficients)


def _or_one(value: jax.Array) -> jax.Array:
    return jnp.where(value == 0, 1, value)
