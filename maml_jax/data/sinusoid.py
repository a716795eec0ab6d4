"""Sinusoid regression: the smallest task distribution of the MAML paper.

In shapes, `N` is `shot` in a support set and `query_shot` in a query set.
"""

import dataclasses

import jax
import jax.numpy as jnp

from maml_jax.data._checks import check_count
from maml_jax.tasks import Examples, Task, TaskSampler


def sinusoid(*, shot: int = 10, query_shot: int = 10) -> TaskSampler:
    """Makes a sampler of tasks y = A sin(x - φ).

    A ~ U[0.1, 5], φ ~ U[0, π] (radians) and x ~ U[-5, 5], independently; A and φ are
    drawn once per task. Support and query share them and nothing else.

    Args:
      shot: support examples per task; static, at least 1.
      query_shot: query examples per task; static, at least 1.

    Returns:
      A pure function `key -> Task` for one task. Inputs and targets are `[N, 1]` in
      JAX's default floating type. The key is consumed. Two samplers with the same
      settings are equal, so a function compiled for one serves the other.

    Raises:
      ValueError: if `shot` or `query_shot` is no integer of at least 1.

    Example:
      >>> import jax
      >>> from maml_jax.data import sinusoid
      >>> task = sinusoid(shot=5, query_shot=20)(jax.random.key(0))
      >>> task.support.inputs.shape, task.query.targets.shape
      ((5, 1), (20, 1))

    References:
      C. Finn, P. Abbeel, S. Levine, "Model-Agnostic Meta-Learning for Fast Adaptation
      of Deep Networks", ICML 2017, section 5.1. https://arxiv.org/abs/1703.03400
    """
    check_count("shot", shot)
    check_count("query_shot", query_shot)
    return _Sinusoid(shot=int(shot), query_shot=int(query_shot))


def sinusoid_parameters(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the amplitude A and phase φ of the task that `sinusoid` draws from `key`.

    For plots of the true curve beside an adapted one.

    Args:
      key: the random key that the sampler is given; consumed here too, so pass one of
        them `jax.random.clone(key)` where JAX's check of reused keys is on.

    Returns:
      A in [0.1, 5] and φ in [0, π] radians, both scalars.

    Example:
      >>> import jax
      >>> from maml_jax.data.sinusoid import sinusoid_parameters
      >>> amplitude, phase = sinusoid_parameters(jax.random.key(0))
      >>> bool(0.1 <= amplitude <= 5.0), bool(0.0 <= phase <= 3.1416)
      (True, True)
    """
    return _curve(jax.random.split(key)[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sinusoid:
    """The sampler itself: hashable by value, so that equal settings compile once."""

    shot: int
    query_shot: int

    def __call__(self, key: jax.Array) -> Task:
        """Draws one task; the key is consumed."""
        curve_key, inputs_key = jax.random.split(key)
        amplitude, phase = _curve(curve_key)
        count = self.shot + self.query_shot
        inputs = jax.random.uniform(inputs_key, (count, 1), minval=-5.0, maxval=5.0)
        targets = amplitude * jnp.sin(inputs - phase)
        return Task(
            support=Examples(inputs=inputs[: self.shot], targets=targets[: self.shot]),
            query=Examples(inputs=inputs[self.shot :], targets=targets[self.shot :]),
        )


def _curve(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    amplitude_key, phase_key = jax.random.split(key)
    amplitude = jax.random.uniform(amplitude_key, minval=0.1, maxval=5.0)
    return amplitude, jax.random.uniform(phase_key, minval=0.0, maxval=jnp.pi)
