"""What inner products of task gradients say: signal, noise, correlation, conflicts.

The random-effects model: task i of a meta-batch has the gradient gᵢ = μ + b + eᵢ, where b is
shared by tasks that have something in common and eᵢ is not, of total variances τ_b and τ_e, and
ρ = τ_b / (τ_b + τ_e). From means of products over pairs of tasks,

    a  a task and itself                          ‖μ‖² + τ_b + τ_e
    w  two tasks of one group                     ‖μ‖² + τ_b
    o  any two tasks of one meta-batch            ‖μ‖² + τ_b times the share of such pairs
    x  tasks of two independent meta-batches      ‖μ‖²

all estimates are unbiased. Within ONE meta-batch without labels, noise that its tasks share
cannot be told from signal: ρ is refused there.

On the host, in NumPy and float64: the matrices are small.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """Means of inner products over kinds of pairs, NaN where there is no such pair.

    Attributes:
      square: a.
      within: o.
      group: w.
      across: x; of two groups of one meta-batch if there is but one meta-batch.

    Example:
      >>> import numpy as np
      >>> from maml_jax.gram_moments import Moments
      >>> Moments(square=3.0, within=2.0, group=np.nan, across=1.0).correlation
      0.5
    """

    square: float
    within: float
    group: float
    across: float

    @property
    def coherence(self) -> float:
        """κ = o / a."""
        return _ratio(self.within, self.square)

    @property
    def signal(self) -> float:
        """‖μ‖²; may come out negative where noise dominates."""
        return self.across

    @property
    def variance(self) -> float:
        """τ_b + τ_e, the variance of one task's gradient."""
        return self.square - self.across

    @property
    def correlation(self) -> float:
        """The mean correlation of two tasks of a meta-batch, (o - x) / (a - x)."""
        return _ratio(self.within - self.across, self.variance)

    @property
    def group_correlation(self) -> float:
        """The correlation of two tasks of one group, (w - x) / (a - x)."""
        return _ratio(self.group - self.across, self.variance)

    @property
    def noise_scale(self) -> float:
        """The variance of a gradient over the square of its mean, infinite without signal."""
        return _ratio(self.variance, max(self.signal, 0.0)) if self.variance > 0 else 0.0

    def effective_tasks(self, num_tasks: float) -> float:
        """The independent tasks that as many tasks are worth, n / (1 + (n - 1) ρ)."""
        return effective_tasks(num_tasks, self.correlation)

    def gain(self, num_tasks: float) -> float:
        """The steps of one task that one step of so many is worth: r = a / E ‖mean g‖²."""
        average = self.square / num_tasks + (1 - 1 / num_tasks) * max(self.within, 0.0)
        return _ratio(self.square, average) if self.square > 0 else 1.0


def moments(
    gram: np.ndarray,
    *,
    batches: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    valid: np.ndarray | None = None,
) -> Moments:
    """Averages inner products over kinds of pairs.

    Args:
      gram: ⟨gᵢ, gⱼ⟩ `[M, M]`.
      batches: integers `[M]`, the meta-batch of each task; independent of each other. None:
        all are of one.
      groups: integers `[M]`, which tasks of a meta-batch have something in common; or None.
      valid: booleans `[M]`, the tasks that count; all by default.

    Returns:
      The means.

    Example:
      >>> import numpy as np
      >>> from maml_jax.gram_moments import moments
      >>> moments(np.array([[2.0, 1.0], [1.0, 4.0]])).square
      3.0
    """
    gram = np.asarray(gram, np.float64)
    num_tasks = len(gram)
    counts = np.ones(num_tasks, bool) if valid is None else np.asarray(valid)
    pairs = counts[:, None] & counts[None, :]
    batches = np.zeros(num_tasks, int) if batches is None else np.asarray(batches)
    together = batches[:, None] == batches[None, :]
    apart = ~np.eye(num_tasks, dtype=bool)
    alike = np.zeros_like(together)
    if groups is not None:
        alike = together & (np.asarray(groups)[:, None] == np.asarray(groups)[None, :])
    across = ~together
    if not (across & pairs).any() and groups is not None:
        across = together & ~alike
    kinds = {
        "square": ~apart,
        "within": apart & together,
        "group": apart & alike,
        "across": across,
    }
    return Moments(**{name: _mean(gram, kind & pairs) for name, kind in kinds.items()})


def intraclass_correlation(
    gram: np.ndarray,
    *,
    batches: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> float:
    """Estimates ρ, the correlation of the gradients of related tasks.

    Args:
      gram: ⟨gᵢ, gⱼ⟩ `[M, M]`.
      batches: integers `[M]`, the meta-batch of each task.
      groups: integers `[M]`, which tasks of a meta-batch have something in common.

    Returns:
      (w - x) / (a - x) with groups, the one-way intraclass correlation; else the mean
      correlation of the tasks of a meta-batch.

    Raises:
      ValueError: if there is neither a second meta-batch nor a second group: shared noise is
        then the same as signal.

    References:
      Kish, "Survey Sampling", 1965, for the design effect 1 + (n - 1) ρ.

    Example:
      >>> import numpy as np
      >>> from maml_jax.gram_moments import intraclass_correlation
      >>> gram = np.array([[3.0, 2, 1, 1], [2, 3, 1, 1], [1, 1, 3, 2], [1, 1, 2, 3]])
      >>> intraclass_correlation(gram, groups=np.array([0, 0, 1, 1]))
      0.5
    """
    found = moments(gram, batches=batches, groups=groups)
    if np.isnan(found.across):
        raise ValueError(
            "the correlation of tasks needs two independent meta-batches at the same parameters, "
            "or two labelled groups: within one meta-batch, noise that tasks share looks like "
            "signal. Report the coherence instead."
        )
    return found.correlation if groups is None else found.group_correlation


def effective_tasks(num_tasks: float, correlation: float) -> float:
    """Divides a number of tasks by the design effect, n / (1 + (n - 1) ρ).

    Args:
      num_tasks: n.
      correlation: ρ; an estimate below 0 counts as 0, one above 1 as 1.

    Returns:
      The number of independent tasks that they are worth, in [1, n].

    References:
      Kish, "Survey Sampling", 1965.
    """
    return num_tasks / (1 + (num_tasks - 1) * np.clip(correlation, 0, 1))


def cosines(gram: np.ndarray) -> np.ndarray:
    """Normalises inner products to cosines, 0 for a gradient of 0.

    Args:
      gram: ⟨gᵢ, gⱼ⟩ `[M, M]`.

    Returns:
      Cosines `[M, M]` in [-1, 1].
    """
    norms = np.sqrt(np.diagonal(gram))
    scale = np.where(norms > 0, norms, 1)
    return np.clip(gram / np.outer(scale, scale), -1, 1)


def _mean(gram: np.ndarray, pairs: np.ndarray) -> float:
    return float(gram[pairs].mean()) if pairs.any() else float("nan")


def _ratio(above: float, below: float) -> float:
    if below == 0:
        return float("nan") if above == 0 else float("inf")
    return float(above / below)
