"""The inner loop: how parameters adapt to one task.

Everything here is written for one task. `K` is the number of inner steps. The inner
loops of `maml_family` differ in three choices only: which parameters adapt, by which
rule, and how derivatives flow through the inner gradients; `_unroll` is the one loop
they share.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maml_jax import gradients, shared_sum
from maml_jax.inner_checks import check_count
from maml_jax.losses import LossFn
from maml_jax.tasks import Examples, Params, Task

MetaParams = Any
"""What the outer loop learns: `params` itself for MAML, more for Meta-SGD."""

Adapts = Callable[[str], bool]
"""Says of a parameter's path, such as "params/head/kernel", whether it adapts."""

_UNROLLED_STEPS = 5  # Unrolled, a few steps run faster; a loop compiles in flat time.


class InnerLoop(NamedTuple):
    """A family of pure functions that adapt parameters to one task.

    Attributes:
      init: from `params` to the meta-parameters that the outer loop learns.
      adapt: `(loss_fn, meta_params, support) -> (adapted, support_losses [K])`. The
        losses are those seen before each step. Differentiable in `meta_params`.
      observe: `(loss_fn, meta_params, support, view, *, num_steps=None)`: the tree
        `view(params)` before the first step and after each, stacked `[K + 1, ...]`;
        `num_steps` overrides the number of steps. None if the loop cannot tell.
      task_loss: `(loss_fn, meta_params, task) -> (loss, metrics)`, whose gradient is the
        task's meta-gradient. None means the query loss after adaptation.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import maml_jax as mj
      >>> def loss_fn(params, examples):
      ...     return jnp.mean((params - examples.targets) ** 2)
      >>> support = mj.Examples(inputs=jnp.zeros((2, 1)), targets=jnp.ones((2, 1)))
      >>> inner = mj.maml(optax.sgd(0.25), num_steps=1)
      >>> adapted, losses = inner.adapt(loss_fn, inner.init(jnp.array(0.0)), support)
      >>> print(float(adapted), losses.shape)
      0.5 (1,)
    """

    init: Callable[[Params], MetaParams]
    adapt: Callable[[LossFn, MetaParams, Examples], tuple[Params, jax.Array]]
    observe: Callable[..., Any] | None = None
    task_loss: Callable[[LossFn, MetaParams, Task], tuple[jax.Array, dict]] | None = None


def task_loss(inner: InnerLoop, loss_fn: LossFn, meta_params: MetaParams, task: Task):
    """Gives the loss of one task whose gradient is its meta-gradient.

    ℓ(θ_K(θ; support), query), unless the inner loop defines its own.

    Args:
      inner: the inner loop.
      loss_fn: loss of parameters on one set of examples.
      meta_params: what the outer loop learns.
      task: one task.

    Returns:
      The scalar loss, and a dict of metrics: what `loss_fn` reports on the query set, and
      `support_loss`, the support loss before adaptation, if there is an inner step.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import maml_jax as mj
      >>> from maml_jax.inner_loop import task_loss
      >>> def loss_fn(params, examples):
      ...     return jnp.mean((params - examples.targets) ** 2)
      >>> few = mj.Examples(inputs=jnp.zeros((2, 1)), targets=jnp.ones((2, 1)))
      >>> inner = mj.maml(optax.sgd(0.25), num_steps=1)
      >>> loss, _ = task_loss(inner, loss_fn, jnp.array(0.0), mj.Task(support=few, query=few))
      >>> print(float(loss))
      0.25
    """
    if inner.task_loss is not None:
        return inner.task_loss(loss_fn, meta_params, task)
    return query_loss(inner, loss_fn, meta_params, task)


def query_loss(inner: InnerLoop, loss_fn: LossFn, meta_params: MetaParams, task: Task):
    """Gives the query loss after adaptation, whatever the inner loop's own gradient is.

    Args:
      inner: the inner loop.
      loss_fn: loss of parameters on one set of examples.
      meta_params: what the outer loop learns.
      task: one task.

    Returns:
      What `task_loss` gives of an inner loop without a loss of its own.
    """
    adapted, support_losses = inner.adapt(loss_fn, meta_params, task.support)
    loss, metrics = gradients.loss_and_metrics(loss_fn, adapted, task.query)
    return loss, {**metrics, **support_loss_metric(support_losses)}


class Rule(NamedTuple):
    """One inner update rule.

    `init(params)` gives the meta-parameters and `start(meta_params)` θ; `init_state` the
    optimizer's state, from the parameters that adapt; `update(meta_params, step, grads,
    state, params)` the updates and the next state.
    """

    init: Callable[..., Any]
    start: Callable[..., Any]
    init_state: Callable[..., Any]
    update: Callable[..., Any]


def make_inner_loop(
    rule: Rule,
    num_steps: int,
    first_order: bool,
    adapts: Adapts | None,
    differentiate: str,
    remat: bool,
) -> InnerLoop:
    """Binds a rule and its settings to the shared loop."""
    unroll = functools.partial(
        _unroll,
        rule,
        first_order=first_order,
        adapts=adapts,
        differentiate=differentiate,
        remat=remat,
    )

    def adapt(loss_fn, meta_params, support):
        adapted, losses, _ = unroll(loss_fn, meta_params, support, num_steps=num_steps)
        return adapted, losses

    def observe(loss_fn, meta_params, support, view, *, num_steps=num_steps):
        check_count("num_steps", num_steps)
        adapted, _, views = unroll(loss_fn, meta_params, support, num_steps=num_steps, view=view)
        last = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], view(adapted))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), views, last)

    return InnerLoop(rule.init, adapt, observe)


def _unroll(
    rule: Rule,
    loss_fn: LossFn,
    meta_params: MetaParams,
    support: Examples,
    *,
    num_steps: int,
    first_order: bool,
    adapts: Adapts | None,
    differentiate: str,
    remat: bool,
    view: Callable[[Params], Any] | None = None,
):
    """Runs the inner steps; returns the adapted parameters, `[K]` losses and `[K]` views."""
    adapting, fixed = split(rule.start(meta_params), adapts)
    value_and_grad = gradients.support_gradient(loss_fn, differentiate)

    def step(carry, index):
        adapting, state = carry
        seen = None if view is None else view(gradients.join(adapting, fixed))
        loss, grads = value_and_grad(adapting, fixed, support)
        if first_order:
            grads = jax.lax.stop_gradient(grads)
        updates, state = rule.update(meta_params, index, grads, state, adapting)
        return (shared_sum.apply_updates(adapting, updates), state), (loss, seen)

    if remat:
        step = jax.checkpoint(step)
    carry = adapting, rule.init_state(meta_params, adapting)
    # A view makes each step larger and is for evaluation, where compiling takes longest.
    unrolled = view is None and 0 < num_steps <= _UNROLLED_STEPS
    loop = _python_loop if unrolled else jax.lax.scan
    carry, (losses, views) = loop(step, carry, jnp.arange(num_steps))
    return gradients.join(carry[0], fixed), losses, views


def _python_loop(step: Callable, carry, xs: jax.Array):
    """Does what `jax.lax.scan` does, written out.

    Unlike a carry of `scan`, the parameters of the first step stay those that all tasks share
    when tasks are mapped: its products are one for all tasks, and so is their gradient.
    """
    outs = []
    for x in xs:
        carry, out = step(carry, x)
        outs.append(out)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *outs)


def split(params: Params, adapts: Adapts | None) -> tuple[Params, Params]:
    """Parts a tree in two of its own structure, with None where the other has the leaf."""
    if adapts is None:
        return params, jax.tree.map(lambda leaf: None, params)
    paths = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    chosen = [adapts(name) for name in names]
    if not any(chosen):
        raise ValueError(f"adapts must choose at least one parameter, got none of {names}.")
    keep = jax.tree.unflatten(jax.tree.structure(params), chosen)
    adapting = jax.tree.map(lambda leaf, yes: leaf if yes else None, params, keep)
    fixed = jax.tree.map(lambda leaf, yes: None if yes else leaf, params, keep)
    return adapting, fixed


def support_loss_metric(support_losses: jax.Array) -> dict[str, jax.Array]:
    """Names the support loss before adaptation, if there was an inner step to see it.

    Args:
      support_losses: `[K]`, as `adapt` returns them.

    Returns:
      A dict with `support_loss`, a scalar; empty for K = 0.
    """
    return {"support_loss": support_losses[0]} if len(support_losses) else {}
