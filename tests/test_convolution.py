"""The convolution, against `lax.conv_general_dilated` as the oracle."""

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from maml_jax import convolution_cpu, convolution_products
from maml_jax.convolution import convolution

X64 = os.environ.get("MAML_JAX_TEST_X64", "1") == "1"
TOLERANCE = 1e-10 if X64 else 1e-4

LAYOUT_1D = ("NWC", "WIO", "NWC")
LAYOUT_2D = ("NHWC", "HWIO", "NHWC")

# (input size, kernel size, strides, padding); sizes odd and even, kernels square or not.
CASES = {
    "1x1": ((5, 6), (1, 1), (1, 1), "SAME"),
    "1x1_stride_2": ((5, 6), (1, 1), (2, 2), "SAME"),
    "1x1_padded": ((5, 6), (1, 1), (1, 1), ((1, 0), (0, 2))),
    "3x3_same": ((5, 6), (3, 3), (1, 1), "SAME"),
    "3x3_valid": ((5, 6), (3, 3), (1, 1), "VALID"),
    "3x3_stride_2_same": ((7, 6), (3, 3), (2, 2), "SAME"),
    "3x3_stride_2_valid": ((7, 6), (3, 3), (2, 2), "VALID"),
    "3x3_stride_2_lower": ((7, 6), (3, 3), (2, 2), "SAME_LOWER"),
    "3x3_explicit": ((7, 6), (3, 3), (2, 2), ((1, 1), (0, 2))),
    "3x3_cropping": ((7, 8), (3, 3), (1, 2), ((-1, 1), (2, -2))),
    "5x5_same": ((6, 7), (5, 5), (1, 1), "SAME"),
    "5x5_stride_2": ((6, 7), (5, 5), (2, 2), "SAME"),
    "1x3_strides_1_3": ((4, 9), (1, 3), (1, 3), "SAME"),
    "1d_same": ((7,), (3,), (1,), "SAME"),
    "1d_stride_2": ((8,), (5,), (2,), "SAME"),
    "1d_explicit": ((8,), (3,), (2,), ((2, 0),)),
}


def _normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _arrays(size, window):
    return _normal(0, (3, *size, 2)), _normal(1, (*window, 2, 4))


def _both(strides, padding):
    layout = LAYOUT_1D if len(strides) == 1 else LAYOUT_2D
    options = {"window_strides": strides, "padding": padding, "dimension_numbers": layout}
    return [functools.partial(f, **options) for f in (convolution, lax.conv_general_dilated)]


def _assert_close(actual, expected):
    """Equal up to a tolerance relative to the largest entry of each array."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for a, e in pairs:
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        scale = max(1.0, float(jnp.abs(e).max()))
        np.testing.assert_allclose(a, e, rtol=0, atol=TOLERANCE * scale)


def _loss(f, x, w):
    return jnp.sum(jnp.sin(f(x, w)))


def _first_order(f):
    return lambda x, w: (f(x, w), jax.grad(functools.partial(_loss, f), (0, 1))(x, w))


def _second_order(f):
    """A jvp, and the gradients of a contraction of both gradients."""

    def contraction(x, w):
        dx, dw = jax.grad(functools.partial(_loss, f), (0, 1))(x, w)
        return jnp.sum(jnp.cos(dx)) + jnp.sum(dw**2)

    def all_of_them(x, w):
        jvp = jax.jvp(f, (x, w), (jnp.cos(x), jnp.sin(w)))[1]
        return jvp, jax.grad(contraction, (0, 1))(x, w)

    return all_of_them


def _run(f, *args):
    return jax.jit(f)(*args)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_match_lax(name):
    """Oracle: `lax.conv_general_dilated` and its gradients with respect to both arrays."""
    size, window, strides, padding = CASES[name]
    ours, oracle = _both(strides, padding)
    arrays = _arrays(size, window)
    _assert_close(_run(_first_order(ours), *arrays), _run(_first_order(oracle), *arrays))


@pytest.mark.parametrize("name", ["1x1_padded", "3x3_stride_2_same", "1d_explicit"])
def test_jvp_and_second_order_match_lax(name):
    """Oracle: the same derivatives of `lax.conv_general_dilated`."""
    size, window, strides, padding = CASES[name]
    ours, oracle = _both(strides, padding)
    arrays = _arrays(size, window)
    _assert_close(_run(_second_order(ours), *arrays), _run(_second_order(oracle), *arrays))


@pytest.mark.parametrize(
    ("name", "shared_inputs"), [("3x3_stride_2_same", False), ("1d_stride_2", True)]
)
def test_vmap_over_kernels_matches_a_loop_over_lax(name, shared_inputs):
    """Oracle: one call of lax per kernel, up to second order."""
    size, window, strides, padding = CASES[name]
    ours, oracle = _both(strides, padding)
    kernels = _normal(2, (3, *window, 2, 4))
    inputs = _normal(3, (2, *size, 2) if shared_inputs else (3, 2, *size, 2))
    in_axes = (None, 0) if shared_inputs else (0, 0)
    actual = _run(jax.vmap(_second_order(ours), in_axes), inputs, kernels)
    one = jax.jit(_second_order(oracle))
    expected = [one(inputs if shared_inputs else inputs[i], kernels[i]) for i in range(3)]
    _assert_close(actual, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected))


def _program(f, *args, platform="tpu"):
    """The program of an accelerator, which no device has to be there for."""
    return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def _lowered(f, name, **options):
    size, window, *_ = CASES[name]
    kernels = _normal(2, (3, *window, 2, 4)).astype(jnp.float32)
    inputs = _normal(3, (3, 2, *size, 2)).astype(jnp.float32)
    return _program(jax.vmap(_second_order(f)), inputs, kernels, **options)


@pytest.mark.parametrize("name", ["1x1", "3x3_stride_2_same", "3x3_explicit", "1d_stride_2"])
def test_vmapped_program_has_products_and_no_convolution(name):
    """Up to second order; the oracle's own program shows that the search would find one."""
    ours, oracle = _both(*CASES[name][2:])
    text = _lowered(ours, name)
    assert "stablehlo.convolution" not in text
    assert "stablehlo.dot_general" in text
    assert "stablehlo.convolution" in _lowered(oracle, name)


def test_on_a_cpu_every_convolution_has_one_kernel(monkeypatch):
    """A grouped one, or one with dilated inputs, would be what makes naive `vmap` slow."""
    monkeypatch.setattr(convolution_cpu, "_LOOP_FLOPS", 0)
    ours, _ = _both(*CASES["3x3_stride_2_same"][2:])
    text = _lowered(ours, "3x3_stride_2_same", platform="cpu")
    found = re.findall(r"stablehlo.convolution.*", text)
    assert found
    for line in found:
        assert "feature_group_count = 1 " in line
        assert "batch_group_count = 1 " in line
        assert "lhs_dilate = [1, 1]" in line


@pytest.mark.parametrize(
    ("batch", "num_examples", "few_channels"), [(1, 6, 0), (1, 7, 8), (3, 7, 0), (3, 6, 8)]
)
@pytest.mark.parametrize("name", [*CASES, "1x2_strides_3", "5x2_strides_2_3"])
def test_forms_of_a_cpu_match_the_products(name, batch, num_examples, few_channels, monkeypatch):
    """Oracle: the products; loops and groups of 3 examples, with and without a rest, are forced."""
    monkeypatch.setattr(convolution_cpu, "_LOOP_FLOPS", 0)
    monkeypatch.setattr(convolution_cpu, "_PATCH_BYTES", 1)
    monkeypatch.setattr(convolution_cpu, "_FEW_CHANNELS", few_channels)
    more = {
        "1x2_strides_3": ((9, 8), (1, 2), (3, 3), ((0, 0), (1, 0))),
        "5x2_strides_2_3": ((7, 9), (5, 2), (2, 3), ((2, 2), (0, 3))),
    }
    size, window, strides, padding = {**CASES, **more}[name]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, window, strides, padding)
    geometry = convolution_products.Geometry(
        inputs=size,
        window=window,
        strides=strides,
        pads=tuple(padding),
        dilation=(1,) * len(size),
        precision="highest",
    )
    x, w, g = (
        _normal(seed, (batch, *shape)).astype(jnp.float32)
        for seed, shape in enumerate(
            [
                (num_examples, *size, 2),
                (*window, 2, 4),
                (num_examples, *geometry.outputs, 4),
            ]
        )
    )
    for operation, args in {"conv": (x, w), "spread": (g, w), "gather": (x, g)}.items():
        actual, expected = (
            getattr(forms, operation)(*args, geometry=geometry)
            for forms in (convolution_cpu, convolution_products)
        )
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4, err_msg=operation)


def test_pointwise_kernel_needs_no_slices():
    ours, _ = _both((1, 1), "SAME")
    text = _program(ours, *_arrays((5, 6), (1, 1)))
    assert "slice" not in text
    assert "concatenate" not in text


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
    x, w = _normal(0, lhs_shape), _normal(1, rhs_shape)
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
    x, w = _normal(0, (3, 7, 8, 2)), _normal(1, (3, 3, channels, 4))
    options = {"window_strides": (1, 1), "padding": ((1, 2), (2, 0)), **options}
    options["dimension_numbers"] = LAYOUT_2D
    ours, oracle = (
        functools.partial(f, **options) for f in (convolution, lax.conv_general_dilated)
    )
    for order in (_first_order, _second_order):
        _assert_close(_run(order(ours), x, w), _run(order(oracle), x, w))
    assert "stablehlo.convolution" not in _program(_second_order(ours), x, w)


@pytest.mark.parametrize("name", ["3x3_explicit", "1d_stride_2"])
@pytest.mark.parametrize("in_axes", [(0, None), (None, -1), (1, 2), (-1, 0)])
def test_vmap_over_either_or_both_at_any_axis(name, in_axes):
    """Oracle: `lax` under the same `vmap`, nested once more over both."""
    size, window, strides, padding = CASES[name]
    ours, oracle = _both(strides, padding)
    shapes = ((3, *size, 2), (*window, 2, 4))
    outer = [_normal(i, (2, *shape)) for i, shape in enumerate(shapes)]
    arrays = [
        array if axis is None else jnp.stack([array, jnp.cos(array)], axis=axis)
        for array, axis in zip(
            outer, [a if a is None else a + (a >= 0) for a in in_axes], strict=True
        )
    ]
    twice = (jax.vmap(jax.vmap(_second_order(f), in_axes)) for f in (ours, oracle))
    actual, expected = (_run(f, *arrays) for f in twice)
    _assert_close(actual, expected)


def test_no_patches_are_kept_for_the_backward_pass():
    """The residuals of a gradient are the inputs and the kernel, not nine times the inputs."""
    ours, _ = _both((1, 1), "SAME")
    x, w = _normal(0, (3, 5, 6, 2)), _normal(1, (3, 3, 2, 4))
    _, pull_back = jax.vjp(ours, x, w)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull_back))
    assert kept <= x.size + w.size


def test_per_device_kernels_under_shard_map():
    """Oracle: `lax`, with the replicated kernel's gradient summed over devices by JAX."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("tasks",))
    spec = jax.sharding.PartitionSpec("tasks")
    x, w = _normal(0, (4, 5, 6, 2)), _normal(1, (3, 3, 2, 4))

    def gradient(f):
        def here(x, w):
            return jax.grad(functools.partial(_loss, f), (0, 1))(x, w)

        whole = jax.sharding.PartitionSpec()
        return jax.shard_map(here, mesh=mesh, in_specs=(spec, whole), out_specs=(spec, whole))

    ours, oracle = _both((2, 2), "SAME")
    _assert_close(_run(gradient(ours), x, w), _run(gradient(oracle), x, w))


def test_mismatched_channels_raise_what_lax_raises():
    ours, _ = _both((1, 1), "SAME")
    with pytest.raises(ValueError, match="feature dimension"):
        ours(jnp.zeros((3, 5, 6, 2)), jnp.zeros((3, 3, 3, 4)))


def test_further_options_of_lax_are_accepted():
    ours, _ = _both((1, 1), "SAME")
    x, w = _arrays((5, 6), (3, 3))
    np.testing.assert_array_equal(ours(x, w, out_sharding=None), ours(x, w))
    with pytest.raises(TypeError, match="no_such_option"):
        ours(x, w, no_such_option=1)


def test_preferred_element_type_is_the_dtype_of_the_result():
    ours, oracle = _both((2, 2), "SAME")
    x, w = (a.astype(jnp.bfloat16) for a in _arrays((5, 6), (3, 3)))
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
    x = _normal(0, (2, *(7, 6)[: len(kernel_size)], 3))
    options = {"strides": 2, "padding": padding, "param_dtype": x.dtype}
    oracle = nn.Conv(4, kernel_size, **options)
    ours = nn.Conv(4, kernel_size, **options, conv_general_dilated=convolution)
    _, shapes = jax.eval_shape(oracle.init_with_output, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: _normal(1, leaf.shape), shapes)
    _assert_close(ours.apply(params, x), oracle.apply(params, x))
    assert "stablehlo.convolution" not in _program(ours.apply, params, x)


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
    x = _normal(seed, (int(rng.integers(1, 5)), *size, groups * features))
    return x, _normal(seed + 1, (*window, features, groups * int(rng.integers(1, 4)))), options


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
            return _first_order(f)(x, w), _second_order(f)(x, w)

        if how == "plain":
            return one
        return jax.vmap(one) if how == "vmap" else lambda x, w: lax.map(lambda a: one(*a), (x, w))

    if how != "plain":
        x, w = (jnp.stack([array, jnp.cos(array)]) for array in (x, w))
    _assert_close(_run(everything(ours), x, w), _run(everything(oracle), x, w))
