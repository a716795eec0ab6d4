"""MAML and its family with an optax inner optimizer, each a few lines on one machinery."""

import jax
import jax.numpy as jnp
import optax

from maml_jax import gradients
from maml_jax.inner_checks import check_count, check_inner_optimizer
from maml_jax.inner_loop import (
    Adapts,
    InnerLoop,
    Rule,
    make_inner_loop,
    support_loss_metric,
)


def maml(
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    first_order: bool = False,
    adapts: Adapts | None = None,
    differentiate: str = "reverse",
    remat: bool = False,
) -> InnerLoop:
    """Adapts by a few steps of any optax optimizer on the support loss.

    With SGD of step size α: θ₀ = θ, θₖ₊₁ = θₖ - α ∇ℓ(θₖ, support). The optimizer's
    state starts anew for every task. Derivatives flow through every step.

    Args:
      optimizer: the inner update rule.
      num_steps: number `K` of inner steps; static, at least 0 (0: no adaptation).
      first_order: treat inner gradients as constants, which drops second derivatives.
      adapts: predicate on parameter paths; the others stay as they are in the inner
        loop and are learned by the outer loop alone. None adapts all.
      differentiate: "reverse", or "mixed": forward-over-reverse Hessian-vector products,
        which keep only the parameters of each inner step in memory.
      remat: recompute each inner step in the backward pass instead of keeping it.

    Returns:
      An `InnerLoop` whose meta-parameters are `params`.

    Raises:
      TypeError: if `num_steps` is not an integer.
      ValueError: if `num_steps` is negative, `differentiate` is unknown, the optimizer
        moves uphill or to NaN, or its derivative at a zero gradient is NaN (Adam with
        `eps_root=0`) while second derivatives are asked for.

    References:
      Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
      Networks", ICML 2017, algorithm 2; https://arxiv.org/abs/1703.03400
      Kemaev et al., "Scalable Meta-Learning via Mixed-Mode Differentiation", ICML 2025
      ("mixed"); https://arxiv.org/abs/2505.00793

    Example:
      >>> import optax
      >>> import maml_jax as mj
      >>> inner = mj.maml(optax.sgd(0.4), num_steps=1)
    """
    check_count("num_steps", num_steps)
    gradients.check_mode(differentiate)
    check_inner_optimizer(optimizer, second_order=not first_order)
    extended = optax.with_extra_args_support(optimizer)
    rule = Rule(
        init=lambda params: params,
        start=lambda meta_params: meta_params,
        init_state=lambda meta_params, params: extended.init(params),
        update=lambda meta_params, step, grads, state, params: extended.update(
            grads, state, params
        ),
    )
    return make_inner_loop(rule, num_steps, first_order, adapts, differentiate, remat)


def fomaml(optimizer: optax.GradientTransformation, num_steps: int, **options) -> InnerLoop:
    """Adapts as `maml`, with inner gradients taken as constants (first-order MAML).

    Args:
      optimizer: the inner update rule.
      num_steps: number `K` of inner steps; static, at least 0.
      **options: as for `maml`.

    Returns:
      An `InnerLoop` whose meta-gradient is ∇ℓ at the adapted parameters.

    Raises:
      ValueError: as `maml`.

    References:
      Finn et al., ICML 2017, section 5.2; https://arxiv.org/abs/1703.03400

    Example:
      >>> import optax
      >>> import maml_jax as mj
      >>> inner = mj.fomaml(optax.adam(0.01), num_steps=5)
    """
    return maml(optimizer, num_steps, first_order=True, **options)


def anil(
    optimizer: optax.GradientTransformation, num_steps: int, *, head: str = "head", **options
) -> InnerLoop:
    """Adapts the head only; the body is learned by the outer loop (ANIL).

    Args:
      optimizer: the inner update rule.
      num_steps: number `K` of inner steps; static, at least 0.
      head: name of the module that adapts: a component of parameter paths.
      **options: as for `maml`, without `adapts`.

    Returns:
      An `InnerLoop`.

    Raises:
      ValueError: as `maml`; when it runs, if no parameter's path has that component.

    References:
      Raghu et al., "Rapid Learning or Feature Reuse? Towards Understanding the
      Effectiveness of MAML", ICLR 2020; https://arxiv.org/abs/1909.09157

    Example:
      >>> import optax
      >>> import maml_jax as mj
      >>> inner = mj.anil(optax.sgd(0.1), num_steps=5, head="head")
    """
    return maml(optimizer, num_steps, adapts=lambda path: head in path.split("/"), **options)


def boil(
    optimizer: optax.GradientTransformation, num_steps: int, *, head: str = "head", **options
) -> InnerLoop:
    """Adapts the body only; the head stays as it is in the inner loop (BOIL).

    Args:
      optimizer: the inner update rule.
      num_steps: number `K` of inner steps; static, at least 0.
      head: name of the module that does not adapt: a component of parameter paths.
      **options: as for `maml`, without `adapts`.

    Returns:
      An `InnerLoop`.

    Raises:
      ValueError: as `maml`.

    References:
      Oh et al., "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021;
      https://arxiv.org/abs/2008.08882. The head's outer learning rate is the same as the
      body's here, as in the paper.

    Example:
      >>> import optax
      >>> import maml_jax as mj
      >>> inner = mj.boil(optax.sgd(0.5), num_steps=1)
    """
    return maml(optimizer, num_steps, adapts=lambda path: head not in path.split("/"), **options)


def reptile(optimizer: optax.GradientTransformation, num_steps: int) -> InnerLoop:
    """Moves the initialisation towards the adapted parameters (Reptile).

    The task's meta-gradient is θ - θ_K, from the support set alone: no query example and
    no second derivative is used. An outer SGD of rate ε gives θ ← θ + ε (θ_K - θ).

    Args:
      optimizer: the inner update rule.
      num_steps: number `K` of inner steps; static, at least 1.

    Returns:
      An `InnerLoop`; the loss that it reports is the query loss after adaptation.

    Raises:
      ValueError: as `maml`, or if `num_steps` is below 1.

    References:
      Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018,
      algorithms 1 and 2; https://arxiv.org/abs/1803.02999

    Example:
      >>> import optax
      >>> import maml_jax as mj
      >>> inner = mj.reptile(optax.sgd(0.02), num_steps=5)
    """
    check_count("num_steps", num_steps, at_least=1)
    inner = fomaml(optimizer, num_steps)

    def reptile_loss(loss_fn, params, task):
        adapted, support_losses = inner.adapt(loss_fn, jax.lax.stop_gradient(params), task.support)
        loss, metrics = gradients.loss_and_metrics(loss_fn, adapted, task.query)
        # ⟨θ, θ - θ_K⟩ with the second factor held constant: its gradient is θ - θ_K. The
        # reported value stays the query loss.
        products = jax.tree.map(
            lambda p, a: jnp.vdot(p, jax.lax.stop_gradient(p - a)), params, adapted
        )
        direction = sum(jax.tree.leaves(products))
        value = jax.lax.stop_gradient(loss - direction) + direction
        return value, {**metrics, **support_loss_metric(support_losses)}

    return inner._replace(task_loss=reptile_loss)
