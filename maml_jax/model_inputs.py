"""What the models refuse as inputs, with the rule, what was got, and what to do."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def as_floats(inputs: Any) -> jax.Array:
    """Gives inputs as an array, and refuses what is not floating-point.

    Args:
      inputs: an array.

    Returns:
      The array, as it is.

    Raises:
      ValueError: if it is not floating-point; bytes are named as such.
    """
    inputs = jnp.asarray(inputs)
    if inputs.dtype == jnp.uint8:
        raise ValueError("inputs must be floats, these inputs are uint8 in 0..255; divide by 255.")
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(f"inputs must be floats, got {inputs.dtype}; convert with astype.")
    return inputs


def as_images(inputs: Any, *, smallest: int) -> jax.Array:
    """Gives inputs as an array, and refuses what is not images in floats.

    Args:
      inputs: an array.
      smallest: least height and width, in pixels.

    Returns:
      The array `[N, H, W, C]`, as it is.

    Raises:
      ValueError: if it is something else.
    """
    images = as_floats(inputs)
    got = f"got shape {images.shape}"
    if images.ndim != 4:
        raise ValueError(f"expected images [N, H, W, C], {got}; add the example axis with x[None].")
    if min(images.shape[1:3]) < smallest:
        raise ValueError(f"images must be at least {smallest} pixels high and wide, {got}; resize.")
    return images


def check_width(x: jax.Array, variables: Mapping[str, Any], first_layer: str) -> None:
    """Refuses inputs of another width than those that the parameters were made for.

    Args:
      x: inputs `[N, ..., D]`.
      variables: those of the model; without parameters, as before init, all is well.
      first_layer: path of the first layer, such as "block_0/conv", whose kernel is
        `[..., D, features]`.

    Raises:
      ValueError: if `D` differs.
    """
    found: Any = variables
    for name in ("params", *first_layer.split("/"), "kernel"):
        if name not in found:
            return
        found = found[name]
    if x.shape[-1] != found.shape[-2]:
        what = "features" if x.ndim == 2 else "channels"
        raise ValueError(
            f"inputs have {x.shape[-1]} {what}, but the parameters were made for "
            f"{found.shape[-2]}; pass inputs like those of init, or init anew."
        )
