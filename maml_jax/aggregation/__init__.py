"""Every way to reduce the task gradients of a meta-batch to one."""

from maml_jax.aggregation.coordinatewise import trimmed_mean
from maml_jax.aggregation.gram_based import geometric_median
from maml_jax.aggregation.linear import by_size, mean, power, sum, weighted
from maml_jax.aggregation.loss_based import tilted
from maml_jax.aggregation.norm_based import norm_clipped
from maml_jax.aggregation.resolve import aggregate, resolve
from maml_jax.aggregation.rule import Aggregation, Evidence, Level

__all__ = [
    "Aggregation",
    "Evidence",
    "Level",
    "aggregate",
    "by_size",
    "geometric_median",
    "mean",
    "norm_clipped",
    "power",
    "resolve",
    "sum",
    "tilted",
    "trimmed_mean",
    "weighted",
]
