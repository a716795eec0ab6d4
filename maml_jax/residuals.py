"""What the backward pass of one task needs room for, read off the traced program.

What is kept are the residuals of the loss: all that `jax.vjp` saves. In a part of the loss under
`jax.checkpoint`, as `remat=True` puts around every inner step, only the inputs are kept, and the
rest is made again when the backward pass gets there: room for one such part at a time.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, jaxprs_in_params

from maml_jax.tasks import Params, Task


def bytes_kept(task_loss: Callable, params: Params, tasks: Task) -> int:
    """Counts what one task keeps for its backward pass; traces it, and runs nothing.

    Args:
      task_loss: `(params, task) -> (loss, metrics)` for one task.
      params: the meta-parameters.
      tasks: a meta-batch, arrays `[T, N, ...]`, or their shapes.

    Returns:
      Bytes, at least 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from maml_jax.residuals import bytes_kept
      >>> tasks = jax.ShapeDtypeStruct((8, 100), jnp.float32)
      >>> kept = bytes_kept(lambda w, x: (jnp.sum(jnp.sin(w * x)), {}), jnp.ones(100), tasks)
      >>> kept >= 800  # The cosine of w x, and x.
      True
    """

    def pull_back(params, task):
        return jax.vjp(lambda params: task_loss(params, task), params, has_aux=True)[1]

    return max(1, _num_bytes(jax.eval_shape(pull_back, params, _one(tasks))))


def bytes_made_again(task_loss: Callable, params: Params, tasks: Task) -> int:
    """Counts what the backward pass of one task makes again at once, beside what is kept.

    Args:
      task_loss: `(params, task) -> (loss, metrics)` for one task.
      params: the meta-parameters.
      tasks: a meta-batch, arrays `[T, N, ...]`, or their shapes.

    Returns:
      Bytes of the largest part under `jax.checkpoint`, with the largest one in it, and so on;
      at most, for its inputs count as well. 0 where nothing is made again.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from maml_jax.residuals import bytes_made_again
      >>> tasks = jax.ShapeDtypeStruct((8, 100), jnp.float32)
      >>> part = jax.checkpoint(lambda w, x: jnp.sum(jnp.sin(w * x)))
      >>> made_again = bytes_made_again(lambda w, x: (part(w, x), {}), jnp.ones(100), tasks)
      >>> made_again >= 800  # The cosine of w x, and x.
      True
    """
    traced = jax.make_jaxpr(task_loss)(params, _one(tasks))
    again = jax.make_jaxpr(jax.checkpoint(lambda x: x))(0.0).eqns[0].primitive
    known: dict[int, int] = {}

    def most(jaxpr: Jaxpr) -> int:
        if id(jaxpr) not in known:
            known[id(jaxpr)] = max((of(part) for part in _parts(jaxpr)), default=0)
        return known[id(jaxpr)]

    def of(part: tuple[Any, Jaxpr]) -> int:
        primitive, jaxpr = part
        return most(jaxpr) + (_residuals_of(jaxpr) if primitive is again else 0)

    return most(traced.jaxpr)


def _one(tasks: Task) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tasks)


def _parts(jaxpr: Jaxpr) -> Iterator[tuple[Any, Jaxpr]]:
    """Gives the programs within one, each with the primitive that runs it."""
    for equation in jaxpr.eqns:
        for part in jaxprs_in_params(equation.params):
            yield equation.primitive, part


def _residuals_of(jaxpr: Jaxpr) -> int:
    function = jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))

    def pull_back(*inputs):
        return jax.vjp(function, *inputs)[1]

    return _num_bytes(jax.eval_shape(pull_back, *(x.aval for x in jaxpr.invars)))


def _num_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
