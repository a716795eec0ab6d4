"""Every way to reduce the task gradients of a meta-batch to one.

Rules by what they must know, which decides what a step costs (`maml_jax.aggregation.rule`). All
are on the scale of the mean: identical gradients g give g, whatever the authors' own scale is;
`rule.on_sum_scale()` gives n g. (Exceptions: "sum" and `power` say so by name, weights that are
not normalised by theirs, `normalized` gives a direction.)

    STATIC   mean, sum, power          (1/n) Σ gᵢ, Σ gᵢ, Σ gᵢ / nᵖ
             weighted                  Σ wᵢ gᵢ over Σ w, n, a running mean of w, or 1
             by_size                   weights from the numbers of examples
             importance                weights from prior knowledge: density ratios of tasks
             by_complexity             weights from any function of a task
             random_weights            weights at random, to compare with
    LOSS     by_complexity             the same from the loss before adaptation
             tilted                    TERM: exponential weights of the losses
             cvar                      the worst share of tasks
             worst_case                TR-MAML: the worst of a pool of tasks
    NORMS    norm_clipped, normalized  largest norm for each task; directions only
    GRAM     inverse_variance          weights from reliability, with random effects
             geometric_median, krum    robust to broken tasks
             mgda, cagrad              no task left behind: least norm, largest least gain
             upgrad, dual_projection   projected so that no task is worked against
             pcgrad, gradvac           conflicts projected away pair by pair
             imtl_g, config            the same projection, the same cosine, for all tasks
             nash_mtl, aligned_mtl     a fair bargain; a well-conditioned system
    FULL     median, trimmed_mean      coordinate by coordinate, robust
             graddrop                  one sign for each coordinate
"""

from maml_jax.aggregation.balanced import aligned_mtl, config, imtl_g, nash_mtl
from maml_jax.aggregation.complexity import by_complexity
from maml_jax.aggregation.conflict_averse import cagrad
from maml_jax.aggregation.coordinatewise import graddrop, median, trimmed_mean
from maml_jax.aggregation.dual_cone import dual_projection, upgrad
from maml_jax.aggregation.geometric_median import geometric_median
from maml_jax.aggregation.importance import importance
from maml_jax.aggregation.inverse_variance import inverse_variance
from maml_jax.aggregation.linear import by_size, mean, power, sum, weighted
from maml_jax.aggregation.loss_based import cvar, tilted
from maml_jax.aggregation.minimum_norm import mgda
from maml_jax.aggregation.norm_based import norm_clipped, normalized
from maml_jax.aggregation.random_weights import random_weights
from maml_jax.aggregation.resolve import aggregate, resolve
from maml_jax.aggregation.rule import Aggregation, Evidence, Level
from maml_jax.aggregation.selection import krum
from maml_jax.aggregation.surgery import gradvac, pcgrad
from maml_jax.aggregation.worst_case import worst_case

__all__ = [
    "Aggregation",
    "Evidence",
    "Level",
    "aggregate",
    "aligned_mtl",
    "by_complexity",
    "by_size",
    "cagrad",
    "config",
    "cvar",
    "dual_projection",
    "geometric_median",
    "graddrop",
    "gradvac",
    "importance",
    "imtl_g",
    "inverse_variance",
    "krum",
    "mean",
    "median",
    "mgda",
    "nash_mtl",
    "norm_clipped",
    "normalized",
    "pcgrad",
    "power",
    "random_weights",
    "resolve",
    "sum",
    "tilted",
    "trimmed_mean",
    "upgrad",
    "weighted",
    "worst_case",
]
