"""What an outer step carries from call to call, and what it offers."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from maml_jax.aggregation import Evidence
from maml_jax.checks import named_leaves
from maml_jax.inner_loop import MetaParams
from maml_jax.nonfinite import Explain
from maml_jax.tasks import Params, Task


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterState:
    """What the outer loop carries from step to step.

    Attributes:
      params: the meta-parameters, `inner.init(params)`.
      opt_state: the outer optimizer's state.
      aggregation_state: the aggregation's state; `()` for most.
      step: number of outer steps done, a scalar integer.
      gain_state: the gain's state, with its progress; `()` without a gain.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> mj.OuterState(params=jnp.ones(2), opt_state=(), aggregation_state=(), step=0).step
      0
    """

    params: MetaParams
    opt_state: Any
    aggregation_state: Any
    step: jax.Array
    gain_state: Any = ()


class OuterStep(NamedTuple):
    """A compiled outer step, from `make_outer_step`.

    Attributes:
      init: `params -> OuterState`.
      update: `(state, tasks, *, weights=None, mask=None) -> (state, metrics)`. Weights are an
        array `[T]`, finite, at least 0, not all 0; a mask is booleans `[T]`, of which False
        leaves a task out, whatever it holds.
      gradient: `(state, tasks, *, weights=None, mask=None) -> (grads, metrics)`: the
        aggregated meta-gradient, no update.
      evidence: `(state, tasks, *, mask=None, noise=False) -> Evidence`: losses, norms and inner
        products of the gradients of the tasks, whatever the aggregation, for diagnosis; with
        `noise` also their noise (`maml_jax.query_halves`). Of tasks that are not finite none.
      explain: `(params, tasks, valid=None) -> (task indices, sentence)`: which tasks are not
        finite, of those that booleans `[T]` say count.
      fits_one_core: `(params, tasks) -> bool`: whether the tasks, or their shapes, are so few and
        small that one CPU core does them best.
      optimizer: the outer optimizer.
      mesh: the devices that share the tasks; None is the default device.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import maml_jax as mj
      >>> loss_fn = mj.losses.regression(lambda params, inputs, mask: inputs @ params)
      >>> outer = mj.make_outer_step(loss_fn, mj.maml(optax.sgd(0.1), 1), optax.sgd(0.1))
      >>> examples = mj.Examples(inputs=jnp.ones((3, 4, 1)), targets=jnp.ones((3, 4, 1)))
      >>> tasks = mj.Task(support=examples, query=examples)
      >>> grads, metrics = outer.gradient(outer.init(jnp.zeros((1, 1))), tasks)
      >>> print(grads.round(2))
      [[-1.28]]
    """

    init: Callable[[Params], OuterState]
    update: Callable[..., tuple[OuterState, dict[str, jax.Array]]]
    gradient: Callable[..., tuple[MetaParams, dict[str, jax.Array]]]
    evidence: Callable[..., Evidence]
    explain: Explain
    fits_one_core: Callable[[MetaParams, Task], bool]
    optimizer: optax.GradientTransformationExtraArgs
    mesh: Mesh | None


def check_state(state: Any) -> None:
    """Refuses what is not the state of an outer step.

    Args:
      state: what a caller passed.

    Raises:
      TypeError: if it is anything else, such as the parameters alone.
    """
    if not isinstance(state, OuterState):
        raise TypeError(
            f"state must be an OuterState, made by outer.init, got {type(state).__name__}."
        )


def check_carried(name: str, got: Any, want: Any) -> None:
    """Refuses a part of a state that another outer step made.

    Args:
      name: which part: "opt_state", "aggregation_state" or "gain_state".
      got: what a caller passed.
      want: what the outer step at hand makes, of arrays or their shapes.

    Raises:
      ValueError: naming the first leaf that differs, or the structures.
    """
    rule = f"{name} must be of this outer step, as outer.init makes it"
    shapes, wanted = (
        {path: f"shape {np.shape(leaf)}" for path, leaf in named_leaves(name, tree)}
        for tree in (got, want)
    )
    for path in {**wanted, **shapes}:
        if shapes.get(path) != wanted.get(path):
            raise ValueError(
                f"{rule}: {path} must have {wanted.get(path, 'no entry')}, got "
                f"{shapes.get(path, 'no entry')}."
            )
    structures = jax.tree.structure(want), jax.tree.structure(got)
    if structures[0] != structures[1]:
        raise ValueError(f"{rule}: its structure must be {structures[0]}, got {structures[1]}.")
