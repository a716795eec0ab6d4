"""A convolution and its two gradients as three bilinear forms, closed under differentiation.

    y  = conv(x, w)      y[n, p, o] = Σ_{k, i} x[n, s p + d k, i] w[k, i, o]
    dx = spread(g, w)    its adjoint in x
    dw = gather(x, g)    its adjoint in w

The derivatives of each are the other two, so no order of differentiation leaves them: every
product stays a product, and what is kept for a backward pass is x, w and g, never the
patches. Under `jax.vmap` over both factors the products become batched ones; over one
factor only they become one larger product.

Arrays have a leading axis `B`, of products that have nothing to do with each other (1
without `vmap`): x `[B, N, *S, I]`, w `[B, *K, I, O]`, y and g `[B, N, *P, O]`, with spatial
sizes S of the inputs, K of the kernel and P of the outputs, in any number of dimensions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from maml_jax import convolution_cpu, convolution_products, varying
from maml_jax.convolution_products import Geometry


def conv(x: jax.Array, w: jax.Array, *, geometry: Geometry) -> jax.Array:
    """Convolves.

    Args:
      x: inputs `[B, N, *S, I]`.
      w: kernels `[B, *K, I, O]`, of the same dtype.
      geometry: sizes, strides, pads, dilation; static. Without a precision, that of
        `jax.default_matmul_precision` at this place is taken.

    Returns:
      Outputs `[B, N, *P, O]`.
    """
    if geometry.precision is None:
        config: Any = jax.config
        geometry = geometry._replace(precision=config.jax_default_matmul_precision)
    x, w = varying.alike(x, w)
    return _conv_p.bind(x, w, geometry=geometry)


def supports(
    lhs: jax.Array, rhs: jax.Array, precision: Any, preferred_element_type: Any, options: dict
) -> bool:
    """Tells whether arguments of `lax` that are neither sizes nor axes have a form here.

    Args:
      lhs: inputs.
      rhs: kernel.
      precision: as in `lax.dot_general`; a pair has none.
      preferred_element_type: dtype of the result; another than that of `lhs` has none.
      options: further arguments; a value other than None has none.

    Returns:
      Whether `conv` computes what `lax` would; both arrays have one dtype and are not empty.
    """
    return (
        lhs.dtype == rhs.dtype
        and lhs.size * rhs.size > 0
        and preferred_element_type in (None, lhs.dtype)
        and not isinstance(precision, tuple)
        and all(value is None for value in options.values())
    )


def _primitive(name, form, cpu_form, shape):
    """Makes a primitive of two arrays that compiles to one form on a CPU, else to another."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="geometry"))

    def abstract(a, b, *, geometry):
        return a.update(shape=shape(a, b, geometry))

    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(form, multiple_results=False))
    on_cpu = mlir.lower_fun(cpu_form, multiple_results=False)
    mlir.register_lowering(primitive, on_cpu, platform="cpu")
    return primitive


_conv_p = _primitive(
    "bilinear_conv",
    convolution_products.conv,
    convolution_cpu.conv,
    lambda x, w, geometry: (*x.shape[:2], *geometry.outputs, w.shape[-1]),
)
_spread_p = _primitive(
    "bilinear_spread",
    convolution_products.spread,
    convolution_cpu.spread,
    lambda g, w, geometry: (*g.shape[:2], *geometry.inputs, w.shape[-2]),
)
_gather_p = _primitive(
    "bilinear_gather",
    convolution_products.gather,
    convolution_cpu.gather,
    lambda x, g, geometry: (x.shape[0], *geometry.window, x.shape[-1], g.shape[-1]),
)


# Of ⟨g, conv(x, w)⟩ = ⟨spread(g, w), x⟩ = ⟨gather(x, g), w⟩, all derivatives follow.
ad.defbilinear(
    _conv_p,
    lambda ct, x, w, *, geometry: _spread_p.bind(ct, w, geometry=geometry),
    lambda ct, x, w, *, geometry: _gather_p.bind(x, ct, geometry=geometry),
)
ad.defbilinear(
    _spread_p,
    lambda ct, g, w, *, geometry: _conv_p.bind(ct, w, geometry=geometry),
    lambda ct, g, w, *, geometry: _gather_p.bind(ct, g, geometry=geometry),
)
ad.defbilinear(
    _gather_p,
    lambda ct, x, g, *, geometry: _spread_p.bind(g, ct, geometry=geometry),
    lambda ct, x, g, *, geometry: _conv_p.bind(x, ct, geometry=geometry),
)


def _batched(primitive, lone_axes, out_axes):
    """Registers what `jax.vmap` does.

    Two mapped arguments: the mapped axis joins `B`. One: it joins an axis that only this
    argument and the result have, so that one larger product does the work.

    Args:
      primitive: the primitive.
      lone_axes: of either argument, the axis to join when it alone is mapped.
      out_axes: the same axis of the result.
    """

    def rule(arguments, axes, *, geometry):
        mapped = [axis is not None for axis in axes]
        if all(mapped):
            size = arguments[0].shape[axes[0]]
            merged = [_join(a, axis, 0) for a, axis in zip(arguments, axes, strict=True)]
            out = primitive.bind(*merged, geometry=geometry)
            return out.reshape(size, -1, *out.shape[1:]), 0
        which = mapped.index(True)
        size, lone = arguments[which].shape[axes[which]], list(arguments)
        lone[which] = _join(lone[which], axes[which], lone_axes[which])
        out = primitive.bind(*lone, geometry=geometry)
        axis = out_axes[which] % out.ndim
        out = out.reshape(*out.shape[:axis], size, -1, *out.shape[axis + 1 :])
        return out, axis

    batching.primitive_batchers[primitive] = rule


def _join(array, mapped, axis):
    """Moves the mapped axis in front of an axis of the rest, and makes them one."""
    axis = axis % (array.ndim - 1)
    array = jnp.moveaxis(array, mapped, axis)
    return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])


_N, _I, _O, _LAST = 1, -2, -1, -1
_batched(_conv_p, (_N, _O), (_N, _LAST))
_batched(_spread_p, (_N, _I), (_N, _LAST))
_batched(_gather_p, (_LAST, _O), (_I, _O))
