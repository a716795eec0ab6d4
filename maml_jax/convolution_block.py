"""A convolution and the norm of its outputs, for networks of such blocks.

Nothing couples the examples of such a network but the batch statistics. On a CPU, where patches
are narrow, as those of images are, the statistics come from the patches
(`maml_jax.patch_statistics`), before anything is convolved; slope and shift of the norm go into
the convolution. So the first block, whose outputs are the largest of the network, is a function of
each example alone, and is left to the second: a few examples at a time go through both, in the
cache, and again in the backward pass. The outputs of the first block, and passes over them, are
never in memory as a whole.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from maml_jax.by_examples import by_examples
from maml_jax.convolution import convolution, geometry_of
from maml_jax.convolution_cpu import fits_in_groups, group_size
from maml_jax.normalisation import BatchStatisticsNorm, Pool
from maml_jax.patch_statistics import output_statistics, patch_moments

Each = Callable[[jax.Array], jax.Array]
"""What is done with each example alone: from `[n, ...]` to `[n, ...]`, for any n."""

Statistics = Literal["inputs", "outputs"]
"""What a block takes the batch statistics of its outputs from."""

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def statistics_here(wanted: Statistics | Literal["auto"]) -> Statistics:
    """Chooses what the first block of a network takes its batch statistics from.

    From the inputs it is faster on a CPU, where a few examples fit in the cache. On a TPU one outer
    step, from inputs and from outputs, has in GB read and written 23.6 and 22.6 (32 tasks of W1 of
    `benchmarks/tpu_compile.py`; in bfloat16 15.5 and 12.9) and 98.3 and 99.5 (4 tasks of W2); in
    GiB of temporary memory 3.60 and 3.05, and 3.32 and 5.93. But what is made again in the backward
    pass is memory that nobody counts beforehand: `task_axis="auto"` took 336 tasks of W1 at once,
    from inputs, and they did not fit.

    Args:
      wanted: "inputs", "outputs", or "auto": inputs if JAX's default backend is a CPU, else
        outputs.

    Returns:
      The choice.

    Raises:
      ValueError: if it is none of these.

    Example:
      >>> from maml_jax.convolution_block import statistics_here
      >>> statistics_here("outputs")
      'outputs'
    """
    if wanted not in ("auto", "inputs", "outputs"):
        raise ValueError(f"statistics must be 'auto', 'inputs' or 'outputs', got {wanted!r}.")
    if wanted == "auto":
        return "inputs" if jax.default_backend() == "cpu" else "outputs"
    return wanted


class Left(NamedTuple):
    """What a block has left to do with each example.

    Attributes:
      each: it.
      size: the number of examples that a CPU best takes at a time.
    """

    each: Each
    size: int

    def done(self, x: jax.Array) -> jax.Array:
        """Does it, with examples `[N, ...]`."""
        return by_examples(self.each, x, self.size)


class ConvNorm(nn.Module):
    """A convolution "conv" without a bias, a `BatchStatisticsNorm` "norm", and what is behind them.

    `x, left = block(x, mask, left)` does what the block before has left, and its own work: then
    `left` is None. But with the statistics of inputs, if patches have no more entries than there
    are filters, x comes back as it is, and the next block, or `left.done(x)`, does the work.

    Attributes:
      features: number of filters O; static.
      kernel_size: height and width of the kernel, in pixels; static.
      statistics: what the batch statistics are taken from: "inputs" only where these are the
        network's, such as images; static.
      stride: in both directions; static.
      padding: as in `lax.conv_general_dilated`; static.
      dtype: of the activations; None promotes inputs and parameters.
      conv_general_dilated: the convolution; with another than ours nothing is left, and the norm
        takes the statistics of the outputs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from maml_jax.convolution_block import ConvNorm
      >>> block = ConvNorm(features=16, kernel_size=3, statistics="inputs", stride=2)
      >>> (x, left), _ = block.init_with_output(jax.random.key(0), jnp.ones((5, 28, 28, 1)))
      >>> x.shape, left.done(x).shape
      ((5, 28, 28, 1), (5, 14, 14, 16))
    """

    features: int
    kernel_size: int
    statistics: Statistics = "outputs"
    stride: int = 1
    padding: str | Sequence[tuple[int, int]] = "SAME"
    dtype: Any = None
    conv_general_dilated: Callable[..., jax.Array] = convolution

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        left: Left | None = None,
        *,
        pool: Pool | None = None,
        behind: Each | None = None,
    ) -> tuple[jax.Array, Left | None]:
        """Convolves, normalises by the examples where `mask` is True, pools; then `behind`."""
        given = jax.eval_shape(left.each, x) if left else x
        window = (self.kernel_size, self.kernel_size)
        kernel = _Kernel((*window, given.shape[-1], self.features), name="conv")()
        norm = BatchStatisticsNorm(name="norm")
        strides = (self.stride, self.stride)
        geometry = geometry_of(given.shape[1:-1], window, strides, self.padding)
        sizes = (given.shape[-1], given.dtype.itemsize, geometry)
        size = group_size(len(x), *sizes)
        narrow = math.prod(window) * given.shape[-1] <= self.features
        from_inputs = self.statistics == "inputs"
        if from_inputs and narrow and self.conv_general_dilated is convolution:
            moments = patch_moments(x, mask, geometry)
            slope, shift = norm.slope_and_shift(*output_statistics(*moments, kernel, mask))
            return x, Left(self._normalised(kernel, slope, shift, pool, behind), size)
        if left and fits_in_groups(*sizes):
            y = by_examples(lambda x: self._convolved(left.each(x), kernel), x, size)
        else:
            y = self._convolved(left.done(x) if left else x, kernel)
        y = norm(y, mask, pool=pool)
        return behind(y) if behind else y, None

    def _normalised(self, kernel, slope, shift, pool, behind) -> Each:
        """Gives the block as a function of each example: slope and shift are known."""
        slope, shift = (a.reshape(1, 1, 1, -1) for a in (slope, shift))

        def each(x):
            y = self._convolved(x, kernel * slope)
            y = pool(y) if pool else y
            y = (y + shift).astype(y.dtype)
            return behind(y) if behind else y

        return each

    def _convolved(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        strides = (self.stride, self.stride)
        return self.conv_general_dilated(
            x, kernel, strides, self.padding, dimension_numbers=_LAYOUT
        )


class _Kernel(nn.Module):
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> jax.Array:
        initial = nn.linear.default_kernel_init
        return self.param("kernel", initial, self.shape, jnp.result_type(float))
