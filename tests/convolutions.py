"""What the tests of the convolution share: cases, the oracle, derivatives, programs."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def arrays(size, window):
    return normal(0, (3, *size, 2)), normal(1, (*window, 2, 4))


def both(strides, padding):
    layout = LAYOUT_1D if len(strides) == 1 else LAYOUT_2D
    options = {"window_strides": strides, "padding": padding, "dimension_numbers": layout}
    return [functools.partial(f, **options) for f in (convolution, lax.conv_general_dilated)]


def assert_close(actual, expected):
    """Equal up to a tolerance relative to the largest entry of each array."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for a, e in pairs:
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        scale = max(1.0, float(jnp.abs(e).max()))
        np.testing.assert_allclose(a, e, rtol=0, atol=TOLERANCE * scale)


def loss(f, x, w):
    return jnp.sum(jnp.sin(f(x, w)))


def first_order(f):
    return lambda x, w: (f(x, w), jax.grad(functools.partial(loss, f), (0, 1))(x, w))


def second_order(f):
    """A jvp, and the gradients of a contraction of both gradients."""

    def contraction(x, w):
        dx, dw = jax.grad(functools.partial(loss, f), (0, 1))(x, w)
        return jnp.sum(jnp.cos(dx)) + jnp.sum(dw**2)

    def all_of_them(x, w):
        jvp = jax.jvp(f, (x, w), (jnp.cos(x), jnp.sin(w)))[1]
        return jvp, jax.grad(contraction, (0, 1))(x, w)

    return all_of_them


def run(f, *args):
    return jax.jit(f)(*args)


def program(f, *args, platform="tpu"):
    """The program of an accelerator, which no device has to be there for."""
    return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()
