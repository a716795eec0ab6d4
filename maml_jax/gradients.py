"""Gradients of the support loss, and how they are differentiated once more."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maml_jax.losses import LossFn
from maml_jax.tasks import Examples, Params

MODES = ("reverse", "mixed")


def check_mode(differentiate: str) -> None:
    """Refuses an unknown way to differentiate the inner gradient.

    Args:
      differentiate: "reverse" or "mixed".

    Raises:
      ValueError: if it is neither.
    """
    if differentiate not in MODES:
        raise ValueError(f"differentiate must be one of {list(MODES)}, got {differentiate!r}.")


def loss_and_metrics(loss_fn: LossFn, params: Params, examples: Examples):
    """Calls a loss function that may or may not report metrics.

    Args:
      loss_fn: returns a scalar, or a scalar and a dict of scalars.
      params: parameters of one task.
      examples: one set of examples.

    Returns:
      The scalar loss and a dict, empty where nothing was reported.

    Raises:
      TypeError: if `loss_fn` returns something else.
    """
    result = loss_fn(params, examples)
    loss, metrics = result if isinstance(result, tuple) else (result, {})
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves((loss, metrics))]
    if not isinstance(metrics, dict) or shapes != [()] * (1 + len(metrics)):
        raise TypeError(
            "loss_fn must return a scalar or (scalar, {name: scalar}), got "
            f"{jax.tree.map(jnp.shape, result)}; average over the examples."
        )
    return loss, metrics


def traced_once(loss_fn: LossFn) -> LossFn:
    """Makes a loss function that is traced once for all calls with the same shapes.

    Otherwise every inner step that is written out traces and differentiates it anew, as does
    whoever counts what it keeps: five steps of Conv4 took three times as long to trace. XLA puts
    the calls in their places, so the program is the same. It is for use under `jax.jit`: by
    itself it would be compiled.

    Args:
      loss_fn: returns a scalar, or a scalar and a dict of scalars.

    Returns:
      `(params, examples) -> (loss, metrics)`, with the errors of `loss_and_metrics`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from maml_jax.gradients import traced_once
      >>> def loss_fn(params, examples):
      ...     print("traced")
      ...     return jnp.sum(params * examples)
      >>> once = traced_once(loss_fn)
      >>> twice = jax.jit(lambda p, x: once(p, x)[0] + once(2 * p, x)[0])
      >>> float(twice(jnp.ones(3), jnp.ones(3)))
      traced
      9.0
    """
    return jax.jit(functools.partial(loss_and_metrics, loss_fn))


def join(ours: Any, theirs: Any) -> Any:
    """Puts two parts of a tree together, each with None where the other has the leaf.

    Args:
      ours: one part.
      theirs: the other, of the same structure.

    Returns:
      The whole tree.
    """
    return jax.tree.map(
        lambda mine, other: other if mine is None else mine,
        ours,
        theirs,
        is_leaf=lambda leaf: leaf is None,
    )


def support_gradient(loss_fn: LossFn, differentiate: str) -> Callable:
    """Builds `(adapting, fixed, support) -> (loss, gradient in adapting)`.

    Args:
      loss_fn: loss of parameters on one set of examples.
      differentiate: "reverse", or "mixed", whose derivative is computed
        forward-over-reverse and keeps nothing but its arguments.

    Returns:
      A function that is differentiable in all its arguments; "mixed" in reverse only.
    """

    def loss(adapting, fixed, support):
        return loss_and_metrics(loss_fn, join(adapting, fixed), support)[0]

    return jax.value_and_grad(loss) if differentiate == "reverse" else _mixed(loss)


def _mixed(loss: Callable) -> Callable:
    """Gives `value_and_grad(loss)` a reverse rule made of a Jacobian-vector product.

    With cotangent v of the gradient, the reverse rule needs ∂/∂(θ, φ) ⟨∇ℓ(θ, φ), v⟩, and
    derivatives commute: it is the derivative of ∇_{θ,φ} ℓ along v in θ. So one jvp of the
    gradient gives it, and the activations of the inner backward pass are never kept.
    """

    @jax.custom_vjp
    def value_and_grad(adapting, smooth, discrete):
        return jax.value_and_grad(lambda adapting: loss(adapting, *join(smooth, discrete)))(
            adapting
        )

    def forward(adapting, smooth, discrete):
        return value_and_grad(adapting, smooth, discrete), (adapting, smooth, discrete)

    def backward(kept, cotangents):
        adapting, smooth, discrete = kept
        loss_bar, grads_bar = cotangents

        def full_gradient(adapting):
            return jax.grad(
                lambda adapting, smooth: loss(adapting, *join(smooth, discrete)),
                argnums=(0, 1),
            )(adapting, smooth)

        first, second = jax.jvp(full_gradient, (adapting,), (grads_bar,))
        bar = jax.tree.map(lambda g, hv: loss_bar.astype(g.dtype) * g + hv, first, second)
        return (*bar, None)

    value_and_grad.defvjp(forward, backward)

    def call(adapting, fixed, support):
        return value_and_grad(adapting, *_separate((fixed, support)))

    return call


def _separate(tree):
    """Parts a tree in its floating-point leaves and all others (labels, masks)."""
    smooth = jax.tree.map(lambda leaf: leaf if _is_smooth(leaf) else None, tree)
    discrete = jax.tree.map(lambda leaf: None if _is_smooth(leaf) else leaf, tree)
    return smooth, discrete


def _is_smooth(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
