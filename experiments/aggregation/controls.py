"""Controls for gradient surgery: is it the direction of a rule that helps, or its length?

A rule turns the mean gradient and also makes it longer or shorter, by how far tasks agree; over
training that is a schedule of the learning rate. One control keeps the direction of the mean and
takes the rule's length, the other the reverse.
"""

import dataclasses

import jax.numpy as jnp


def with_length_of(rule):
    """The mean's direction with the length that `rule` of level GRAM gives."""

    return _combined(rule, f"mean, length of {rule.name}", lambda found, mean: (mean, found))


def with_direction_of(rule):
    """The direction that `rule` of level GRAM gives with the mean's length."""

    return _combined(rule, f"{rule.name}, length of mean", lambda found, mean: (found, mean))


def _combined(rule, name, pick):
    """The rule that takes direction and length from what `pick` makes of rule and mean."""

    def coefficients(evidence, state):
        found, state = rule.coefficients(evidence, state)
        mean = evidence.over_valid(jnp.ones_like(found), evidence.num_valid)
        direction, length = pick(found, mean)
        now = _above_0(_length(direction, evidence.gram))
        return direction * _length(length, evidence.gram) / now, state

    return dataclasses.replace(rule, name=name, coefficients=coefficients)


def _length(coefficients, gram):
    """‖Σ cᵢ gᵢ‖ = √(cᵀ G c)."""
    coefficients = jnp.where(jnp.isfinite(coefficients), coefficients, 0)
    return jnp.sqrt(jnp.maximum(coefficients @ gram @ coefficients, 0))


def _above_0(length):
    return jnp.maximum(length, jnp.finfo(length.dtype).tiny)
