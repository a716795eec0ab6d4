"""The models: values against numpy, masks, parameter counts, shapes, messages."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from maml_jax.models import BatchStatisticsNorm, Conv4, Mlp, ResNet12
from maml_jax.pooling import mean_pool


def _normal(seed, shape, dtype=None):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def _small_conv4(**options):
    return Conv4(3, features=4, **options)


def _shapes(model, shape):
    inputs = jnp.zeros(shape)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), inputs)


def _random_variables(model, inputs):
    """Variables of the model's shapes from numpy: `init` would compile for seconds."""
    _, variables = _shapes(model, inputs.shape)
    return jax.tree.map(lambda leaf: 0.5 * _normal(1, leaf.shape, leaf.dtype), variables)


def _numpy_norm(x, counted, scale, bias, epsilon):
    """Batch normalisation written out, with the statistics of the `counted` examples."""
    x, counted = np.asarray(x, np.float64), np.asarray(counted)
    rows = x[counted].reshape(-1, x.shape[-1])
    mean, variance = rows.mean(0), rows.var(0)
    return scale * (x - mean) / np.sqrt(variance + epsilon) + bias


@pytest.mark.parametrize("shape", [(6, 3), (6, 4, 3), (6, 4, 5, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_norm_matches_numpy(shape, masked, tolerance):
    """Oracle: numpy's mean and biased variance of the counted examples."""
    x = 2 * _normal(0, shape) + 1
    counted = np.array([True, False, True, True, False, True]) if masked else np.ones(6, bool)
    scale, bias = np.array([1.0, 2.0, 3.0]), np.array([0.0, -1.0, 0.5])
    params = {"params": {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}}
    actual = BatchStatisticsNorm(epsilon=1e-3).apply(
        params, x, jnp.asarray(counted) if masked else None
    )
    expected = _numpy_norm(x, counted, scale, bias, 1e-3)
    np.testing.assert_allclose(actual, expected, rtol=10 * tolerance, atol=10 * tolerance)


def test_norm_defaults_are_those_documented():
    params = BatchStatisticsNorm().init(jax.random.key(0), jnp.ones((2, 3)))["params"]
    assert BatchStatisticsNorm().epsilon == 1e-5
    np.testing.assert_array_equal(params["scale"], np.ones(3))
    np.testing.assert_array_equal(params["bias"], np.zeros(3))


def test_norm_of_a_fully_masked_batch_is_the_identity_with_finite_derivatives(tolerance):
    """Mean 0 and variance 1 stand in; first and second derivatives have no NaN."""
    x = _normal(0, (4, 2, 3))
    norm = BatchStatisticsNorm()
    params = norm.init(jax.random.key(0), x)
    mask = jnp.zeros(4, bool)
    expected = x / jnp.sqrt(1 + 1e-5)
    np.testing.assert_allclose(norm.apply(params, x, mask), expected, rtol=10 * tolerance)

    def loss(params, x):
        return jnp.sum(jnp.sin(norm.apply(params, x, mask)))

    def squared_gradient(params, x):
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss, (0, 1))(params, x)))

    for f in (loss, squared_gradient):
        grads = jax.jit(jax.grad(f, (0, 1)))(params, x)
        assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_norm_of_constant_examples_is_zero_with_finite_gradients():
    """The variance is 0, and ε keeps the division finite."""
    norm, x = BatchStatisticsNorm(), jnp.ones((4, 3))
    params = norm.init(jax.random.key(0), x)
    np.testing.assert_array_equal(norm.apply(params, x), np.zeros((4, 3)))
    assert jnp.isfinite(jax.grad(lambda x: norm.apply(params, x).sum())(x)).all()


def test_norm_of_bfloat16_keeps_its_dtype_and_float32_statistics():
    """1000 ones and a few zeros: a bfloat16 sum of ones would stop at 256."""
    x = jnp.concatenate([jnp.ones((1000, 1)), jnp.zeros((24, 1))]).astype(jnp.bfloat16)
    norm = BatchStatisticsNorm()
    actual = norm.apply(norm.init(jax.random.key(0), x), x)
    assert actual.dtype == jnp.bfloat16
    expected = _numpy_norm(x.astype(jnp.float32), np.ones(1024, bool), 1.0, 0.0, 1e-5)
    np.testing.assert_allclose(actual.astype(jnp.float32), expected, rtol=1e-2)


def test_norm_rejects_a_mask_of_another_shape():
    with pytest.raises(ValueError, match=r"mask must have shape \(4,\), one per example, got \(3,"):
        BatchStatisticsNorm().init(jax.random.key(0), jnp.ones((4, 2)), jnp.ones(3, bool))


IMAGE_MODELS = {
    "strided": _small_conv4(),
    "pooling": _small_conv4(pooling=True),
    "resnet": ResNet12(3, features=(4, 6)),
}


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_mask_equals_dropping_the_masked_examples(name, tolerance):
    """Oracle: the model on the kept examples alone.

    The masked ones get the logits that they get beside any other masked example.
    """
    model, images = IMAGE_MODELS[name], _normal(0, (5, 16, 16, 2))
    params = _random_variables(model, images)
    apply = jax.jit(model.apply)
    mask = jnp.array([True, True, False, True, False])
    masked = apply(params, images, mask)
    limits = {"rtol": 1000 * tolerance, "atol": 1000 * tolerance}
    np.testing.assert_allclose(masked[mask], apply(params, images[mask]), **limits)
    other = apply(params, images.at[4].multiply(-1.0), mask)
    np.testing.assert_allclose(other[:4], masked[:4], **limits)
    assert jnp.abs(other[4] - masked[4]).max() > 1e-3
    everything = apply(params, images, jnp.ones(5, bool))
    assert jnp.abs(everything - masked).max() > 1e-3


@pytest.mark.parametrize("name", ["strided", "pooling"])
def test_gradients_are_finite_for_a_fully_masked_batch(name):
    """Without optimisation a max-pooling by `jnp.max` gives NaN here, masked or not."""
    model, images = IMAGE_MODELS[name], _normal(0, (2, 16, 16, 1))
    params = _random_variables(model, images)
    mask = jnp.zeros(2, bool)
    grads = jax.jit(jax.grad(lambda p: (model.apply(p, images, mask) ** 2).sum()))(params)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def _count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def test_conv4_has_the_parameters_of_the_paper():
    """Published: 32,901 for mini-ImageNet 5-way, with a bias per filter, which ours lacks."""
    logits, variables = _shapes(Conv4.omniglot(5), (75, 28, 28, 1))
    assert logits.shape == (75, 5)
    norms, head = 4 * 2 * 64, 64 * 5 + 5
    assert _count(variables) == 9 * 1 * 64 + 3 * (9 * 64 * 64) + norms + head == 112_005

    logits, variables = _shapes(Conv4.mini_imagenet(5), (75, 84, 84, 3))
    assert logits.shape == (75, 5)
    assert _count(variables) + 4 * 32 == 32_901


def test_resnet12_has_the_parameters_of_its_definition():
    """By hand: three 3x3 convolutions, a 1x1 shortcut and four norms per block, and a head."""
    logits, variables = _shapes(ResNet12(5), (2, 84, 84, 3))
    assert logits.shape == (2, 5)
    widths = [(3, 64), (64, 128), (128, 256), (256, 512)]
    blocks = sum(9 * i * o + 2 * 9 * o * o + i * o + 4 * 2 * o for i, o in widths)
    assert _count(variables) == blocks + 512 * 5 + 5


def test_layers_have_the_documented_names():
    def paths(model, shape):
        tree = _shapes(model, shape)[1]["params"]
        return {"/".join(path) for path in traverse_util.flatten_dict(tree)}

    head = {"head/kernel", "head/bias"}
    parts = ("conv/kernel", "norm/scale", "norm/bias")
    conv4 = {f"block_{i}/{part}" for i in range(4) for part in parts}
    assert paths(_small_conv4(), (1, 16, 16, 1)) == conv4 | head
    layers = ("layer_0", "layer_1", "layer_2", "shortcut")
    resnet = {f"block_0/{layer}/{part}" for layer in layers for part in parts}
    assert paths(ResNet12(2, features=(3,)), (1, 8, 8, 1)) == resnet | head
    hidden = {f"hidden_{i}/{leaf}" for i in range(2) for leaf in ("kernel", "bias")}
    assert paths(Mlp(), (1, 1)) == hidden | head


def _numpy_conv(x, kernel, stride):
    """3x3 SAME cross-correlation, position by position."""
    n, size = len(x), -(-x.shape[1] // stride)
    total = max((size - 1) * stride + 3 - x.shape[1], 0)
    pad = (total // 2, total - total // 2)
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    out = np.zeros((n, size, size, kernel.shape[-1]))
    for i in range(size):
        for j in range(size):
            window = x[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, i, j] = np.einsum("nhwc,hwco->no", window, kernel)
    return out


@pytest.mark.parametrize(("pooling", "smooth"), [(False, False), (True, False), (True, True)])
def test_conv4_matches_numpy(pooling, smooth, tolerance):
    """Oracle: the network written out in numpy, on 17 pixels so that pooling drops a row."""
    options = {"activation": nn.softplus, "pool": mean_pool} if smooth else {}
    model = _small_conv4(pooling=pooling, **options)
    images = _normal(0, (3, 17, 17, 2))
    variables = _random_variables(model, images)
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    x = np.asarray(images, np.float64)
    for i in range(4):
        block = params[f"block_{i}"]
        x = _numpy_conv(x, block["conv"]["kernel"], 1 if pooling else 2)
        x = _numpy_norm(x, np.ones(3, bool), **block["norm"], epsilon=1e-5)
        x = np.logaddexp(x, 0) if smooth else np.maximum(x, 0)
        if pooling:
            half = x.shape[1] // 2
            corners = [x[:, a : 2 * half : 2, b : 2 * half : 2] for a in (0, 1) for b in (0, 1)]
            x = np.mean(corners, 0) if smooth else np.max(corners, 0)
    x = x.reshape(3, -1) if pooling else x.mean((1, 2))
    expected = x @ params["head"]["kernel"] + params["head"]["bias"]
    actual = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1000 * tolerance)


def test_mlp_matches_numpy_and_ignores_its_mask(tolerance):
    """Oracle: two hidden layers written out."""
    x = _normal(0, (7, 1))
    model = Mlp(activation=nn.tanh)
    variables = _random_variables(model, x)
    layers = jax.tree.map(np.asarray, variables["params"])
    expected = np.asarray(x)
    for name in ("hidden_0", "hidden_1", "head"):
        expected = expected @ layers[name]["kernel"] + layers[name]["bias"]
        expected = expected if name == "head" else np.tanh(expected)
    actual = model.apply(variables, x, jnp.zeros(7, bool))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=10 * tolerance)
    assert _count(variables) == 2 * 40 + 41 * 40 + 41


def test_mlp_takes_an_initialiser():
    model = Mlp(kernel_init=nn.initializers.constant(0.5))
    params = model.init(jax.random.key(0), jnp.zeros((2, 1)))["params"]
    assert all((params[layer]["kernel"] == 0.5).all() for layer in params)


@pytest.mark.parametrize("model", [_small_conv4(), Mlp(), ResNet12(2, features=(3,))])
def test_parameters_and_logits_have_the_default_float_dtype(model):
    shapes = _shapes(model, (2, 1) if isinstance(model, Mlp) else (2, 16, 16, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.zeros(()).dtype}


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_models_use_no_convolution_operation(name):
    """They are built on `maml_jax.convolution`, so that tasks can be vmapped."""
    model, images = IMAGE_MODELS[name], jnp.zeros((2, 16, 16, 1))
    program = str(jax.make_jaxpr(model.apply)(_random_variables(model, images), images))
    assert "conv_general_dilated" not in program
    assert "bilinear_conv" in program


@pytest.mark.parametrize("make", [_small_conv4, lambda **o: ResNet12(2, features=(3,), **o)])
def test_bfloat16_activations_keep_parameters_and_logits(make):
    images = jnp.zeros((2, 16, 16, 1))
    model = make(dtype=jnp.bfloat16)
    logits, variables = _shapes(model, images.shape)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {images.dtype}
    program = str(jax.make_jaxpr(model.apply)(variables, images))
    outputs = re.findall(r"(\w+)\[[\d,]+\] = bilinear_conv", program)
    assert set(outputs[:-1]) == {"bf16"}
    assert outputs[-1] != "bf16"


ALL_MODELS = [_small_conv4(), _small_conv4(pooling=True), ResNet12(2, features=(3,)), Mlp()]


@pytest.mark.parametrize("model", ALL_MODELS)
def test_integer_inputs_raise(model):
    key, images = jax.random.key(0), np.zeros((2, 16, 16, 1))
    with pytest.raises(ValueError, match=r"inputs are uint8 in 0\.\.255; divide by 255"):
        model.init(key, images.astype(np.uint8))
    with pytest.raises(ValueError, match="inputs must be floats, got int32; convert with astype"):
        model.init(key, images.astype(np.int32))


@pytest.mark.parametrize("model", ALL_MODELS[:3])
def test_images_of_another_rank_raise(model):
    message = r"expected images \[N, H, W, C\], got shape \(28, 28, 1\); .*x\[None\]"
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), jnp.zeros((28, 28, 1)))


def test_mlp_inputs_of_another_rank_raise():
    with pytest.raises(ValueError, match=r"expected inputs \[N, D\], got shape \(10,\); reshape"):
        Mlp().init(jax.random.key(0), jnp.zeros(10))


@pytest.mark.parametrize(("model", "size"), [(ALL_MODELS[1], 16), (ALL_MODELS[2], 2)])
def test_images_too_small_to_pool_raise(model, size):
    with pytest.raises(ValueError, match=f"at least {size} pixels high and wide, got shape"):
        model.init(jax.random.key(0), jnp.zeros((1, size - 1, size, 1)))
