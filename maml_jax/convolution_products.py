"""A convolution and its two gradients as matrix products with patches.

Patches are the slices of the inputs that the entries of the kernel see, side by side. Shapes
and functions are those of `maml_jax.bilinear`; with `B` above 1 the products are batched.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


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
    """Convolves `[B, N, *S, I]` and `[B, *K, I, O]` to `[B, N, *P, O]`."""
    seen = patches(x, geometry)
    y = _matmul(_rows(seen), w.reshape(len(w), -1, w.shape[-1]), geometry)
    return y.reshape(*seen.shape[:-1], w.shape[-1])


def spread(g: jax.Array, w: jax.Array, *, geometry: Geometry) -> jax.Array:
    """Computes the adjoint of `conv` in the inputs, from `[B, N, *P, O]` and the kernels."""
    wide = _matmul(_rows(g), w.reshape(len(w), -1, w.shape[-1]).mT, geometry)
    return _unpatch(wide.reshape(*g.shape[:-1], -1), w.shape[-2], geometry)


def gather(x: jax.Array, g: jax.Array, *, geometry: Geometry) -> jax.Array:
    """Computes the adjoint of `conv` in the kernels, from the inputs and `[B, N, *P, O]`."""
    seen, rows = _rows(patches(x, geometry)), _rows(g)
    if seen.shape[-1] > rows.shape[-1]:  # The smaller factor is the cheaper to transpose.
        dw = _matmul(rows.mT, seen, geometry).mT
    else:
        dw = _matmul(seen.mT, rows, geometry)
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


def patches(x: jax.Array, geometry: Geometry) -> jax.Array:
    """Concatenates what a window sees: `[B, N, *S, I]` to `[B, N, *P, prod(K) I]`."""
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
    parts = []
    for index, (start, stop) in enumerate(_slices(geometry)):
        part = wide[..., index * channels : (index + 1) * channels]
        around = [
            (a - pad[0], n - b - pad[1], s - 1)
            for a, b, n, s, pad in zip(
                start, stop, sizes, geometry.strides, geometry.pads, strict=True
            )
        ]
        part = lax.pad(part, zero, ((0, 0, 0), (0, 0, 0), *around, (0, 0, 0)))
        parts.append(part.astype(jnp.promote_types(wide.dtype, jnp.float32)))
    return functools.reduce(jnp.add, parts).astype(wide.dtype)
