"""Gains: how far a step goes when the meta-batch grows.

A gain multiplies the update AFTER the optimizer. In front of it, Adam and its kin would divide
it out again. Mean and sum are the two ends: with SGD at the learning rate of one task, a gain of
1 is the mean and a gain of n the sum of n tasks.

    linear       n / base                the sum, for SGD
    square_root  √(n / base)             for Adam and its kin
    adascale     rᵖ, r = a / q in [1, n]  what the gradients of this meta-batch allow

Progress counts the steps that one task each would have needed, so schedules that follow it, and
a budget of it, stay right when the meta-batch changes.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maml_jax.reduction_report import degree_of
from maml_jax.spread import Spread

Schedule = Callable[[jax.Array], Any]
"""From progress to a factor of the learning rate, such as any schedule of optax."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gain:
    """A rule for the length of the outer step.

    Attributes:
      name: as in messages.
      measure: `(spread, memory) -> (r, memory)`: the steps of one task that this one is worth.
      init: gives the memory before the first step.
      power: p of the factor rᵖ; None: 1 for an optimizer of degree 1 in the gradient, 1/2 for
        one of degree 0.
      schedule: from progress to a further factor of the step; None is 1.
      needs_spread: whether `measure` looks at gradients, which are then held for each task, or
        only at their number.

    Example:
      >>> from maml_jax import gains
      >>> gains.linear().name
      'linear'
    """

    name: str
    measure: Callable[[Spread, Any], tuple[jax.Array, Any]]
    init: Callable[[], Any] = tuple
    power: float | None = None
    schedule: Schedule | None = None
    needs_spread: bool = False

    def __post_init__(self):
        if self.power is not None and not abs(self.power) < math.inf:
            raise ValueError(f"power must be finite, got {self.power}.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class GainState:
    """What a gain carries from step to step.

    Attributes:
      progress: Σ r over the steps made, in steps of one task (of `base` tasks).
      memory: what `measure` remembers.

    Example:
      >>> from maml_jax.gains import GainState
      >>> GainState(progress=0.0, memory=()).progress
      0.0
    """

    progress: Any
    memory: Any


def linear(base: float = 1.0, *, schedule: Schedule | None = None) -> Gain:
    """Lengthens the step with the number of tasks: n / base.

    With SGD and the mean, this is the sum at a learning rate tuned for `base` tasks. Right as
    long as the curvature allows it: the learning rate times n / base times the largest
    eigenvalue of the Hessian has to stay below 2.

    Args:
      base: the meta-batch size for which the learning rate was tuned; above 0.
      schedule: from progress to a further factor.

    Returns:
      The gain.

    Raises:
      ValueError: if `base` is not above 0.

    References:
      Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017;
      https://arxiv.org/abs/1706.02677

    Example:
      >>> from maml_jax import gains
      >>> gains.linear(base=4).power
      1.0
    """
    return _of_count("linear", base, 1.0, schedule)


def square_root(base: float = 1.0, *, schedule: Schedule | None = None) -> Gain:
    """Lengthens the step with the root of the number of tasks: √(n / base).

    Args:
      base: the meta-batch size for which the learning rate was tuned; above 0.
      schedule: from progress to a further factor.

    Returns:
      The gain. Its progress is Σ n / base.

    Raises:
      ValueError: if `base` is not above 0.

    References:
      Malladi, Lyu, Panigrahi, Arora, "On the SDEs and Scaling Rules for Adaptive Gradient
      Algorithms", NeurIPS 2022, of whose rule for Adam this is the learning rate's part;
      https://arxiv.org/abs/2205.10287

    Example:
      >>> from maml_jax import gains
      >>> gains.square_root(base=4).power
      0.5
    """
    return _of_count("square_root", base, 0.5, schedule)


def adascale(
    *, power: float | None = None, decay: float | None = None, schedule: Schedule | None = None
) -> Gain:
    """Lengthens the step by what the meta-batch's gradients allow: rᵖ.

    r = (σ² + ‖μ‖²) / (σ²/n + ‖μ‖²), with ‖μ‖² and σ² estimated from the n gradients of the step
    and averaged over steps. n orthogonal gradients give n, as the sum would; identical ones,
    or tasks that all say the same, 1, as the mean. The learning rate is that of one task.

    Args:
      power: p; None takes 1 for SGD and its kin, 1/2 for Adam and its kin, which have the
        other half in them already.
      decay: of the running averages of both estimates, in [0, 1), corrected for their start;
        None takes max(0, 1 - n / 1000), as the authors do.
      schedule: from progress Σ r to a further factor. Stop when progress has reached the
        number of steps that one task each would have needed.

    Returns:
      The gain.

    Raises:
      ValueError: if `decay` is not in [0, 1), or `power` not finite.

    References:
      Johnson, Agrawal, Gu, Guestrin, "AdaScale SGD: A User-Friendly Algorithm for Distributed
      Training", ICML 2020, algorithm 1 and appendix B.3; https://arxiv.org/abs/2007.05105. The
      floor of σ² is 0 here, not 1e-6, so that multiplying the loss changes nothing. Power 1/2:
      Qiao et al., "Pollux", OSDI 2021, in its code.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax import gains
      >>> from maml_jax.spread import Spread
      >>> orthogonal = Spread(num_tasks=4, mean_square=jnp.array(1.0), square_mean=jnp.array(0.25))
      >>> rule = gains.adascale()
      >>> r, _ = rule.measure(orthogonal, rule.init())
      >>> print(r)
      4.0
    """
    if decay is not None and not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}.")

    def init():
        return {"variance": jnp.zeros(()), "signal": jnp.zeros(()), "seen": jnp.zeros(())}

    def measure(spread, memory):
        count = spread.num_tasks
        keep = jnp.maximum(1 - count / 1000, 0) if decay is None else decay
        now = {"variance": spread.variance, "signal": jnp.maximum(spread.signal, 0), "seen": 1.0}
        # One gradient says nothing of the variance: it moves neither average.
        informative = (count > 1) & (spread.mean_square > 0)
        keep = jnp.where(informative, keep, 1.0)
        memory = {name: keep * memory[name] + (1 - keep) * now[name] for name in now}
        total = memory["variance"] + memory["signal"]
        gain = total / (memory["variance"] / count + memory["signal"])
        return jnp.where(total > 0, gain, 1.0), memory

    return Gain(
        name="adascale",
        measure=measure,
        init=init,
        power=power,
        schedule=schedule,
        needs_spread=True,
    )


def start(gain: Gain) -> GainState:
    """Gives the state of a gain before the first step.

    Args:
      gain: the rule.

    Returns:
      The state, of progress 0.
    """
    return GainState(progress=jnp.zeros(()), memory=gain.init())


def apply(gain: Gain, spread: Spread, state: GainState) -> tuple[jax.Array, GainState]:
    """Measures the gain of one step.

    Args:
      gain: the rule, of power 1 if it has none.
      spread: of the meta-batch; with one that counts tasks, only their number.
      state: the gain's state.

    Returns:
      The factor of the update, rᵖ times the schedule at the progress before the step, and the
      next state.
    """
    measured, memory = gain.measure(spread, state.memory)
    factor = measured ** (1.0 if gain.power is None else gain.power)
    if gain.schedule is not None:
        factor = factor * gain.schedule(state.progress)
    progress = (state.progress + measured).astype(state.progress.dtype)
    return factor, GainState(progress=progress, memory=memory)


def for_optimizer(gain: Gain | None, optimizer: optax.GradientTransformation) -> Gain | None:
    """Settles the power of a gain for an optimizer.

    Args:
      gain: the rule, or None.
      optimizer: the optimizer whose updates the gain will multiply.

    Returns:
      The rule with its own power, else 1 for an optimizer of degree 1 in the gradient, 1/2 for one
      of degree 0.

    Raises:
      TypeError: if it is no gain.
      ValueError: if the optimizer is of neither degree and the gain has no power.
    """
    if gain is None:
        return None
    if not isinstance(gain, Gain):
        raise TypeError(
            "gain must be a value of maml_jax.gains such as gains.adascale(), got "
            f"{type(gain).__name__}."
        )
    if gain.power is not None:
        return gain
    degree = degree_of(optimizer)
    if degree is None:
        raise ValueError(
            f"{gain.name} needs power= for this optimizer: its updates are neither of degree 1 nor "
            "of degree 0 in the gradient; see maml_jax.reduction_report."
        )
    return dataclasses.replace(gain, power=1.0 if degree == 1 else 0.5)


def _of_count(name: str, base: float, power: float, schedule: Schedule | None) -> Gain:
    if not 0 < base < math.inf:
        raise ValueError(f"base must be above 0 and finite, got {base}.")

    def measure(spread, memory):
        return spread.num_tasks / base, memory

    label = name if base == 1.0 else f"{name}(base={base})"
    return Gain(name=label, measure=measure, power=power, schedule=schedule)
