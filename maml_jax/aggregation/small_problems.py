"""Small problems on a Gram matrix `[T, T]`: what rules of level GRAM must solve.

Most run on gradients of unit length: with gᵢ = ‖gᵢ‖ ûᵢ the matrix K of the cosines ⟨ûᵢ, ûⱼ⟩
has entries of at most 1 whatever the gradients' scale, and a weight xᵢ of ûᵢ is the weight
xᵢ / ‖gᵢ‖ of gᵢ. Tasks that are masked, or whose gradient is 0, have a row of zeros in K, and
every solver here leaves them out by that.

All is compiled, batched by `jax.vmap`, in the precision of the matrix. Tolerances are relative
to it: a Gram matrix knows lengths, and distances from a plane, to √eps of the gradients' own,
3e-4 in float32 and 1e-8 in float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Of eps: what rounding may leave of a number that would be 0. Of the order of the sums' length.
_ROUNDING = 16
_MAX_NEWTON_STEPS = 100


def unit_rows(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Parts a Gram matrix into lengths and cosines.

    Args:
      gram: G `[T, T]`.

    Returns:
      ‖gᵢ‖ `[T]`, and K `[T, T]` with Kᵢⱼ = Gᵢⱼ / (‖gᵢ‖ ‖gⱼ‖), 0 where a gradient is 0.
    """
    lengths = jnp.sqrt(jnp.diagonal(gram))
    nonzero = lengths > 0
    # One division after the other: the product of two lengths may underflow.
    cosines = gram / jnp.where(nonzero, lengths, 1)[:, None] / jnp.where(nonzero, lengths, 1)[None]
    on_diagonal = jnp.eye(len(lengths), dtype=bool)
    return lengths, jnp.where(on_diagonal, nonzero.astype(gram.dtype), jnp.clip(cosines, -1, 1))


def per_length(values: jax.Array, lengths: jax.Array) -> jax.Array:
    """Gives values `[T]` over lengths `[T]`, and 0 over a length of 0."""
    return jnp.where(lengths > 0, values / jnp.where(lengths > 0, lengths, 1), 0)


def spectrum(matrix: jax.Array, num_valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Decomposes a positive semidefinite matrix, with its numerical rank.

    Args:
      matrix: `[T, T]`.
      num_valid: number of tasks that count.

    Returns:
      Eigenvalues λ `[T]`, ascending; eigenvectors in the columns of V `[T, T]`; booleans `[T]`,
      which λ are above rounding: more than 16 n eps of the largest.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    floor = _ROUNDING * num_valid * jnp.finfo(matrix.dtype).eps * values[-1]
    return values, vectors, values > floor


def equal_projections(cosines: jax.Array, num_valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the direction whose projections on all unit gradients are the same.

    x = K⁺ 1, for which K x = 1 if there is such a direction, else the nearest to it.

    Args:
      cosines: K `[T, T]`.
      num_valid: number of tasks that count.

    Returns:
      x `[T]` and K x `[T]`; both 0 if 1 is orthogonal to the range of K up to rounding, as for
      two opposite gradients.
    """
    values, vectors, kept = spectrum(cosines, num_valid)
    along = jnp.where(kept, vectors.sum(axis=0, where=jnp.diagonal(cosines)[:, None] > 0), 0)
    # A component of 1 that is nothing but rounding would decide the direction alone.
    noise = _ROUNDING * num_valid * jnp.finfo(cosines.dtype).eps
    along = jnp.where(along @ along > noise**2 * num_valid, along, 0)
    return vectors @ (along / jnp.where(kept, values, 1)), vectors @ along


class _Pivots(NamedTuple):
    table: jax.Array
    chosen: jax.Array
    point: jax.Array
    count: jax.Array
    done: jax.Array


def nonnegative_minimum(
    matrix: jax.Array, linear: jax.Array, *, size: jax.Array | float
) -> jax.Array:
    """Minimises ½ xᵀ K x + qᵀ x over x ≥ 0 by pivoting, for a K of diagonal 1 or zero rows.

    The active-set method of Lawson and Hanson: the variable whose entry lowers the objective
    most enters, and leaves again when it would turn negative. The equations are kept solved by
    principal pivots, O(T²) each, of which there are about as many as positive variables. A
    variable enters only if its gradient is not, up to rounding, in the span of those chosen:
    K may have any rank.

    Args:
      matrix: K `[T, T]`, positive semidefinite.
      linear: q `[T]`.
      size: the size of the terms that q is a sum of; its rounding is relative to that.

    Returns:
      x `[T]`.

    References:
      Lawson, Hanson, "Solving Least Squares Problems", 1974, algorithm NNLS in chapter 23;
      Cottle, Pang, Stone, "The Linear Complementarity Problem", 1992, for principal pivots.
    """
    num_rows = len(linear)
    noise = _ROUNDING * jnp.finfo(matrix.dtype).eps
    rows = jnp.arange(num_rows)

    def step(now: _Pivots) -> _Pivots:
        last, diagonal = now.table[:, -1], jnp.diagonal(now.table)
        target = jnp.where(now.chosen, last, 0)
        blocked = now.chosen & (target <= 0)
        ratio = now.point / jnp.where(blocked & (now.point > target), now.point - target, 1)
        ratio = jnp.where(blocked, ratio, jnp.inf)
        point = now.point + jnp.minimum(1, ratio.min()) * (target - now.point)
        falls = ~now.chosen & (diagonal > noise) & (last < -noise * (size + point.sum()))
        gain = jnp.where(falls, jnp.square(last) / jnp.where(falls, diagonal, 1), -1)
        pivot = jnp.where(blocked.any(), ratio.argmin(), gain.argmax())
        done = ~blocked.any() & ~falls.any()
        return _Pivots(
            table=_principal_pivot(now.table, pivot),
            chosen=now.chosen ^ ((rows == pivot) & ~done),
            point=jnp.where(blocked & (rows == pivot), 0, point),
            count=now.count + 1,
            done=done,
        )

    start = _Pivots(
        table=jnp.concatenate([matrix, linear[:, None]], axis=1),
        chosen=jnp.zeros(num_rows, bool),
        point=jnp.zeros_like(linear),
        count=jnp.zeros((), int),
        done=jnp.zeros((), bool),
    )
    # Rounding could let a variable come and go for ever.
    end = jax.lax.while_loop(lambda now: ~now.done & (now.count < 4 * num_rows + 8), step, start)
    return end.point


def _principal_pivot(table: jax.Array, index: jax.Array) -> jax.Array:
    """Exchanges xₖ and wₖ in the equations w = K x + q, kept as `[T, T + 1]`."""
    row = (jnp.arange(len(table)) == index)[:, None]
    column = jnp.arange(table.shape[1]) == index
    of_row = jnp.where(row, table, 0).sum(axis=0)
    of_column = jnp.where(column[None], table, 0).sum(axis=1)
    pivot = of_row[index]
    inside = table - of_column[:, None] * (of_row / pivot)[None]
    outside = jnp.where(row, -of_row[None], of_column[:, None]) / pivot
    changed = jnp.where(row & column[None], 1 / pivot, outside)
    return jnp.where(row | column[None], changed, inside)


def bargain(cosines: jax.Array) -> jax.Array:
    """Solves K x = 1/x for x > 0 by a damped Newton's method.

    x minimises the convex ½ xᵀ K x - Σ log xᵢ, which is self-concordant: with the step
    1 / (1 + λ), λ the length of Newton's step in the local metric, it falls at every step, and
    near the minimum, with full steps, converges quadratically.

    Args:
      cosines: K `[T, T]`, positive semidefinite; rows of zeros take no part.

    Returns:
      x `[T]`, 0 where K's row is. A ridge of 16 eps on K keeps it finite.

    References:
      Nesterov, "Lectures on Convex Optimization", 2018, section 5.2, for the damped method.
    """
    eps = jnp.finfo(cosines.dtype).eps
    present = jnp.diagonal(cosines) > 0
    ridge = jnp.eye(len(cosines), dtype=cosines.dtype) * _ROUNDING * eps
    regular = cosines + jnp.where(present[:, None], ridge, 0)

    def step(now):
        point, _, count = now
        slope = jnp.where(present, regular @ point - 1 / point, 0)
        factor = jax.scipy.linalg.cho_factor(regular + jnp.diag(1 / jnp.square(point)))
        move = jax.scipy.linalg.cho_solve(factor, slope)
        decrement = jnp.sqrt(jnp.maximum(slope @ move, 0))
        damped = jnp.where(decrement > 0.25, 1 / (1 + decrement), 1)
        return point - damped * move, decrement, count + 1

    def going(now):
        _, decrement, count = now
        # The step after this is below rounding.
        return (decrement > jnp.sqrt(eps) / 8) & (count < _MAX_NEWTON_STEPS)

    start = jnp.where(present, jnp.sqrt(present.sum() / (present @ regular @ present)), 1)
    begin = start.astype(cosines.dtype), jnp.asarray(jnp.inf, cosines.dtype), 0
    return jnp.where(present, jax.lax.while_loop(going, step, begin)[0], 0)
