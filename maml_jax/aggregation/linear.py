"""Linear rules: mean, sum, and weights that the caller or the task sizes give.

`n` is the number of valid tasks. All divide once, by a number taken over the whole
meta-batch: never an average of averages.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Evidence, Level, State

_EMA_DECAY = 0.99


def mean() -> Aggregation:
    """Averages the task gradients: (1/n) Σᵢ gᵢ over the valid tasks.

    Returns:
      An aggregation of level STATIC.

    References:
      Finn et al., ICML 2017: algorithm 1 writes a sum, the authors' code divides by the
      meta-batch size.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[1.0], [3.0], [100.0]])
      >>> mask = jnp.array([True, True, False])
      >>> print(mj.aggregation.aggregate(mj.aggregation.mean(), grads, mask=mask))
      [2.]
    """
    return power(1.0, name="mean")


def sum() -> Aggregation:
    """Adds the task gradients: Σᵢ gᵢ over the valid tasks, n times the mean.

    Returns:
      An aggregation of level STATIC.

    References:
      Finn et al., ICML 2017, algorithm 1, as written.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> print(mj.aggregation.aggregate("sum", jnp.array([[1.0], [3.0]])))
      [4.]
    """
    return power(0.0, name="sum")


def power(exponent: float, *, name: str | None = None) -> Aggregation:
    """Divides the sum by a power of the number of valid tasks: Σᵢ gᵢ / nᵖ.

    Args:
      exponent: p; 1 gives the mean, 0 the sum, 1/2 the square-root rule. Finite.
      name: as in messages; "power(p)" by default.

    Returns:
      An aggregation of level STATIC.

    Raises:
      ValueError: if the exponent is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> print(mj.aggregation.aggregate(mj.aggregation.power(0.5), jnp.ones((4, 1))))
      [2.]
    """
    if not abs(exponent) < float("inf"):
        raise ValueError(f"exponent must be finite, got {exponent}.")

    def coefficients(evidence, state):
        count = evidence.num_valid.astype(float)
        ones = jnp.ones_like(evidence.valid, dtype=float)
        return evidence.over_valid(ones, jnp.maximum(count, 1) ** exponent), state

    return Aggregation(
        name=name or f"power({exponent})", level=Level.STATIC, coefficients=coefficients
    )


def weighted(normalize: Literal["weights", "count", "ema", "none"] = "weights") -> Aggregation:
    """Contracts the task gradients with the caller's weights: Σᵢ wᵢ gᵢ / Z.

    A task of weight 0 is an absent one, whatever the normalisation.

    Args:
      normalize: Z. "weights": Σᵢ wᵢ, so that only ratios of weights matter; "count": n,
        unbiased for importance weights of mean 1; "ema": n times a running mean of the
        weights (decay 0.99, corrected for its start), with little of the bias of
        "weights" and of the step-size noise of "count"; "none": 1, the plain contraction.

    Returns:
      An aggregation of level STATIC that needs `weights=` at every update.

    Raises:
      ValueError: if `normalize` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads, weights = jnp.array([[1.0], [3.0]]), jnp.array([3.0, 1.0])
      >>> print(mj.aggregation.aggregate("weighted", grads, weights=weights))
      [1.5]
    """
    known = ("weights", "count", "ema", "none")
    if normalize not in known:
        raise ValueError(f"normalize must be one of {list(known)}, got {normalize!r}.")

    def coefficients(evidence, state):
        return contraction(evidence.weights, evidence, state, normalize)

    return Aggregation(
        name="weighted" if normalize == "weights" else f"weighted({normalize!r})",
        level=Level.STATIC,
        coefficients=coefficients,
        init=average_weight_state if normalize == "ema" else tuple,
        uses_weights=True,
        needs_weights=True,
    )


def by_size(which: Literal["query", "support"] = "query", *, exponent: float = 1.0) -> Aggregation:
    """Weighs each task by a power of its number of examples: Σᵢ nᵢᵖ gᵢ / Σᵢ nᵢᵖ.

    With p = 1 and "query" this is the gradient of the mean over all query examples pooled.
    Where tasks differ more from each other than their gradients are noisy, which is usual
    in meta-learning, weighing by size raises the variance: prefer the mean then.

    Args:
      which: whose unmasked examples are counted, "query" or "support".
      exponent: p; 0 gives the mean. Finite.

    Returns:
      An aggregation of level STATIC.

    Raises:
      ValueError: if `which` is unknown or `exponent` is not finite.

    References:
      DerSimonian, Laird, "Meta-analysis in clinical trials", 1986, for why inverse sampling
      variance alone is wrong when tasks differ.

    Example:
      >>> import maml_jax as mj
      >>> mj.aggregation.by_size("query").name
      "by_size('query')"
    """
    if which not in ("query", "support"):
        raise ValueError(f"which must be 'query' or 'support', got {which!r}.")
    if not abs(exponent) < float("inf"):
        raise ValueError(f"exponent must be finite, got {exponent}.")

    def coefficients(evidence, state):
        sizes = evidence.num_query if which == "query" else evidence.num_support
        if sizes is None:
            raise ValueError(
                f"by_size({which!r}) needs the task sizes: pass num_{which}= to aggregate."
            )
        # The largest size scales out: n**p cannot overflow.
        largest = jnp.maximum(jnp.where(evidence.valid, sizes, 0).max(), 1)
        weights = jnp.where(evidence.valid, (sizes / largest) ** exponent, 0)
        return evidence.over_valid(weights, weights.sum()), state

    return Aggregation(name=f"by_size({which!r})", level=Level.STATIC, coefficients=coefficients)


def average_weight_state() -> State:
    """Gives the running mean of the weights before any step, for "ema"."""
    return {"mean_weight": jnp.zeros(()), "seen": jnp.zeros(())}


def contraction(
    weights: jax.Array, evidence: Evidence, state: State, normalize: str
) -> tuple[jax.Array, State]:
    """Divides weights by their sum, the number of valid tasks, a running mean, or nothing.

    Args:
      weights: `[T]`, at least 0.
      evidence: what is known of the tasks.
      state: of "ema", else passed through.
      normalize: "weights", "count", "ema" or "none"; static.

    Returns:
      Coefficients `[T]` and the next state.
    """
    count = evidence.num_valid.astype(float)
    total = jnp.where(evidence.valid, weights, 0).sum()
    if normalize == "ema":
        state = _updated_average(state, total, count)
        denominator = count * state["mean_weight"] / jnp.maximum(state["seen"], 1e-30)
    else:
        denominator = {"weights": total, "count": count, "none": jnp.ones(())}[normalize]
    return evidence.over_valid(weights, denominator), state


def _updated_average(state, total, count):
    """Moves the running mean of the weights on by one meta-batch with any valid task."""
    any_valid = count > 0
    batch_mean = total / jnp.maximum(count, 1)
    decay = jnp.where(any_valid, _EMA_DECAY, 1.0)
    return {
        "mean_weight": decay * state["mean_weight"] + (1 - decay) * batch_mean,
        "seen": decay * state["seen"] + (1 - decay),
    }
