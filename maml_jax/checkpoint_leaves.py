"""Leaves of a checkpoint: how a tree becomes arrays on the host, and how it comes back."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from maml_jax import processes


def by_name(tree: Any) -> dict[str, Any]:
    """Gives the leaves of a tree by where they are in it.

    Args:
      tree: any tree.

    Returns:
      The leaves in tree order, by paths such as `['layer']['w']`.

    Example:
      >>> from maml_jax.checkpoint_leaves import by_name
      >>> by_name({"w": [1, 2]})
      {"['w'][0]": 1, "['w'][1]": 2}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def describe(leaf: Any) -> str:
    """Names the dtype and shape of a leaf.

    Args:
      leaf: an array, a number, a typed random key (not consumed) or a `jax.ShapeDtypeStruct`.

    Returns:
      Such as `float32[3, 4]`.

    Raises:
      ValueError: if it is none of these.

    Example:
      >>> import numpy as np
      >>> from maml_jax.checkpoint_leaves import describe
      >>> describe(np.zeros((3, 4), np.float32))
      'float32[3, 4]'
    """
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    kinds = (np.number, np.bool_, jax.dtypes.prng_key)
    if not any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds):
        raise ValueError(f"A leaf must be an array or a number, got dtype {leaf.dtype}.")
    return f"{leaf.dtype.name}{list(leaf.shape)}"


def stored_type(leaf: Any) -> jax.ShapeDtypeStruct:
    """Gives the shape and dtype under which a leaf is stored: a key as its integers.

    Args:
      leaf: as in `describe`.

    Returns:
      The shape and dtype, in the byte order of this machine.

    Example:
      >>> import jax
      >>> from maml_jax.checkpoint_leaves import stored_type
      >>> stored_type(jax.random.key(0))
      ShapeDtypeStruct(shape=(2,), dtype=uint32)
    """
    leaf = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    # Not through canonicalization: NumPy leaves keep 64 bits when JAX has 32.
    return jax.ShapeDtypeStruct(leaf.shape, np.dtype(leaf.dtype).newbyteorder("="))


def digest_array(array: np.ndarray) -> str:
    """Gives the SHA-256 of dtype, shape and bytes.

    Args:
      array: `[...]`, of any dtype but object, contiguous.

    Returns:
      64 hexadecimal digits.

    Example:
      >>> import numpy as np
      >>> from maml_jax.checkpoint_leaves import digest_array
      >>> digest_array(np.zeros(2)) == digest_array(np.zeros((2, 1)))
      False
    """
    digest = hashlib.sha256(describe(array).encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def to_host(state: Any) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Copies the leaves of a tree to the host, and describes each.

    What is split over several processes is gathered first, leaf by leaf, by all of them.

    Args:
      state: a tree of what `describe` takes; typed random keys are not consumed.

    Returns:
      In tree order, for each leaf its `path`, `type`, `key_impl` and `sha256`, as in a
      manifest; and the arrays, keys as their integers.

    Raises:
      ValueError: if a leaf is neither an array nor a number.

    Example:
      >>> from maml_jax.checkpoint_leaves import to_host
      >>> (leaf,), arrays = to_host({"rate": 0.1})
      >>> leaf["path"], leaf["type"], arrays
      ("['rate']", 'float64[]', [array(0.1)])
    """
    leaves, arrays = [], []
    for name, leaf in by_name(state).items():
        kind = describe(leaf)
        stored = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        if isinstance(stored, jax.Array) and not stored.is_fully_replicated:
            stored = multihost_utils.process_allgather(stored, tiled=True)
        array = np.array(stored, order="C", copy=True)
        arrays.append(array.astype(array.dtype.newbyteorder("="), copy=False))
        key_impl = str(jax.random.key_impl(leaf)) if _is_key(leaf) else None
        described = {"path": name, "type": kind, "key_impl": key_impl}
        leaves.append(described | {"sha256": digest_array(arrays[-1])})
    return leaves, arrays


def placed(arrays: list[np.ndarray], keys: dict[str, str | None], target: Any) -> Any:
    """Gives verified arrays the structure, types and shardings of a target.

    Args:
      arrays: on the host, of the types that `stored_type` gives for the target's leaves.
      keys: by the name of each array's leaf, the generator of a typed random key, or None; in
        the order of `arrays`.
      target: as in `maml_jax.checkpoints.restore`.

    Returns:
      The tree.

    Example:
      >>> import numpy as np
      >>> from maml_jax.checkpoint_leaves import placed
      >>> placed([np.array(0.1)], {"['rate']": None}, {"rate": 0.0})
      {'rate': 0.1}
    """
    wanted = by_name(target)
    leaves = {
        name: _place(array, wanted[name], key_impl)
        for (name, key_impl), array in zip(keys.items(), arrays, strict=True)
    }
    return jax.tree.unflatten(jax.tree.structure(target), [leaves[name] for name in wanted])


def _place(array: np.ndarray, like: Any, key_impl: str | None) -> Any:
    """Gives a verified array the type and sharding of the target's leaf."""
    if isinstance(like, np.ndarray):
        return array
    if isinstance(like, np.generic | int | float | complex):
        return array[()] if isinstance(like, np.generic) else array.item()
    value = (
        array if key_impl is None else jax.random.wrap_key_data(jnp.asarray(array), impl=key_impl)
    )
    if not getattr(like, "committed", True):
        return jax.device_put(value)  # It stays uncommitted: it may meet arrays on any device.
    sharding = like.sharding
    return jax.device_put(value) if sharding is None else processes.put(value, sharding)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.bool_), jax.dtypes.prng_key)
