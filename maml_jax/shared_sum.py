"""The sum of parameters that all tasks share and updates that each task has its own of.

It is `params + updates` with a rule of its own: under `jax.vmap` over the updates alone, the
parameters are repeated by a primitive whose gradient is a product with ones, where that of
broadcasting is a reduction over the tasks: of 25 kernels of 40 x 40, 6.5 against 22 microseconds
on a CPU core.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from maml_jax import varying


def apply_updates(params: Any, updates: Any) -> Any:
    """Adds updates to parameters, as `optax.apply_updates` does.

    Args:
      params: a tree of arrays, or None where another tree has the leaf.
      updates: a tree of arrays of the same shapes.

    Returns:
      The sums, in the dtypes of the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.shared_sum import apply_updates
      >>> print(apply_updates({"w": jnp.ones(2)}, {"w": jnp.arange(2.0)})["w"])
      [1. 2.]
    """

    def moved(param, update):
        if param is None:
            return None
        wide = jnp.result_type(param, update)
        both = varying.alike(jnp.asarray(param, wide), jnp.asarray(update, wide))
        return _sum_p.bind(*both).astype(jnp.result_type(param))

    return jax.tree.map(moved, params, updates, is_leaf=lambda leaf: leaf is None)


_sum_p = Primitive("shared_sum")
_sum_p.def_impl(jax.jit(jnp.add))
_sum_p.def_abstract_eval(lambda param, update: param.update(weak_type=False))
mlir.register_lowering(_sum_p, mlir.lower_fun(jnp.add, multiple_results=False))


def _jvp(primals, tangents):
    return _sum_p.bind(*primals), ad.add_tangents(*tangents)


def _batched(arguments, axes):
    sizes = {a.shape[axis] for a, axis in zip(arguments, axes, strict=True) if axis is not None}
    param, update = (
        _repeat_p.bind(a, num_tasks=sizes.pop()) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(arguments, axes, strict=True)
    )
    return _sum_p.bind(param, update), 0


ad.primitive_jvps[_sum_p] = _jvp
batching.primitive_batchers[_sum_p] = _batched


def _repeated(array, *, num_tasks):
    return jnp.broadcast_to(array, (num_tasks, *array.shape))


def _repeat_transposed(cotangent, _, *, num_tasks):
    ones = jnp.ones(num_tasks, cotangent.dtype)
    return [jnp.tensordot(ones, cotangent, axes=1, precision="highest")]


def _repeat_batched(arguments, axes, *, num_tasks):
    array = jnp.moveaxis(arguments[0], axes[0], 0)
    return _repeat_p.bind(array, num_tasks=num_tasks), 1


_repeat_p = Primitive("repeat_for_tasks")
_repeat_p.def_impl(jax.jit(_repeated, static_argnames="num_tasks"))
_repeat_p.def_abstract_eval(lambda array, num_tasks: array.update(shape=(num_tasks, *array.shape)))
mlir.register_lowering(_repeat_p, mlir.lower_fun(_repeated, multiple_results=False))
ad.deflinear2(_repeat_p, _repeat_transposed)
batching.primitive_batchers[_repeat_p] = _repeat_batched
