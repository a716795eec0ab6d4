"""A convolution and its two gradients as three bilinear forms, closed under differentiation.

    y  = conv(x, w)      y[n, p, o] = Σ_{k, i} x[n, s p + d k, i] w[k, i, o]
    dx = spread(g, w)    its adjoint in x
    dw = gather(x, g)    its adjoint in w

The derivatives of each are the other two, so no order of differentiation leaves them: every
product stays a matrix product, and what is kept for a backward pass is x, w and g, never the
patches. Under `jax.vmap` over both factors the products become batched ones; over one
factor only they become one larger product.

Arrays have a leading axis `B`, of products that have nothing to do with each other (1
without `vmap`): x `[B, N, *S, I]`, w `[B, *K, I, O]`, y and g `[B, N, *P, O]`, with spatial
sizes S of the inputs, K of the kernel and P of the outputs, in any number of dimensions.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


class Geometry(NamedTuple):
    """The static part of a convolution, a value per spatial dimension.

    Attributes:
      inputs: sizes S of the inputs.
      window: sizes K of the kernel.
      strides: s, at least 1.
      pads: zeros (before, after) around the inputs; negative crops.
      dilation: d, the distance of two kernel entries, at least 1.
      precision: of the products, as in `lax.dot_general`.
    """

    inputs: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    precision: Any

    @property
    def outputs(self) -> tuple[int, ...]:
        """Sizes P of the outputs; not above 0 where the kernel does not fit."""
        dimensions = zip(
            self.inputs, self.window, self.strides, self.pads, self.dilation, strict=True
        )
        return tuple((n + sum(pad) - d * (k - 1) - 1) // s + 1 for n, k, s, pad, d in dimensions)


def conv(x: jax.Array, w: jax.Array, *, geometry: Geometry) -> jax.Array:
    """Convolves.

    Args:
      x: inputs `[B, N, *S, I]`.
      w: kernels `[B, *K, I, O]`, of the same dtype.
      geometry: sizes, strides, pads, dilation; static.

    Returns:
      Outputs `[B, N, *P, O]`.
    """
    return _conv_p.bind(x, w, geometry=geometry)


def _conv(x, w, *, geometry):
    patches = _patches(x, geometry)
    y = _matmul(_rows(patches), w.reshape(len(w), -1, w.shape[-1]), geometry)
    return y.reshape(*patches.shape[:-1], w.shape[-1])


def _spread(g, w, *, geometry):
    wide = _matmul(_rows(g), w.reshape(len(w), -1, w.shape[-1]).mT, geometry)
    return _unpatch(wide.reshape(*g.shape[:-1], -1), w.shape[-2], geometry)


def _gather(x, g, *, geometry):
    dw = _matmul(_rows(_patches(x, geometry)).mT, _rows(g), geometry)
    return dw.reshape(len(x), *geometry.window, x.shape[-1], g.shape[-1])


def _rows(array):
    """Makes matrices `[B, rows, channels]`."""
    return array.reshape(len(array), -1, array.shape[-1])


def _matmul(a, b, geometry):
    """Multiplies `[B, m, k]` and `[B, k, n]`; a batch of 1 as plain matrices, which are faster."""
    if len(a) == 1:
        return jnp.matmul(a[0], b[0], precision=geometry.precision)[None]
    return jnp.matmul(a, b, precision=geometry.precision)


def _slices(geometry):
    """Gives start, stop and stride of what each kernel entry sees in the padded inputs."""
    for entry in itertools.product(*map(range, geometry.window)):
        start = [d * k for d, k in zip(geometry.dilation, entry, strict=True)]
        ends = zip(start, geometry.strides, geometry.outputs, strict=True)
        yield start, [a + s * (n - 1) + 1 for a, s, n in ends]


def _patches(x, geometry):
    """Concatenates what a window sees, `[B, N, *P, prod(K) I]`."""
    zero = jnp.zeros((), x.dtype)
    none = (0, 0, 0)
    padded = lax.pad(x, zero, [none, none, *((*pad, 0) for pad in geometry.pads), none])
    strides = (1, 1, *geometry.strides, 1)
    if max(*geometry.window, *strides) == 1:
        return padded
    parts = [
        lax.slice(padded, (0, 0, *start, 0), (*x.shape[:2], *stop, x.shape[-1]), strides)
        for start, stop in _slices(geometry)
    ]
    return lax.concatenate(parts, x.ndim - 1)


def _unpatch(wide, channels, geometry):
    """Adds up windows `[B, N, *P, prod(K) I]` where they came from, `[B, N, *S, I]`."""
    zero = jnp.zeros((), wide.dtype)
    sizes = [n + sum(pad) for n, pad in zip(geometry.inputs, geometry.pads, strict=True)]
    total = None
    for index, (start, stop) in enumerate(_slices(geometry)):
        part = wide[..., index * channels : (index + 1) * channels]
        around = [
            (a - pad[0], n - b - pad[1], s - 1)
            for a, b, n, s, pad in zip(
                start, stop, sizes, geometry.strides, geometry.pads, strict=True
            )
        ]
        part = lax.pad(part, zero, ((0, 0, 0), (0, 0, 0), *around, (0, 0, 0)))
        total = part if total is None else total + part
    return total


def _primitive(name, implementation, shape):
    """Makes a primitive of two arrays that compiles to the implementation."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(implementation, static_argnames="geometry"))

    def abstract(a, b, *, geometry):
        return a.update(shape=shape(a, b, geometry))

    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(implementation, multiple_results=False))
    return primitive


_conv_p = _primitive(
    "bilinear_conv", _conv, lambda x, w, geometry: (*x.shape[:2], *geometry.outputs, w.shape[-1])
)
_spread_p = _primitive(
    "bilinear_spread", _spread, lambda g, w, geometry: (*g.shape[:2], *geometry.inputs, w.shape[-2])
)
_gather_p = _primitive(
    "bilinear_gather",
    _gather,
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
