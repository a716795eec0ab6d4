"""What an inner loop refuses at construction, with the rule, the value and the remedy."""

import math
import numbers

import jax
import jax.numpy as jnp
import optax


def check_count(name: str, value, *, at_least: int = 0) -> None:
    """Refuses a count that is not an integer or is too small.

    Args:
      name: what the message calls it.
      value: the count.
      at_least: the smallest count allowed.

    Raises:
      TypeError: if the value is not an integer (a bool is not).
      ValueError: if it is below `at_least`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"{name} must be an integer, got {value!r}; it is a static number of repetitions."
        )
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}.")


def check_rate(learning_rate, *, name: str = "learning_rate") -> None:
    """Refuses a learning rate that is not a positive, finite number.

    Args:
      learning_rate: the rate.
      name: what the message calls it.

    Raises:
      TypeError: if it is not a number.
      ValueError: if it is not above 0 and finite.
    """
    if isinstance(learning_rate, bool) or not isinstance(learning_rate, numbers.Real):
        raise TypeError(
            f"{name} must be a number above 0, got {type(learning_rate).__name__} "
            f"{learning_rate!r}."
        )
    if not 0 < float(learning_rate) < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {learning_rate}.")


def check_inner_optimizer(optimizer: optax.GradientTransformation, *, second_order: bool) -> None:
    """Tries an optimizer on a small known gradient and refuses what cannot work.

    Args:
      optimizer: the inner update rule.
      second_order: whether derivatives will flow through it.

    Raises:
      TypeError: if it is not an optax transformation, or its settings have wrong types.
      ValueError: if its update is not finite or goes uphill, or if its derivative at a
        zero entry of the gradient is NaN while `second_order` asks for it.
    """
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            "the inner optimizer must be an optax transformation such as optax.sgd(0.1), got "
            f"{type(optimizer).__name__}."
        )
    with jax.ensure_compile_time_eval():
        params = {"w": jnp.ones((2, 2))}
        grads = {"w": jnp.array([[1.0, 1.0], [1.0, 0.0]])}

        def update(grads):
            extended = optax.with_extra_args_support(optimizer)
            return extended.update(grads, extended.init(params), params)[0]

        try:
            updates, slope = jax.jvp(update, (grads,), (grads,))
            sensitivity = jax.vjp(update, grads)[1](grads)[0]
        except TypeError as error:
            raise TypeError(
                "the inner optimizer cannot make an update: learning rates and other settings "
                f"must be numbers or schedules; optax says: {error}"
            ) from error
        finite = bool(jnp.isfinite(updates["w"]).all())
        uphill = bool(updates["w"][0, 0] > 0)
        smooth = bool(jnp.isfinite(slope["w"]).all() & jnp.isfinite(sensitivity["w"]).all())
    if not finite:
        raise ValueError(
            "the inner optimizer must make finite updates, got nan or inf for a gradient of "
            "ones; check that its learning rate is finite."
        )
    if uphill:
        raise ValueError(
            "the inner optimizer must go downhill, got an update along a positive gradient; "
            "check that its learning rate is above 0."
        )
    if second_order and not smooth:
        raise ValueError(
            "the inner optimizer's derivative at a zero gradient must be finite for second "
            "order, got nan; for Adam pass eps_root, as optax.adam(0.01, eps_root=1e-8), or "
            "use first_order=True."
        )
