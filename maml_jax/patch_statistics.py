"""Batch statistics of a convolution's outputs, from its inputs.

An output is a sum over the patch p of inputs that the kernel sees, y = Wᵀ p. So

    mean(y) = Wᵀ mean(p)        var(y) = diag(Wᵀ cov(p) W)

over all examples and positions. For images of few channels patches are narrow, the two moments
small, and known before the convolution is: what normalises y can go into its kernel. And the
derivatives of the statistics are those of two small products, not passes over y.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.by_examples import by_examples
from maml_jax.convolution_cpu import group_size
from maml_jax.convolution_products import Geometry, patches
from maml_jax.normalisation import counted_examples, variance_or_one


def patch_moments(
    x: jax.Array, mask: jax.Array | None, geometry: Geometry
) -> tuple[jax.Array, jax.Array]:
    """Computes mean `[K]` and covariance `[K, K]` of the patches of the unmasked examples.

    Args:
      x: inputs `[N, *S, I]`.
      mask: booleans `[N]`; None counts all. If none is True, both are 0.
      geometry: of the convolution, whose window has K / I positions; static.

    Returns:
      Both in float32 at least.

    Raises:
      ValueError: if `mask` does not have the shape `[N]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.convolution_products import Geometry
      >>> from maml_jax.patch_statistics import patch_moments
      >>> pairs = Geometry((3,), (2,), (1,), ((0, 0),), (1,), None)
      >>> mean, covariance = patch_moments(jnp.array([[[1.0], [3.0], [5.0]]]), None, pairs)
      >>> mean.tolist(), covariance.tolist()
      ([2.0, 4.0], [[1.0, 1.0], [1.0, 1.0]])
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x, number = counted_examples(x, mask)
    number *= math.prod(geometry.outputs)

    def sums(x):
        rows = patches(x[None], geometry)
        rows = rows.reshape(-1, rows.shape[-1])
        squares = jnp.matmul(
            rows.T, rows, precision=lax.Precision.HIGHEST, preferred_element_type=wide
        )
        return jnp.concatenate([squares, rows.sum(0, dtype=wide)[None]])

    size = group_size(len(x), x.shape[-1], x.dtype.itemsize, geometry)
    moments = by_examples(sums, x, size, add=True) / number
    mean = moments[-1]
    return mean, moments[:-1] - jnp.outer(mean, mean)


def output_statistics(
    mean: jax.Array, covariance: jax.Array, kernel: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Computes mean and variance `[O]` of what a convolution gives.

    Args:
      mean: of the patches, `[K]`.
      covariance: of the patches, `[K, K]`.
      kernel: `[*window, I, O]`, K entries for each of O outputs.
      mask: booleans `[N]`, as for the moments.

    Returns:
      Both in the dtype of the moments; the variance is 1 where the mask is False throughout.
    """
    columns = kernel.reshape(-1, kernel.shape[-1]).astype(mean.dtype)
    exact = lax.Precision.HIGHEST
    variance = (columns * jnp.matmul(covariance, columns, precision=exact)).sum(0)
    variance = variance_or_one(jnp.maximum(variance, 0), mask)
    return jnp.matmul(mean, columns, precision=exact), variance
