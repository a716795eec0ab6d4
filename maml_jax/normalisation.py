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

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, *, pool: Pool | None = None
    ) -> jax.Array:
        """Normalises `x` `[N, ..., C]` by its examples where `mask` `[N]` is True, and pools."""
        param_dtype = jnp.result_type(float)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], param_dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], param_dtype)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        positions = math.prod(x.shape[1:-1])
        mean, variance = _statistics(wide.reshape(len(x), positions, x.shape[-1]), mask)
        scale, bias = (p.astype(wide.dtype) for p in (scale, bias))
        slope = lax.rsqrt(variance + self.epsilon) * scale
        channels = (1,) * (x.ndim - 1) + (-1,)
        if pool is not None:
            # The largest of what is to be turned round is what turns round into the smallest.
            sign = jnp.where(scale < 0, -1, 1).astype(wide.dtype).reshape(channels)
            wide = sign * pool(sign * wide)
        out = wide * slope.reshape(channels) + (bias - mean * slope).reshape(channels)
        return out.astype(x.dtype)


def _statistics(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance `[C]` of the unmasked examples of `[N, P, C]`.

    From sums of x and x², and not from x - mean: a sum of plain products is one pass that writes
    nothing, and so are both its derivatives. The variance has a relative error of about the
    rounding error times mean² / variance, as in flax's `BatchNorm`; it matters where a channel's
    mean is hundreds of times its standard deviation.
    """
    if mask is None:
        number, counted = x.shape[0] * x.shape[1], x
    else:
        if mask.shape != x.shape[:1]:
            raise ValueError(
                f"mask must have shape {x.shape[:1]}, one per example, got {mask.shape}."
            )
        # At least 1: a `jnp.where` around a quotient by 0 would still have NaN gradients.
        number = jnp.maximum(x.shape[1] * mask.astype(bool).sum(dtype=x.dtype), 1)
        counted = jnp.where(mask.astype(bool).reshape(-1, 1, 1), x, 0)
    mean = counted.sum((0, 1)) / number
    variance = jnp.maximum((counted * counted).sum((0, 1)) / number - jnp.square(mean), 0)
    return mean, variance if mask is None else jnp.where(jnp.any(mask), variance, 1)
