"""The best direction near the mean for the task that gains least."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level
from maml_jax.aggregation.small_problems import nonnegative_minimum, per_length, unit_rows

# Of eps: how precisely the edge of the ball is met.
_PRECISION = 32
_MAX_ATTEMPTS = 64


def cagrad(c: float = 0.4) -> Aggregation:
    """Looks near the mean for the direction in which the worst task gains most (CAGrad).

    d = argmax min_i ⟨gᵢ, d⟩ over ‖d - g₀‖ ≤ c ‖g₀‖, with g₀ the mean; the result is d / (1 + c),
    since identical gradients g give d = (1 + c) g.

    We look for the largest t for which the nearest point to g₀ with ⟨gᵢ, d⟩ ≥ t for all i is
    no farther than c ‖g₀‖: one least-distance problem, solved exactly by pivoting, for each of
    a handful of Newton steps on t. Where several d are best, as when two tasks are opposite, it
    is the nearest to g₀.

    Args:
      c: how far from the mean, in lengths of the mean; in [0, 1), static. 0 gives the mean,
        and below 1 the loss of the mean still falls.

    Returns:
      An aggregation of level GRAM, on the scale of the mean. O(T²) for each of some 10 T pivots.

    Raises:
      ValueError: if c is not in [0, 1).

    References:
      Liu, Liu, Jin, Stone, Liu, "Conflict-Averse Gradient Descent for Multi-task Learning",
      NeurIPS 2021, algorithm 1; https://arxiv.org/abs/2110.14048. The authors minimise the dual,
      g_wᵀ g₀ + c ‖g₀‖ ‖g_w‖ over convex combinations g_w, by a general solver, and their code
      offers d, d / (1 + c) and d / (1 + c²).

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> got = mj.aggregation.aggregate(mj.aggregation.cagrad(0.5), grads)
      >>> print(jnp.array_str(got, precision=3))
      [0.667 0.706]
    """
    if not 0 <= c < 1:
        raise ValueError(f"c must be in [0, 1), got {c}.")

    def coefficients(evidence, state):
        lengths, cosines = unit_rows(evidence.gram)
        longest = lengths.max()
        relative = lengths / jnp.where(longest > 0, longest, 1)
        count = jnp.maximum(evidence.num_valid, 1).astype(lengths.dtype)
        gains = cosines @ relative / count
        radius = c * jnp.sqrt(jnp.maximum(relative @ gains, 0) / count)
        at_rest = (evidence.valid & (lengths == 0)).any()
        found = _edge_of_the_ball(_Ball(cosines, relative, gains, radius, at_rest))
        weights = 1 / count + radius * per_length(found, relative)
        return evidence.over_valid(weights, jnp.asarray(1.0 + c, weights.dtype)), state

    return Aggregation(name=f"cagrad({c})", level=Level.GRAM, coefficients=coefficients)


class _Ball(NamedTuple):
    """The ball around g₀, and what the tasks gain in its centre: ⟨ûᵢ, g₀⟩."""

    cosines: jax.Array
    lengths: jax.Array
    gains: jax.Array
    radius: jax.Array
    at_rest: jax.Array


class _Search(NamedTuple):
    low: jax.Array
    high: jax.Array
    aim: jax.Array
    found: jax.Array
    count: jax.Array
    done: jax.Array


def _edge_of_the_ball(ball: _Ball) -> jax.Array:
    """Finds the λ ≥ 0 `[T]` with d = g₀ + radius Σᵢ λᵢ ûᵢ, by a safe Newton's method on t."""
    present = ball.lengths > 0
    tolerance = _PRECISION * jnp.finfo(ball.lengths.dtype).eps

    def least(gains):
        worst = jnp.where(present, ball.lengths * gains, jnp.inf).min(initial=jnp.inf)
        # A task at rest gains 0 whatever d is.
        worst = jnp.where(ball.at_rest, jnp.minimum(worst, 0), worst)
        return jnp.where(jnp.isfinite(worst), worst, 0)

    def step(now: _Search) -> _Search:
        multipliers, distance = _nearest(ball, now.aim)
        inside = distance <= 1 + tolerance
        low = jnp.where(inside, now.aim, now.low)
        high = jnp.where(inside, now.high, now.aim)
        # The distance is a convex and increasing function of t, with this derivative.
        slope = per_length(multipliers, ball.lengths).sum() / (ball.radius * distance)
        aim = now.aim - (distance - 1) / slope
        # Far outside it may be infinite; NaN fails every comparison.
        trusted = (distance < 4) & (aim > low) & (aim < high)
        met = jnp.abs(distance - 1) <= tolerance
        closed = high - low <= tolerance * jnp.maximum(jnp.abs(low), jnp.abs(high))
        return _Search(
            low=low,
            high=high,
            aim=jnp.where(trusted, aim, (low + high) / 2),
            found=jnp.where(inside, multipliers, now.found),
            count=now.count + 1,
            done=met | closed,
        )

    high = least(ball.gains + ball.radius)
    start = _Search(
        low=least(ball.gains),
        high=high,
        aim=high,
        found=jnp.zeros_like(ball.lengths),
        count=jnp.zeros((), int),
        done=ball.radius <= 0,
    )
    going = lambda now: ~now.done & (now.count < _MAX_ATTEMPTS)  # noqa: E731
    return jax.lax.while_loop(going, step, start).found


def _nearest(ball: _Ball, gain: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the nearest point to g₀ where every task gains `gain`, in units of the radius.

    Least-distance programming: min ‖z‖ over ⟨ûᵢ, z⟩ ≥ hᵢ is min ½ ‖(Σuᵢ ûᵢ, hᵀu - 1)‖² over
    u ≥ 0, and z = Σ uᵢ ûᵢ / (1 - hᵀu); Lawson, Hanson, "Solving Least Squares Problems", 1974,
    algorithm LDP in chapter 23.
    """
    heights = (per_length(gain, ball.lengths) - ball.gains) / ball.radius
    heights = jnp.where(ball.lengths > 0, heights, 0)
    rest = 1 / jnp.hypot(1.0, heights)
    lift = heights * rest
    lifted = ball.cosines * rest[:, None] * rest[None] + lift[:, None] * lift[None]
    point = nonnegative_minimum(lifted, -lift, size=1.0)
    # At the minimum this is also its squared norm, 1 / (1 + ‖z‖²); 0 where there is no z.
    left = jnp.maximum(1 - lift @ point, jnp.finfo(lift.dtype).eps)
    return point * rest / left, jnp.sqrt(jnp.maximum(1 - left, 0) / left)
