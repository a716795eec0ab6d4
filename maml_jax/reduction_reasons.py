"""Says in words what was found out about an optimizer, and what to set differently for a sum."""

from maml_jax.optimizer_causes import Findings
from maml_jax.optimizer_degree import first_steps, leaf_degrees
from maml_jax.optimizer_probe import Probe


def reasons_for(
    found: Findings, probe: Probe, factor: float, *, accumulated: str | None
) -> tuple[str, ...]:
    """Says what breaks the degree, and where.

    Args:
      found: what the experiments found.
      probe: names the leaves.
      factor: B.
      accumulated: "mean", "sum" or None, for an optimizer whose updates come every few steps.

    Returns:
      Sentences.
    """
    reasons = _bounds(found, factor) + _own_terms(found) + _changes(found, probe, factor)
    if not _is_explained(found):
        reasons += ["Its degree is not the same for gradients of every size; no cause was found."]
    if found.period > 1:
        rule = f"the {accumulated}" if accumulated else "the mean or the sum"
        reasons.append(
            f"It accumulates: an update comes every {found.period} steps, of {rule} of their "
            "gradients."
        )
    return tuple(reasons)


def settings_for(found: Findings, probe: Probe, factor: float) -> dict[str, float]:
    """Says which settings to change, where that makes the sum do what the mean does.

    Args:
      found: what the experiments found.
      probe: names the leaves.
      factor: B.

    Returns:
      From a setting's name to the factor between its value under the sum and under the mean.
    """
    degrees, settings = leaf_degrees(found.at[1.0]), {}
    if not _is_explained(found):
        return settings
    if {0, 1} <= set(degrees):
        settings[f"learning_rate of {', '.join(_leaves(degrees, probe, 1))}"] = 1 / factor
    elif early := first_steps(found.at[1.0]):
        count, degree = early
        first = "the first step" if count == 1 else f"the first {count} steps"
        settings[f"learning_rate {'in' if degree else 'after'} {first}"] = 1 / factor
    elif found.fraction:
        settings["update"] = factor**-found.fraction
    elif found.base == 1:
        settings["learning_rate"] = 1 / factor
    if found.clip:
        settings["clip"] = factor
    if found.decays and (found.base == 1 or found.coupled):
        settings["weight_decay"] = factor
    if found.noise and found.base == 1:
        settings["noise"] = factor
    if found.floor and found.floor_matters and not found.noise:
        name, power = ("eps_under_root", 2) if found.floor.under_root else ("eps", 1)
        settings[name] = factor**power
    if found.value_matters:
        settings["value"] = factor
    return settings


def _is_explained(found: Findings) -> bool:
    """Whether what was found is what breaks the degree, so that undoing it is enough."""
    causes = (
        found.clip,
        found.decays and (found.base == 1 or found.coupled),
        found.noise,
        found.floor and found.floor_matters,
        found.fraction,
        found.value_matters,
        found.zero_matters,
        first_steps(found.at[1.0]),
        {0, 1} <= set(leaf_degrees(found.at[1.0])),
    )
    return found.is_homogeneous or any(causes)


def _bounds(found: Findings, factor: float) -> list[str]:
    """Says where large and small gradients are treated otherwise."""
    reasons = []
    if found.clip:
        reasons.append(
            f"A clip of {found.clip.what} binds above {found.clip.threshold:.3g}; under the sum, "
            f"where the mean is above {found.clip.threshold / factor:.3g}."
        )
    if found.floor:
        name = "ε or an initial accumulator, under a root," if found.floor.under_root else "ε"
        reasons.append(
            f"{name} takes over where the entries of the gradient are below about "
            f"{found.floor.entry:.1g}; under the sum, where the mean's are below "
            f"{found.floor.entry / factor:.1g}."
        )
    return reasons


def _own_terms(found: Findings) -> list[str]:
    """Says what moves the parameters besides the gradient."""
    reasons = []
    if found.decays and found.base == 1:
        reasons.append(
            "It adds a term of the parameters alone (L2, weight decay): against the sum it weighs "
            "less, and falls with the learning rate."
        )
    elif found.coupled:
        reasons.append(
            "It adds a term of the parameters alone to the gradient (coupled L2): against the sum "
            "it weighs less."
        )
    elif found.decays:
        reasons.append(
            "Its weight decay is decoupled, added after the gradient is normalised: the divisor "
            "does not touch it."
        )
    if found.noise:
        reasons.append(
            "Something else than gradient and parameters moves it (noise, or a state that does "
            "not start at zero): against the sum it weighs less."
        )
    return reasons


def _changes(found: Findings, probe: Probe, factor: float) -> list[str]:
    """Says what the degree depends on: time, the loss value, the leaf, parameters of zero."""
    reasons = []
    if found.fraction:
        reasons.append(f"It is of degree {found.fraction:.2f}, for gradients of every size.")
    if found.blurred:
        reasons.append("For small gradients its updates drown in the rounding of the parameters.")
    early = first_steps(found.at[1.0])
    if early:
        count, degree = early
        steps = f"The first {count} steps are" if count > 1 else "The first step is"
        reasons.append(
            f"{steps} of degree {degree}, later ones of degree {1 - degree}"
            + (f": under the sum those are {factor:g} times as long." if degree else ".")
        )
    if found.value_matters:
        reasons.append("It uses the loss value: multiply that by the number of tasks too.")
    elif found.value is not None:
        reasons.append("It uses the loss value.")
    degrees = leaf_degrees(found.at[1.0])
    if {0, 1} <= set(degrees):
        reasons.append(f"Its leaves differ; of degree 1: {', '.join(_leaves(degrees, probe, 1))}.")
    if found.zero_matters:
        reasons.append(
            f"Where parameters are zero, as new biases are, it is of degree {1 - found.base}."
        )
    return reasons


def _leaves(degrees, probe: Probe, degree: int) -> list[str]:
    return [name for name, d in zip(probe.names, degrees, strict=True) if d == degree]
