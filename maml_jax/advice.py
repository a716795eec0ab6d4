"""From figures about task gradients to sentences that a user acts on."""

import dataclasses
import math

_CLEAR = 0.02  # A correlation below this matters to nobody.
_MANY = 0.3
_NOISY = 0.5
_WILD = 8.0
_ENOUGH = 0.8
_LITTLE = 1.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What was looked at, and what needs no interval.

    Attributes:
      meta_batch_size: tasks of a meta-batch.
      num_batches: meta-batches that were drawn.
      num_tasks: tasks in all.
      num_broken: tasks whose loss or gradient was not finite.
      degree: of the outer optimizer in the gradient: 1, 0, or None for neither.
      norm_spread: largest norm of a task's gradient over the median norm.

    Example:
      >>> from maml_jax.advice import Facts
      >>> facts = Facts(meta_batch_size=4, num_batches=2, num_tasks=8, num_broken=0,
      ...     degree=1.0, norm_spread=1.5)
      >>> facts.num_tasks
      8
    """

    meta_batch_size: int
    num_batches: int
    num_tasks: int
    num_broken: int
    degree: float | None
    norm_spread: float


def advise(
    facts: Facts, estimates: dict[str, tuple[float, float]], worth: dict[int, float]
) -> tuple[str, ...]:
    """Says what follows for the reduction, the most important first.

    Args:
      facts: what was looked at.
      estimates: name to (value, half-width), as in `maml_jax.Diagnosis`.
      worth: meta-batch size to the steps of one task that a step is worth.

    Returns:
      Sentences.
    """
    sentences = (
        _on_broken_tasks(facts),
        _on_the_divisor(facts),
        _on_the_size(facts, estimates, worth),
        _on_correlation(facts, estimates),
        _on_conflicts(estimates),
        _on_wild_tasks(facts),
        _on_own_noise(estimates),
    )
    return tuple(sentence for sentence in sentences if sentence)


def _on_broken_tasks(facts: Facts) -> str:
    if not facts.num_broken:
        return ""
    return (
        f"{facts.num_broken} of {facts.num_tasks} tasks have no finite gradient: take "
        "on_nonfinite='skip', and look at their data or lower the inner learning rate."
    )


def _on_the_divisor(facts: Facts) -> str:
    size = facts.meta_batch_size
    if facts.degree == 0:
        return (
            "Mean or sum? It makes no difference to this optimizer, which divides the scale of "
            "the gradient out. Take the mean."
        )
    if facts.degree == 1:
        return (
            "Mean or sum? Take the mean. The sum is the same training with the learning rate "
            f"multiplied by {size}, and changes whenever the number of valid tasks does."
        )
    return (
        "Mean or sum? Take the mean. With this optimizer the sum is another method, not another "
        f"scale: mj.reduction_report(optimizer, {size}) tells what else to convert."
    )


def _on_the_size(facts: Facts, estimates, worth: dict[int, float]) -> str:
    size = facts.meta_batch_size
    gain = estimates["gain"][0]
    text = f"A step with {size} tasks is worth {gain:.1f} steps with one. "
    enough = min(n for n, r in worth.items() if r >= _ENOUGH * gain)
    if enough <= size / 2:
        return text + (
            f"{enough} tasks already give {worth[enough]:.1f}: spend the rest on more steps, or on "
            "tasks that differ more."
        )
    double = worth[2 * size]
    if double < _LITTLE * gain:
        return text + f"{2 * size} would be worth {double:.1f}: more tasks add little here."
    rates = {1.0: "the gain", 0.0: "the root of the gain", None: "the gain (choose its power)"}
    rate = rates[facts.degree]
    return text + (
        f"The tasks are far from redundant, {2 * size} would be worth {double:.1f}. If you change "
        f"the size, gains.adascale() moves the learning rate with {rate}."
    )


def _on_correlation(facts: Facts, estimates) -> str:
    value, half = estimates.get("correlation", (math.nan, math.nan))
    if not value - half > _CLEAR:
        return _on_groups(estimates)
    effective = estimates["effective_tasks"][0]
    return (
        f"Tasks of one meta-batch are correlated ({value:.2f} ± {half:.2f}): their noise averages "
        f"out as that of {effective:.1f} independent tasks, not {facts.meta_batch_size}. The sum "
        "does not help, it only makes the step longer. Draw more groups and fewer tasks of each, "
        "or take more steps instead of more tasks."
    )


def _on_groups(estimates) -> str:
    value, half = estimates.get("group_correlation", (math.nan, math.nan))
    if not value - half > _CLEAR:
        return ""
    return (
        f"Tasks of one group are correlated ({value:.2f} ± {half:.2f}), but a meta-batch holds "
        "enough groups for it not to matter."
    )


def _on_conflicts(estimates) -> str:
    conflicts, coherence = estimates["conflicts"][0], estimates["coherence"][0]
    if conflicts < _MANY:
        return ""
    if coherence > 0:
        return (
            f"{conflicts:.0%} of pairs of tasks pull in opposite directions, but on the whole they "
            "agree: that is noise, which averages out. aggregation.pcgrad() or upgrad() damp it; "
            "compare them, each at its own learning rate, with a tuned mean."
        )
    return (
        f"{conflicts:.0%} of pairs of tasks pull in opposite directions and nothing is left in "
        "common: these parameters are where the mean stops. Groups of tasks that want different "
        "parameters need their own, or more inner steps."
    )


def _on_wild_tasks(facts: Facts) -> str:
    if not facts.norm_spread > _WILD:
        return ""
    return (
        f"The largest gradient is {facts.norm_spread:.0f} times the median: a few tasks decide the "
        "step. If they are only hard, leave them; if they may be broken, take "
        "aggregation.norm_clipped(), or geometric_median() if that is not enough."
    )


def _on_own_noise(estimates) -> str:
    share = estimates.get("own_noise", (0.0, 0.0))[0]
    if not share > _NOISY:
        return ""
    return (
        f"{min(share, 1):.0%} of the variance between gradients comes from small query sets: more "
        "query examples per task are worth as much as more tasks. Where tasks differ in size, "
        "aggregation.inverse_variance() weighs them by it."
    )
