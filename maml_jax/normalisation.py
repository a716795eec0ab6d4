"""Normalisation by the statistics of the batch at hand, as MAML does it."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

Pool = Callable[[jax.Array], jax.Array]
"""From `[N, H, W, C]` to fewer positions, with f(a x + b) = a f(x) + b for a > 0: max or mean."""


class BatchStatisticsNorm(nn.Module):
    """Normalises by the statistics of the batch at hand.

    `y = scale * (x - mean) / sqrt(var + ε) + bias`, per channel, with mean and (biased)
    variance over the examples and positions of this very call. There are no running averages,
    at test time either, so predictions are transductive: the prediction for one query example
    depends on the other query examples of the call. That is MAML's published protocol, and it
    scores higher than predicting each example alone; say which one you report.
    ε is 1e-5, as in PyTorch reimplementations. The authors' code takes the defaults of
    TensorFlow's `contrib.layers.batch_norm`: ε = 1e-3 and no scale.

    With a mask only the examples where it is True count in the statistics; if none does, mean 0
    and variance 1 stand in. Differentiable to any order, through the statistics too, which are
    float32 at least; `y` has the dtype of `x`.

    `norm(x, mask, pool=max_pool)` is `max_pool(norm(x, mask))`, up to ties, but normalises what is
    left of the positions only: a quarter of the work, and less still in the derivatives.

    Attributes:
      epsilon: ε, added to the variance; above 0.

    Raises:
      ValueError: if `mask` does not have the shape `[N]`.

    References:
      `normalize` in https://github.com/cbfinn/maml/blob/master/utils.py.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from maml_jax.normalisation import BatchStatisticsNorm
      >>> x = jnp.array([[1.0], [3.0], [100.0]])
      >>> mask = jnp.array([True, True, False])
      >>> BatchStatisticsNorm().init_with_output(jax.random.key(0), x, mask)[0].round().tolist()
      [[-1.0], [1.0], [98.0]]
    """

    epsilon: float = 1e-5

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, *, pool: Pool | None = None
    ) -> jax.Array:
        """Normalises `x` `[N, ..., C]` by its examples where `mask` `[N]` is True, and pools."""
        mean, variance = statistics(x, mask)
        return affine(x, *self.slope_and_shift(mean, variance), pool=pool)

    @nn.compact
    def slope_and_shift(self, mean: jax.Array, variance: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Gives a and b `[C]` of `y = a x + b`, from the statistics of x `[C]`."""
        param_dtype = jnp.result_type(float)
        scale = self.param("scale", nn.initializers.ones, mean.shape, param_dtype)
        bias = self.param("bias", nn.initializers.zeros, mean.shape, param_dtype)
        scale, bias = (p.astype(mean.dtype) for p in (scale, bias))
        slope = lax.rsqrt(variance + self.epsilon) * scale
        return slope, bias - mean * slope


def affine(
    x: jax.Array, slope: jax.Array, shift: jax.Array, *, pool: Pool | None = None
) -> jax.Array:
    """Computes `pool(slope * x + shift)`, but of what is left of the positions only.

    Args:
      x: `[N, ..., C]`.
      slope: `[C]`, float32 at least, as is the arithmetic.
      shift: `[C]`.
      pool: from `[N, H, W, C]` to fewer positions; None leaves them all.

    Returns:
      `[N, ..., C]`, of the dtype of `x`.
    """
    wide = x.astype(slope.dtype)
    slope, shift = (a.reshape((1,) * (x.ndim - 1) + (-1,)) for a in (slope, shift))
    if pool is not None:
        # The largest of what is to be turned round is what turns round into the smallest.
        sign = jnp.where(slope < 0, -1, 1).astype(wide.dtype)
        wide = sign * pool(sign * wide)
    return (wide * slope + shift).astype(x.dtype)


def statistics(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Computes mean and biased variance `[C]` of the unmasked examples of `[N, ..., C]`.

    From sums of x and x², and not from x - mean: a sum of plain products is one pass that writes
    nothing, and so are both its derivatives. The variance has a relative error of about the
    rounding error times mean² / variance, as in flax's `BatchNorm`; it matters where a channel's
    mean is hundreds of times its standard deviation.

    Args:
      x: `[N, ..., C]`.
      mask: booleans `[N]`; None counts all.

    Returns:
      Both in float32 at least.

    Raises:
      ValueError: if `mask` does not have the shape `[N]`.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])
    counted, number = counted_examples(x, mask)
    number *= x.shape[1]
    mean = counted.sum((0, 1)) / number
    variance = jnp.maximum((counted * counted).sum((0, 1)) / number - jnp.square(mean), 0)
    return mean, variance_or_one(variance, mask)


def counted_examples(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Sets masked examples to 0, so that they do not count in sums.

    Args:
      x: `[N, ...]`.
      mask: booleans `[N]`; None counts all.

    Returns:
      `[N, ...]`, and the number of the others in float32 at least, or 1 if there is none.

    Raises:
      ValueError: if `mask` does not have the shape `[N]`.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if mask is None:
        return x, jnp.asarray(len(x), wide)
    if mask.shape != x.shape[:1]:
        raise ValueError(f"mask must have shape {x.shape[:1]}, one per example, got {mask.shape}.")
    mask = mask.astype(bool)
    counted = jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
    # At least 1: a `jnp.where` around a quotient by 0 would still have NaN gradients.
    return counted, jnp.maximum(mask.sum(dtype=wide), 1)


def variance_or_one(variance: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Gives the variance of the counted examples, or 1 where none counts.

    Args:
      variance: `[C]`.
      mask: booleans `[N]`; None counts all.

    Returns:
      `[C]`.
    """
    return variance if mask is None else jnp.where(jnp.any(mask), variance, 1)
