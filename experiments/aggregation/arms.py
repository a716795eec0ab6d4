"""What is compared: an aggregation, an outer optimizer, a gain on its step.

The order of operations: per-task gradients → aggregation → L2 → optimizer without its
learning rate (clipping first, where an arm clips) → learning rate × schedule × gain.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

import maml_jax as mj


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Arm:
    """One way to make an outer step of the task gradients.

    Attributes:
      name: as in results and pictures.
      rule: the aggregation.
      optimizer: an optax transformation without a learning rate, as `optax.identity()` for
        SGD or `optax.scale_by_adam()`.
      l2: λ of a penalty ½ λ ‖θ‖² outside of the reduction.
      gain: r on the step, or None.
      power: p of the factor rᵖ.
      schedule_by: "progress" Σ r or "step": what the schedule of the learning rate counts.
        With a gain, the end of the run always counts progress.
      weights: `batch -> [B]`, for rules that use weights.
      noise: `batch -> [B]`, variances of the gradients as estimated, for rules that need them.
    """

    name: str
    rule: mj.aggregation.Aggregation
    optimizer: optax.GradientTransformation
    l2: float = 0.0
    gain: mj.gains.Gain | None = None
    power: float = 1.0
    schedule_by: str = "step"
    weights: Callable[[Any], jax.Array] | None = None
    noise: Callable[[Any], jax.Array] | None = None


def sgd():
    """SGD without its learning rate."""
    return optax.identity()


def momentum():
    """SGD with momentum 0.9 without its learning rate."""
    return optax.trace(0.9)


def adam(eps=1e-8):
    """Adam without its learning rate."""
    return optax.scale_by_adam(eps=eps)


def linear_arm(name, rule, optimizer):
    """An arm of a rule and an optimizer, and nothing else."""
    return Arm(name=name, rule=rule, optimizer=optimizer)


def adascale(name, optimizer, *, power=1.0, schedule_by="progress", decay=None):
    """AdaScale: the mean, a gain on the step, the end at a progress of Σ r = T₁.

    Args:
      name: of the arm.
      optimizer: without a learning rate.
      power: 1 for SGD, ½ for Adam.
      schedule_by: "progress", or "step" for the mistake of indexing the schedule by steps.
      decay: of the running averages; None is the authors' 1 - B/1000.
    """
    return Arm(
        name=name,
        rule=mj.aggregation.mean(),
        optimizer=optimizer,
        gain=mj.gains.adascale(decay=decay),
        power=power,
        schedule_by=schedule_by,
    )
