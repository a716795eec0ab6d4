"""Blocks that take a few examples at a time, and statistics from patches: against the plain way.

    python -m pytest tests/test_convolution_block.py

The oracles: the same function of all examples at once; numpy's mean and variance of what
`lax.conv_general_dilated` gives; `BatchStatisticsNorm` behind a convolution.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from maml_jax import convolution_block, convolution_cpu
from maml_jax.by_examples import by_examples
from maml_jax.convolution import convolution, geometry_of
from maml_jax.convolution_block import ConvNorm
from maml_jax.models import Conv4, ResNet12
from maml_jax.normalisation import BatchStatisticsNorm
from maml_jax.patch_statistics import output_statistics, patch_moments
from maml_jax.pooling import max_pool

LAYOUT = ("NHWC", "HWIO", "NHWC")


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def close(got, want, tolerance):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        limit = tolerance * max(float(jnp.abs(other).max()), 1e-3)
        np.testing.assert_allclose(one, other, rtol=0, atol=limit)


def orders(f, *arguments):
    """Values, gradients, gradients of the gradients' norm, and a derivative forwards."""

    def loss(*arguments):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(f(*arguments)))

    def squared(*arguments):
        gradients = jax.grad(loss, range(len(arguments)))(*arguments)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients))

    def everything(*arguments):
        return (
            f(*arguments),
            jax.grad(loss, range(len(arguments)))(*arguments),
            jax.grad(squared, range(len(arguments)))(*arguments),
            jax.jvp(jax.grad(loss), arguments, arguments)[1],
        )

    return jax.jit(everything)(*arguments)


@pytest.fixture
def few(monkeypatch):
    """Patches of two examples at a time, wherever there are more."""
    monkeypatch.setattr(convolution_cpu, "_PATCH_BYTES", 0)
    monkeypatch.setattr(convolution_cpu, "_FEWEST_EXAMPLES", 2)


@pytest.mark.parametrize("size", [1, 4, 6, 10])
@pytest.mark.parametrize("add", [False, True], ids=["joined", "added"])
def test_groups_of_examples_give_what_all_at_once_do(size, add, tolerance):
    """Up to second order, forwards too, under vmap, of both what is mapped and what is shared."""

    def grouped(x, w):
        def f(x):
            rows = jnp.tanh(x @ w)
            return rows.sum(0) if add else rows

        return by_examples(f, x, size, add=add)

    def plain(x, w):
        rows = jnp.tanh(x @ w)
        return rows.sum(0) if add else rows

    x, w = normal(0, (10, 3)), normal(1, (3, 2))
    close(orders(grouped, x, w), orders(plain, x, w), 10 * tolerance)
    xs, ws = normal(2, (4, 10, 3)), normal(3, (4, 3, 2))
    mapped = [orders(jax.vmap(f), xs, ws) for f in (grouped, plain)]
    close(*mapped, 10 * tolerance)


def test_only_a_cpu_takes_groups():
    def f(x):
        return by_examples(jnp.tanh, x, 2)

    traced = jax.jit(f).trace(jnp.zeros((4, 3)))
    loops = {
        platform: "while" in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert loops == {"cpu": True, "cuda": False, "tpu": False}
    assert "conditional" not in traced.lower().compile().as_text()


def test_what_is_made_of_a_group_is_not_kept():
    """Neither for the backward pass nor in it; all at once, both would hold it for all examples."""
    x, w = jnp.ones((64, 4)), jnp.ones((4, 4096))
    made = 64 * 4096 * x.itemsize

    def kept(size):
        def f(x, w):
            return by_examples(lambda x: jnp.sin(x @ w).sum(1), x, size)

        _, pull = jax.vjp(f, x, w)
        backward = jax.jit(jax.grad(lambda x, w: f(x, w).sum(), (0, 1)))
        working = backward.lower(x, w).compile().memory_analysis().temp_size_in_bytes
        return sum(leaf.nbytes for leaf in jax.tree.leaves(pull)), working

    assert min(kept(64)) >= made
    assert kept(2)[0] == x.nbytes + w.nbytes
    assert kept(2)[1] < made / 2


CASES = {
    "strided": (2, "SAME"),
    "both sides": (2, ((1, 1), (1, 1))),
    "valid": (1, "VALID"),
    "wide pads": (1, ((3, 0), (0, 2))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_statistics_from_patches_are_those_of_the_outputs(name, masked, tolerance, few):
    stride, padding = CASES[name]
    x, kernel = 2 * normal(0, (5, 7, 6, 2)) + 1, normal(1, (3, 3, 2, 4))
    mask = jnp.array([True, False, True, True, False]) if masked else None
    geometry = geometry_of((7, 6), (3, 3), (stride, stride), padding)
    got = output_statistics(*patch_moments(x, mask, geometry), kernel, mask)
    y = lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)
    rows = np.asarray(y if mask is None else y[mask]).reshape(-1, 4)
    close(got, (rows.mean(0), rows.var(0)), 100 * tolerance)


def test_statistics_without_an_example_are_0_and_1():
    geometry = geometry_of((4, 4), (3, 3), (1, 1), "SAME")
    mask = jnp.zeros(2, bool)
    moments = patch_moments(jnp.ones((2, 4, 4, 1)), mask, geometry)
    mean, variance = output_statistics(*moments, jnp.ones((3, 3, 1, 2)), mask)
    assert (mean.tolist(), variance.tolist()) == ([0, 0], [1, 1])
    with pytest.raises(ValueError, match=r"mask must have shape \(2,\), one per example, got \(3,"):
        patch_moments(jnp.ones((2, 4, 4, 1)), jnp.zeros(3, bool), geometry)


def test_statistics_of_bfloat16_images_are_float32():
    """10,000 patches of ones: a bfloat16 sum would stop at 256."""
    geometry = geometry_of((100, 100), (1, 1), (1, 1), "VALID")
    mean, covariance = patch_moments(jnp.ones((1, 100, 100, 1), jnp.bfloat16), None, geometry)
    assert (mean.dtype, mean.tolist(), covariance.tolist()) == (jnp.float32, [1.0], [[0.0]])


class Plain(nn.Module):
    """Oracle: a convolution, the norm of all its outputs, the pool; twice."""

    features: int
    pool: bool

    @nn.compact
    def __call__(self, x, mask):
        for name in ("first", "second"):
            x = _PlainBlock(self.features, self.pool, name=name)(x, mask)
        return x


class _PlainBlock(nn.Module):
    features: int
    pool: bool

    @nn.compact
    def __call__(self, x, mask):
        options = {"use_bias": False, "param_dtype": x.dtype, "name": "conv"}
        x = nn.Conv(self.features, (3, 3), conv_general_dilated=convolution, **options)(x)
        x = BatchStatisticsNorm(name="norm")(x, mask)
        return jnp.tanh(max_pool(x) if self.pool else x)


class Blocks(nn.Module):
    """What is tested: two blocks, the first of which may leave its work to the second."""

    features: int
    pool: bool

    @nn.compact
    def __call__(self, x, mask):
        left = None
        for name in ("first", "second"):
            statistics = "inputs" if name == "first" else "outputs"
            block = ConvNorm(self.features, 3, statistics, name=name)
            pool = max_pool if self.pool else None
            x, left = block(x, mask, left, pool=pool, behind=jnp.tanh)
        return x


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3], ids=["narrow", "wide"])
@pytest.mark.parametrize("pool", [False, True], ids=["", "pooled"])
def test_blocks_are_a_convolution_and_its_norm(channels, pool, tolerance, few):
    """In values and in derivatives by parameters and images; scales of either sign.

    Of three channels patches are wider than the outputs, so that the norm takes these.
    """
    x = normal(0, (5, 5, 6, channels))
    mask = None if pool else jnp.array([True, False, True, True, False])
    model, oracle = Blocks(10, pool), Plain(10, pool)
    params = jax.eval_shape(oracle.init, jax.random.key(0), x, mask)
    params = jax.tree.map(lambda leaf: normal(leaf.size, leaf.shape).astype(leaf.dtype), params)
    assert params["params"]["first"]["norm"]["scale"].min() < 0
    results = [orders(lambda p, x, m=m: m.apply(p, x, mask), params, x) for m in (model, oracle)]
    close(*results, 2e4 * tolerance)


def test_blocks_whose_mask_counts_nothing_are_the_convolution(tolerance):
    """Mean 0 and variance 1 stand in, as in the norm."""
    x, mask = normal(0, (2, 6, 6, 1)), jnp.zeros(2, bool)
    params = Plain(10, True).init(jax.random.key(0), x, mask)
    got, want = (m.apply(params, x, mask) for m in (Blocks(10, True), Plain(10, True)))
    close(got, want, 100 * tolerance)


def test_blocks_have_the_parameters_of_a_convolution_and_its_norm():
    """Drawn alike too, from one key."""
    x = normal(0, (2, 6, 6, 1))
    ours, plain = (m.init(jax.random.key(3), x, None) for m in (Blocks(10, True), Plain(10, True)))
    close(ours, plain, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [Conv4(3, features=10), Conv4(3, features=10, pooling=True), ResNet12(3, features=(12, 6))],
    ids=["strided", "pooling", "resnet"],
)
def test_models_give_the_same_with_any_convolution(model, tolerance, few):
    """With another than ours nothing is grouped and no statistics come from patches."""
    x, key = normal(0, (5, 16, 16, 1)), jax.random.key(0)
    other = model.clone(conv_general_dilated=lambda *args, **options: convolution(*args, **options))
    params = jax.tree.map(lambda leaf: leaf + 0.1, jax.jit(model.init)(key, x))

    def gradients(model):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(model.apply(p, x) ** 2)))(params)

    close(gradients(model), gradients(other), 2e4 * tolerance)


@pytest.mark.parametrize(
    "model", [Conv4(3, features=10), ResNet12(3, features=(12, 6))], ids=["conv4", "resnet"]
)
def test_statistics_come_from_where_they_are_asked(model, tolerance, monkeypatch):
    """Oracle of "outputs": those of "inputs", and that no patch is looked at; "auto" by device."""
    x = normal(0, (5, 16, 16, 1))
    params = model.init(jax.random.key(0), x)
    want = model.clone(statistics="inputs").apply(params, x)
    looked_at = []

    def moments(*args):
        looked_at.append(args)
        return patch_moments(*args)

    monkeypatch.setattr(convolution_block, "patch_moments", moments)
    close(model.clone(statistics="outputs").apply(params, x), want, 1e4 * tolerance)
    assert not looked_at
    model.apply(params, x)
    assert looked_at
    looked_at.clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    model.apply(params, x)
    assert not looked_at


def test_unknown_statistics_are_refused():
    with pytest.raises(ValueError, match="'auto', 'inputs' or 'outputs', got 'both'"):
        Conv4(3, statistics="both").init(jax.random.key(0), jnp.ones((2, 16, 16, 1)))


def test_bfloat16_blocks_keep_their_dtype():
    x = normal(0, (5, 6, 6, 1)).astype(jnp.float32)
    model = Conv4(3, features=10, dtype=jnp.bfloat16)
    params = model.init(jax.random.key(0), x)
    want = Conv4(3, features=10).apply(params, x)
    np.testing.assert_allclose(model.apply(params, x), want, rtol=0, atol=0.1)
