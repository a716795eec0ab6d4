"""Inner loops whose learning rates are learned: Meta-SGD and LSLR."""

import jax
import jax.numpy as jnp

from maml_jax import gradients
from maml_jax.inner_checks import check_count, check_rate
from maml_jax.inner_loop import Adapts, InnerLoop, Rule, make_inner_loop, split


def meta_sgd(num_steps: int, *, learning_rate: float, **options) -> InnerLoop:
    """Adapts by SGD whose learning rate is learned for every single parameter.

    θₖ₊₁ = θₖ - α ∘ ∇ℓ(θₖ, support), with α of the shape of θ and learned with it.

    Args:
      num_steps: number `K` of inner steps; static, at least 0 (the paper has 1).
      learning_rate: start value of every entry of α; above 0. The paper draws it from
        [0.005, 0.1].
      **options: `first_order`, `adapts`, `differentiate`, `remat` as for `maml`.

    Returns:
      An `InnerLoop` with meta-parameters `{"params": θ, "learning_rates": α}`.

    Raises:
      TypeError: if `learning_rate` is not a number.
      ValueError: if `learning_rate` is not above 0 and finite.

    References:
      Li et al., "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017,
      equation 4; https://arxiv.org/abs/1707.09835

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> inner = mj.meta_sgd(num_steps=1, learning_rate=0.1)
      >>> sorted(inner.init(jnp.zeros(3)))
      ['learning_rates', 'params']
    """
    check_rate(learning_rate)

    def init(params):
        rates = jax.tree.map(lambda p: jnp.full_like(p, learning_rate), params)
        return {"params": params, "learning_rates": rates}

    def rates_at(learning_rates, step):
        del step  # The same at every step.
        return learning_rates

    return _learned_rates(init, rates_at, num_steps, **options)


def lslr(num_steps: int, *, learning_rate: float, **options) -> InnerLoop:
    """Adapts by SGD with one learned rate per parameter array and inner step.

    θₖ₊₁ = θₖ - α[array, k] ∇ℓ(θₖ, support). Steps beyond `K`, as in an evaluation with
    more steps, use the last rate.

    Args:
      num_steps: number `K` of inner steps; static, at least 1.
      learning_rate: start value of every rate; above 0.
      **options: `first_order`, `adapts`, `differentiate`, `remat` as for `maml`.

    Returns:
      An `InnerLoop` with meta-parameters `{"params": θ, "learning_rates": α}`, each
      array's rates of shape `[K]`.

    Raises:
      TypeError: if `learning_rate` is not a number.
      ValueError: if `learning_rate` is not above 0 and finite, or `num_steps` below 1.

    References:
      Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019, section 4 ("LSLR");
      https://arxiv.org/abs/1810.09502. The paper shares a rate within a layer; here the
      kernel and the bias of a layer have one each.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> inner = mj.lslr(num_steps=5, learning_rate=0.1)
      >>> inner.init({"w": jnp.zeros((2, 3))})["learning_rates"]["w"].shape
      (5,)
    """
    check_count("num_steps", num_steps, at_least=1)
    check_rate(learning_rate)

    def init(params):
        rates = jax.tree.map(lambda p: jnp.full((num_steps,), learning_rate, p.dtype), params)
        return {"params": params, "learning_rates": rates}

    def rates_at(learning_rates, step):
        last = jnp.minimum(step, num_steps - 1)
        return jax.tree.map(lambda rates: rates[last], learning_rates)

    return _learned_rates(init, rates_at, num_steps, **options)


def _learned_rates(
    init,
    rates_at,
    num_steps: int,
    *,
    first_order: bool = False,
    adapts: Adapts | None = None,
    differentiate: str = "reverse",
    remat: bool = False,
) -> InnerLoop:
    """Builds an inner loop of SGD whose rates are meta-parameters."""
    check_count("num_steps", num_steps)
    gradients.check_mode(differentiate)

    def update(meta_params, step, grads, state, params):
        del params  # SGD looks at gradients only.
        rates = rates_at(meta_params["learning_rates"], step)
        adapting, _ = split(rates, adapts)
        updates = jax.tree.map(lambda rate, grad: -rate * grad, adapting, grads)
        return updates, state

    rule = Rule(
        init=init,
        start=lambda meta_params: meta_params["params"],
        init_state=lambda meta_params, params: (),
        update=update,
    )
    return make_inner_loop(rule, num_steps, first_order, adapts, differentiate, remat)
