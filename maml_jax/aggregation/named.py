"""Rules by text, for configurations: "cagrad", or with a number, "tilted:1.0"."""

from collections.abc import Callable

from maml_jax import aggregation as rules
from maml_jax.aggregation.rule import Aggregation
from maml_jax.checks import nearest

# Rules that need more than a number, such as weights at each step or a pool of tasks, are for
# scripts.
_PLAIN: dict[str, Callable[[], Aggregation]] = {
    "mean": rules.mean,
    "sum": rules.sum,
    "by_complexity": rules.by_complexity,
    "inverse_variance": rules.inverse_variance,
    "random_weights": rules.random_weights,
    "norm_clipped": rules.norm_clipped,
    "normalized": rules.normalized,
    "geometric_median": rules.geometric_median,
    "mgda": rules.mgda,
    "upgrad": rules.upgrad,
    "dual_projection": rules.dual_projection,
    "pcgrad": rules.pcgrad,
    "cagrad": rules.cagrad,
    "imtl_g": rules.imtl_g,
    "nash_mtl": rules.nash_mtl,
    "aligned_mtl": rules.aligned_mtl,
    "config": rules.config,
    "median": rules.median,
    "graddrop": rules.graddrop,
}
# The kind of the number, and one to show.
_NUMBERED: dict[str, tuple[Callable[..., Aggregation], type, float]] = {
    "power": (rules.power, float, 0.5),
    "tilted": (rules.tilted, float, 1.0),
    "cvar": (rules.cvar, float, 0.3),
    "norm_clipped": (rules.norm_clipped, float, 1.0),
    "cagrad": (rules.cagrad, float, 0.4),
    "krum": (rules.krum, int, 1),
    "trimmed_mean": (rules.trimmed_mean, int, 1),
}


def from_text(text: str) -> Aggregation:
    """Makes the rule of a text.

    Args:
      text: a name, or a name and a number, "name:number".

    Returns:
      The rule.

    Raises:
      ValueError: if the name is unknown, or the number missing, not wanted, or refused.

    Example:
      >>> from maml_jax.aggregation.named import from_text
      >>> from_text("tilted:0.5").name
      'tilted(0.5)'
    """
    name, colon, number = text.partition(":")
    if name not in _PLAIN and name not in _NUMBERED:
        known = [*_PLAIN, *(f"{other}:{show}" for other, (_, _, show) in _NUMBERED.items())]
        close = nearest(name, [*_PLAIN, *_NUMBERED])
        raise ValueError(f"aggregation must be one of {known}, got {text!r}{close}")
    if not colon:
        if name in _PLAIN:
            return _PLAIN[name]()
        example = f"{name}:{_NUMBERED[name][2]}"
        raise ValueError(f"aggregation {name!r} needs a number, such as {example}.")
    if name not in _NUMBERED:
        raise ValueError(f"aggregation {name!r} takes no number, got {text!r}.")
    make, kind, _ = _NUMBERED[name]
    try:
        value = kind(number)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"aggregation {name!r} takes {wanted}, got {number!r}.") from None
    return make(value)
