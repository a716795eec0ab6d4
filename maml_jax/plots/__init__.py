"""Figures of meta-learning runs: from NumPy arrays to PNG files under 200 KB.

Every function draws on its own `matplotlib.figure.Figure` (no pyplot, no global state),
writes one PNG file (folders are made) and returns its path; matplotlib is imported on first
use. The metric "accuracy", in [0, 1], is shown in percent; any other is a positive loss on a
log axis. Half-widths are those of 95% intervals. Values that are not finite leave a gap.
Every function raises `ValueError` where lengths differ or, before it draws, where `path` does
not end in ".png".
"""

from maml_jax.plots.curves import inner_steps, learning_curve, regression_adaptation
from maml_jax.plots.diagnosis import diagnosis
from maml_jax.plots.images import image_adaptation

__all__ = [
    "diagnosis",
    "image_adaptation",
    "inner_steps",
    "learning_curve",
    "regression_adaptation",
]
