"""Every way to reduce the task gradients of a meta-batch to one."""

from maml_jax.aggregation.complexity import by_complexity
from maml_jax.aggregation.coordinatewise import graddrop, median, trimmed_mean
from maml_jax.aggregation.gram_based import geometric_median
from maml_jax.aggregation.importance import importance
from maml_jax.aggregation.inverse_variance import inverse_variance
from maml_jax.aggregation.linear import by_size, mean, power, sum, weighted
from maml_jax.aggregation.loss_based import cvar, tilted
from maml_jax.aggregation.norm_based import norm_clipped, normalized
from maml_jax.aggregation.random_weights import random_weights
from maml_jax.aggregation.resolve import aggregate, resolve
from maml_jax.aggregation.rule import Aggregation, Evidence, Level
from maml_jax.aggregation.worst_case import worst_case

__all__ = [
    "Aggregation",
    "Evidence",
    "Level",
    "aggregate",
    "by_complexity",
    "by_size",
    "cvar",
    "geometric_median",
    "graddrop",
    "importance",
    "inverse_variance",
    "mean",
    "median",
    "norm_clipped",
    "normalized",
    "power",
    "random_weights",
    "resolve",
    "sum",
    "tilted",
    "trimmed_mean",
    "weighted",
    "worst_case",
]
