"""The convolution's programs: products, forms of a CPU, and what is kept for a backward pass."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from convolutions import CASES, arrays, both, normal, program, second_order
from maml_jax import convolution_cpu, convolution_products
from maml_jax.convolution import geometry_of


def _lowered(f, name, **options):
    size, window, *_ = CASES[name]
    kernels = normal(2, (3, *window, 2, 4)).astype(jnp.float32)
    inputs = normal(3, (3, 2, *size, 2)).astype(jnp.float32)
    return program(jax.vmap(second_order(f)), inputs, kernels, **options)


@pytest.mark.parametrize("name", ["1x1", "3x3_stride_2_same", "3x3_explicit", "1d_stride_2"])
def test_vmapped_program_has_products_and_no_convolution(name):
    """Up to second order; the oracle's own program shows that the search would find one."""
    ours, oracle = both(*CASES[name][2:])
    text = _lowered(ours, name)
    assert "stablehlo.convolution" not in text
    assert "stablehlo.dot_general" in text
    assert "stablehlo.convolution" in _lowered(oracle, name)


def test_on_a_cpu_every_convolution_has_one_kernel(monkeypatch):
    """A grouped one, or one with dilated inputs, would be what makes naive `vmap` slow."""
    monkeypatch.setattr(convolution_cpu, "_LOOP_FLOPS", 0)
    monkeypatch.setattr(convolution_cpu, "_FEW_CHANNELS", 0)
    ours, _ = both(*CASES["3x3_stride_2_same"][2:])
    text = _lowered(ours, "3x3_stride_2_same", platform="cpu")
    found = re.findall(r"stablehlo.convolution.*", text)
    assert found
    for line in found:
        assert "feature_group_count = 1 " in line
        assert "batch_group_count = 1 " in line
        assert "lhs_dilate = [1, 1]" in line


@pytest.mark.slow
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
        normal(seed, (batch, *shape)).astype(jnp.float32)
        for seed, shape in enumerate(
            [
                (num_examples, *size, 2),
                (*window, 2, 4),
                (num_examples, *geometry.outputs, 4),
            ]
        )
    )

    @jax.jit
    def results():
        return [
            {
                "conv": forms.conv(x, w, geometry=geometry),
                "spread": forms.spread(g, w, geometry=geometry),
                "gather": forms.gather(x, g, geometry=geometry),
            }
            for forms in (convolution_cpu, convolution_products)
        ]

    actual, expected = results()
    for operation, got in actual.items():
        want = expected[operation]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4, err_msg=operation)


def test_pointwise_kernel_needs_no_slices():
    ours, _ = both((1, 1), "SAME")
    text = program(ours, *arrays((5, 6), (1, 1)))
    assert "slice" not in text
    assert "concatenate" not in text


def test_no_patches_are_kept_for_the_backward_pass():
    """The residuals of a gradient are the inputs and the kernel, not nine times the inputs."""
    ours, _ = both((1, 1), "SAME")
    x, w = normal(0, (3, 5, 6, 2)), normal(1, (3, 3, 2, 4))
    _, pull_back = jax.vjp(ours, x, w)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull_back))
    assert kept == x.size + w.size


@pytest.mark.parametrize(
    ("cache", "size"), [(2**18, 9), (2**19, 9), (2**20, 27), (2**21, 27), (None, 27)]
)
def test_a_small_cache_gets_the_patches_of_fewer_examples(cache, size, monkeypatch):
    """112,896 bytes each: 9 fit 1 MiB, 27 fit 3 MiB, which is for a size that nobody tells too."""
    monkeypatch.setattr(convolution_cpu, "core_cache_bytes", lambda: cache)
    geometry = geometry_of((14, 14), (3, 3), (2, 2), "SAME")
    assert convolution_cpu.group_size(27 * 9, 64, 4, geometry) == size
