"""The convolution, against `lax.conv_general_dilated` as the oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from convolutions import (
    CASES,
    LAYOUT_1D,
    LAYOUT_2D,
    arrays,
    assert_close,
    both,
    first_order,
    loss,
    normal,
    program,
    run,
    second_order,
)
from maml_jax.convolution import convolution


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_match_lax(name):
    """Oracle: `lax.conv_general_dilated` and its gradients with respect to both arrays."""
    size, window, strides, padding = CASES[name]
    ours, oracle = both(strides, padding)
    pair = arrays(size, window)
    assert_close(
        run(first_order(ours), *pair),
        run(first_order(oracle), *pair),
    )


@pytest.mark.parametrize("name", ["1x1_padded", "3x3_stride_2_same", "1d_explicit"])
def test_jvp_and_second_order_match_lax(name):
    """Oracle: the same derivatives of `lax.conv_general_dilated`."""
    size, window, strides, padding = CASES[name]
    ours, oracle = both(strides, padding)
    pair = arrays(size, window)
    assert_close(
        run(second_order(ours), *pair),
        run(second_order(oracle), *pair),
    )


@pytest.mark.parametrize(
    ("name", "shared_inputs"), [("3x3_stride_2_same", False), ("1d_stride_2", True)]
)
def test_vmap_over_kernels_matches_a_loop_over_lax(name, shared_inputs):
    """Oracle: one call of lax per kernel, up to second order."""
    size, window, strides, padding = CASES[name]
    ours, oracle = both(strides, padding)
    kernels = normal(2, (3, *window, 2, 4))
    inputs = normal(3, (2, *size, 2) if shared_inputs else (3, 2, *size, 2))
    in_axes = (None, 0) if shared_inputs else (0, 0)
    actual = run(jax.vmap(second_order(ours), in_axes), inputs, kernels)
    one = jax.jit(second_order(oracle))
    expected = [one(inputs if shared_inputs else inputs[i], kernels[i]) for i in range(3)]
    assert_close(actual, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected))


FALLBACKS = {
    "default_layout": ((3, 2, 5, 6), (4, 2, 3, 3), {}),
    "hwoi": ((3, 5, 6, 2), (3, 3, 4, 2), {"dimension_numbers": ("NHWC", "HWOI", "NHWC")}),
    "lhs_dilation": (
        (3, 5, 6, 2),
        (3, 3, 2, 4),
        {"dimension_numbers": LAYOUT_2D, "lhs_dilation": (2, 1)},
    ),
    "batch_groups": (
        (4, 5, 6, 2),
        (3, 3, 2, 4),
        {"dimension_numbers": LAYOUT_2D, "batch_group_count": 2},
    ),
    "empty_output": ((3, 2, 2, 2), (3, 3, 2, 4), {"dimension_numbers": LAYOUT_2D}),
    "three_dimensions": (
        (2, 3, 4, 5, 2),
        (3, 3, 3, 2, 4),
        {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")},
    ),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_other_convolutions_fall_back_to_lax(name):
    """Oracle: lax itself, which runs the very same operation."""
    lhs_shape, rhs_shape, options = FALLBACKS[name]
    x, w = normal(0, lhs_shape), normal(1, rhs_shape)
    strides = (1,) * (x.ndim - 2)
    padding = ((1, 1),) * len(strides) if name != "empty_output" else "VALID"
    f = functools.partial(convolution, window_strides=strides, padding=padding, **options)
    assert "conv_general_dilated" in str(jax.make_jaxpr(f)(x, w))
    expected = lax.conv_general_dilated(x, w, strides, padding, **options)
    np.testing.assert_array_equal(f(x, w), expected)


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (2, {"rhs_dilation": (1, 2)}),
        (2, {"rhs_dilation": (2, 3), "padding": "SAME", "window_strides": (2, 1)}),
        (1, {"feature_group_count": 2}),
        (1, {"feature_group_count": 2, "rhs_dilation": (2, 1), "window_strides": (2, 2)}),
    ],
)
def test_dilation_and_groups_are_products_too(channels, options):
    """Oracle: lax, up to second order."""
    x, w = normal(0, (3, 7, 8, 2)), normal(1, (3, 3, channels, 4))
    options = {"window_strides": (1, 1), "padding": ((1, 2), (2, 0)), **options}
    options["dimension_numbers"] = LAYOUT_2D
    ours, oracle = (
        functools.partial(f, **options) for f in (convolution, lax.conv_general_dilated)
    )
    for order in (first_order, second_order):
        assert_close(run(order(ours), x, w), run(order(oracle), x, w))
    assert "stablehlo.convolution" not in program(second_order(ours), x, w)


@pytest.mark.parametrize("name", ["3x3_explicit", "1d_stride_2"])
@pytest.mark.parametrize("in_axes", [(0, None), (None, -1), (1, 2), (-1, 0)])
def test_vmap_over_either_or_both_at_any_axis(name, in_axes):
    """Oracle: `lax` under the same `vmap`, nested once more over both."""
    size, window, strides, padding = CASES[name]
    ours, oracle = both(strides, padding)
    shapes = ((3, *size, 2), (*window, 2, 4))
    outer = [normal(i, (2, *shape)) for i, shape in enumerate(shapes)]
    stacked = [
        array if axis is None else jnp.stack([array, jnp.cos(array)], axis=axis)
        for array, axis in zip(
            outer, [a if a is None else a + (a >= 0) for a in in_axes], strict=True
        )
    ]
    twice = (jax.vmap(jax.vmap(second_order(f), in_axes)) for f in (ours, oracle))
    actual, expected = (run(f, *stacked) for f in twice)
    assert_close(actual, expected)


def test_per_device_kernels_under_shard_map():
    """Oracle: `lax`, with the replicated kernel's gradient summed over devices by JAX."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("tasks",))
    spec = jax.sharding.PartitionSpec("tasks")
    x, w = normal(0, (4, 5, 6, 2)), normal(1, (3, 3, 2, 4))

    def gradient(f):
        def here(x, w):
            return jax.grad(functools.partial(loss, f), (0, 1))(x, w)

        whole = jax.sharding.PartitionSpec()
        return jax.shard_map(here, mesh=mesh, in_specs=(spec, whole), out_specs=(spec, whole))

    ours, oracle = both((2, 2), "SAME")
    assert_close(run(gradient(ours), x, w), run(gradient(oracle), x, w))


def test_mismatched_channels_raise_what_lax_raises():
    ours, _ = both((1, 1), "SAME")
    with pytest.raises(ValueError, match="feature dimension"):
        ours(jnp.zeros((3, 5, 6, 2)), jnp.zeros((3, 3, 3, 4)))


def test_further_options_of_lax_are_accepted():
    ours, _ = both((1, 1), "SAME")
    x, w = arrays((5, 6), (3, 3))
    np.testing.assert_array_equal(ours(x, w, out_sharding=None), ours(x, w))
    with pytest.raises(TypeError, match="no_such_option"):
        ours(x, w, no_such_option=1)


def test_preferred_element_type_is_the_dtype_of_the_result():
    ours, oracle = both((2, 2), "SAME")
    x, w = (a.astype(jnp.bfloat16) for a in arrays((5, 6), (3, 3)))
    actual = ours(x, w, preferred_element_type=jnp.float32, precision="highest")
    expected = oracle(*(a.astype(jnp.float32) for a in (x, w)))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert ours(x, w).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("kernel_size", "padding"), [((3,), "SAME"), ((3, 3), 1), ((3, 3), "CIRCULAR")]
)
def test_flax_layer_takes_it_as_it_is(kernel_size, padding):
    """Oracle: the same flax layer with its default; no convolution is left in ours."""
    x = normal(0, (2, *(7, 6)[: len(kernel_size)], 3))
    options = {"strides": 2, "padding": padding, "param_dtype": x.dtype}
    oracle = nn.Conv(4, kernel_size, **options)
    ours = nn.Conv(4, kernel_size, **options, conv_general_dilated=convolution)
    _, shapes = jax.eval_shape(oracle.init_with_output, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: normal(1, leaf.shape), shapes)
    assert_close(ours.apply(params, x), oracle.apply(params, x))
    assert "stablehlo.convolution" not in program(ours.apply, params, x)


def _drawn(seed):
    """Draws sizes, strides, padding, dilation and groups that leave an output to compute."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 3))
    window = tuple(rng.integers(1, 5, rank).tolist())
    dilation = tuple(rng.integers(1, 3, rank).tolist())
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True)]
    size = tuple(span + int(rng.integers(0, 6)) for span in spans)
    pads = tuple((int(rng.integers(0, 3)), int(rng.integers(0, 3))) for _ in range(rank))
    groups, features = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    options = {
        "window_strides": tuple(rng.integers(1, 4, rank).tolist()),
        "padding": [pads, "SAME", "VALID", "SAME_LOWER"][int(rng.integers(4))],
        "rhs_dilation": dilation,
        "feature_group_count": groups,
        "dimension_numbers": LAYOUT_1D if rank == 1 else LAYOUT_2D,
    }
    x = normal(seed, (int(rng.integers(1, 5)), *size, groups * features))
    return (
        x,
        normal(seed + 1, (*window, features, groups * int(rng.integers(1, 4)))),
        options,
    )


@pytest.mark.parametrize("how", ["plain", "vmap", "scan"])
@pytest.mark.parametrize("seed", range(10))
def test_drawn_convolutions_match_lax(seed, how):
    """Oracle: lax, in values, gradients, a jvp and the gradient of the gradient."""
    x, w, options = _drawn(seed)
    ours, oracle = (
        functools.partial(f, **options) for f in (convolution, lax.conv_general_dilated)
    )

    def everything(f):
        def one(x, w):
            return first_order(f)(x, w), second_order(f)(x, w)

        if how == "plain":
            return one
        return jax.vmap(one) if how == "vmap" else lambda x, w: lax.map(lambda a: one(*a), (x, w))

    if how != "plain":
        x, w = (jnp.stack([array, jnp.cos(array)]) for array in (x, w))
    assert_close(run(everything(ours), x, w), run(everything(oracle), x, w))
