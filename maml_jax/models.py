"""Models of the meta-learning literature in flax Linen: Mlp, Conv4 and ResNet12.

Every model is called as `model.apply(params, inputs, mask)`. The mask, booleans `[N]` or
None, says which examples feed the batch statistics; all examples are normalised with them.
A model without a norm ignores it. Parameters have JAX's default float dtype; outputs have
the dtype that inputs and parameters promote to. The last layer is named "head", so that
ANIL and BOIL can select it by its path.

In shapes, `N` is the number of examples, `D` of features, `H` and `W` the height and width
in pixels, `C` the number of channels.

References:
  Finn, Abbeel, Levine. Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
  ICML 2017, sections 5.1 (Mlp) and 5.2 (Conv4). https://arxiv.org/abs/1703.03400
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from maml_jax.convolution import convolution
from maml_jax.convolution_block import ConvNorm, Statistics, statistics_here
from maml_jax.dense import dot_general
from maml_jax.model_inputs import as_floats, as_images, check_width
from maml_jax.normalisation import BatchStatisticsNorm as BatchStatisticsNorm
from maml_jax.pooling import max_pool


class Mlp(nn.Module):
    """Multilayer perceptron, by default the network of the sinusoid regression.

    Hidden layers are named "hidden_0", "hidden_1", ...; "head" has no activation. A mask is
    ignored. The default initialiser is flax's LeCun normal, so that signals keep their size;
    the authors' code has `kernel_init=nn.initializers.truncated_normal(0.01)`.

    Attributes:
      features: widths of the layers, the last one being the number of outputs; static.
      activation: function after every hidden layer.
      kernel_init: initialiser of the weights.
      dot_general: the product, with the arguments of that of `jax.lax`.

    Raises:
      ValueError: if the inputs are not floats `[N, D]`, or the parameters are for another D.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from maml_jax.models import Mlp
      >>> Mlp().init_with_output(jax.random.key(0), jnp.zeros((10, 1)))[0].shape
      (10, 1)
    """

    features: Sequence[int] = (40, 40, 1)
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dot_general: Callable[..., jax.Array] = dot_general

    @nn.compact
    def __call__(self, inputs: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps inputs `[N, D]` to outputs `[N, features[-1]]`."""
        del mask  # No layer looks across examples.
        x = as_floats(inputs)
        if x.ndim != 2:
            raise ValueError(
                f"expected inputs [N, D], got shape {x.shape}; reshape them to two axes, or add "
                "the task axis to a meta-batch of one task."
            )
        *hidden, last = self.features
        check_width(x, self.variables, "hidden_0" if hidden else "head")
        options = {"kernel_init": self.kernel_init, "dot_general": self.dot_general}
        for i, width in enumerate(hidden):
            x = self.activation(_dense(width, f"hidden_{i}", **options)(x))
        return _dense(last, **options)(x)


class Conv4(nn.Module):
    """Four convolution blocks and a linear head: the network of the MAML paper.

    A block, "block_0" to "block_3", is a 3x3 convolution "conv", a `BatchStatisticsNorm` "norm"
    and an activation. Without pooling the convolutions have stride 2 and the head sees the mean
    over the positions that remain; with it they have stride 1, a 2x2 pooling ends each block, and
    the head sees all positions. The paper's two are `Conv4.omniglot`, `Conv4.mini_imagenet`.

    The convolutions have no bias: the norm behind them subtracts it, so its gradient is 0 in
    theory and rounding noise in practice, which Adam scales up to full steps. The authors'
    code has these biases: `4 * features` parameters more, the same family of functions.

    Attributes:
      num_classes: number of outputs, the ways of a task; static.
      features: number of filters of every block; static.
      pooling: whether to pool, instead of striding.
      activation: function after the norm; a smooth one makes second-order gradients comparable.
      pool: from `[N, H, W, C]` to `[N, H // 2, W // 2, C]`; `pooling.mean_pool` is smooth.
      padding: "SAME", as in the paper, or zeros (before, after) for height and width, in pixels;
        `((1, 1), (1, 1))` is that of PyTorch reimplementations; static.
      dtype: dtype of the activations, such as `jnp.bfloat16`; parameters, statistics and
        logits keep theirs. None promotes inputs and parameters.
      conv_general_dilated: the convolution, with the arguments of that of `jax.lax`.
      statistics: what the first block takes its batch statistics from: "inputs", so that a CPU has
        its outputs in the cache only, or "outputs"; "auto" is "inputs" on a CPU, else "outputs".
        The result is the same.

    Raises:
      ValueError: if the images are not floats `[N, H, W, C]`, with pooling below 16 pixels, or
        the parameters are for another C.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from maml_jax.models import Conv4
      >>> Conv4.omniglot(5).init_with_output(jax.random.key(0), jnp.zeros((2, 28, 28, 1)))[0].shape
      (2, 5)
    """

    num_classes: int
    features: int = 64
    pooling: bool = False
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    pool: Callable[[jax.Array], jax.Array] = max_pool
    padding: str | Sequence[tuple[int, int]] = "SAME"
    dtype: Any = None
    conv_general_dilated: Callable[..., jax.Array] = convolution
    statistics: Statistics | Literal["auto"] = "auto"

    @classmethod
    def omniglot(cls, num_classes: int) -> "Conv4":
        """Builds the paper's network for 28x28x1 images: stride 2, 64 filters."""
        return cls(num_classes)

    @classmethod
    def mini_imagenet(cls, num_classes: int) -> "Conv4":
        """Builds the paper's network for 84x84x3 images: max-pooling, 32 filters."""
        return cls(num_classes, features=32, pooling=True)

    @nn.compact
    def __call__(self, inputs: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps images `[N, H, W, C]` to logits `[N, num_classes]`."""
        x = as_images(inputs, smallest=16 if self.pooling else 1)
        check_width(x, self.variables, "block_0/conv")
        options = {"padding": self.padding, "dtype": self.dtype}
        options["conv_general_dilated"] = self.conv_general_dilated
        # ReLU rises, so that it may as well see the largest only.
        early = self.pooling and self.pool is max_pool and self.activation is nn.relu
        pool, late = (max_pool, None) if early else (None, self.pool if self.pooling else None)

        def behind(x):
            x = self.activation(x)
            return late(x) if late else x

        first = statistics_here(self.statistics)
        left, stride = None, 1 if self.pooling else 2
        for i in range(4):
            statistics = "outputs" if i else first
            block = ConvNorm(self.features, 3, statistics, stride, name=f"block_{i}", **options)
            x, left = block(x, mask, left, pool=pool, behind=behind)
        return _dense(self.num_classes)(x.reshape(len(x), -1) if self.pooling else x.mean((1, 2)))


class ResNet12(nn.Module):
    """Residual network of 12 layers for few-shot learning.

    Four blocks, "block_0" to "block_3", each of three 3x3 convolutions with norm and leaky ReLU
    (slope 0.1), a 1x1 shortcut with norm added before the last activation, and 2x2 max-pooling;
    then the mean over positions and a linear head. All norms are `BatchStatisticsNorm`; no
    convolution has a bias. The widths are TADAM's; Lee et al. use (64, 160, 320, 640) and
    DropBlock, which is not included, because it needs a random key in every inner step.

    Attributes:
      num_classes: number of outputs, the ways of a task; static.
      features: number of filters of each block; static.
      dtype: dtype of the activations, as in `Conv4`.
      conv_general_dilated: the convolution, as in `Conv4`.
      statistics: of the first convolutions, as in `Conv4`.

    Raises:
      ValueError: if the images are not floats `[N, H, W, C]`, below `2**len(features)` pixels,
        or the parameters are for another C.

    References:
      Oreshkin, Rodriguez, Lacoste. TADAM: Task Dependent Adaptive Metric for Improved
      Few-Shot Learning. NeurIPS 2018. https://arxiv.org/abs/1805.10123
      Lee, Maji, Ravichandran, Soatto. Meta-Learning with Differentiable Convex
      Optimization. CVPR 2019, section 4.1. https://arxiv.org/abs/1904.03758

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from maml_jax.models import ResNet12
      >>> model = ResNet12(5, features=(4, 8))
      >>> model.init_with_output(jax.random.key(0), jnp.zeros((2, 16, 16, 3)))[0].shape
      (2, 5)
    """

    num_classes: int
    features: Sequence[int] = (64, 128, 256, 512)
    dtype: Any = None
    conv_general_dilated: Callable[..., jax.Array] = convolution
    statistics: Statistics | Literal["auto"] = "auto"

    @nn.compact
    def __call__(self, inputs: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps images `[N, H, W, C]` to logits `[N, num_classes]`."""
        x = as_images(inputs, smallest=2 ** len(self.features))
        check_width(x, self.variables, "block_0/shortcut/conv")
        layer = {"dtype": self.dtype, "conv_general_dilated": self.conv_general_dilated}
        first = statistics_here(self.statistics)
        for i, width in enumerate(self.features):
            statistics = "outputs" if i else first
            x = _ResidualBlock(width, statistics, **layer, name=f"block_{i}")(x, mask)
        return _dense(self.num_classes)(x.mean((1, 2)))


class _ResidualBlock(nn.Module):
    features: int
    statistics: Statistics
    dtype: Any
    conv_general_dilated: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, inputs: jax.Array, mask: jax.Array | None) -> jax.Array:
        options = {"dtype": self.dtype, "conv_general_dilated": self.conv_general_dilated}
        one = ConvNorm(self.features, 1, self.statistics, **options, name="shortcut")
        shortcut, left = one(inputs, mask)
        shortcut = left.done(shortcut) if left else shortcut
        x, left = inputs, None
        for i in range(3):
            statistics = "outputs" if i else self.statistics
            layer = ConvNorm(self.features, 3, statistics, **options, name=f"layer_{i}")
            x, left = layer(x, mask, left, behind=_leaky_relu if i < 2 else None)
        return max_pool(_leaky_relu(x + shortcut))


def _leaky_relu(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, 0.1)


def _dense(width: int, name: str = "head", **options: Any) -> nn.Dense:
    # dtype stays None: behind bfloat16 blocks, float32 parameters make float32 logits.
    param_dtype = jnp.result_type(float)
    options = {"dot_general": dot_general, **options}
    return nn.Dense(width, name=name, param_dtype=param_dtype, **options)
