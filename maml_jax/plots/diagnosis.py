"""The figure of a diagnosis: who agrees with whom, what a meta-batch is worth, the divisor."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maml_jax.plots._style import (
    BLUE,
    DASHED,
    GREY,
    INK,
    VERMILLION,
    PathLike,
    check_lengths,
    new_figure,
    png_path,
    save,
    style_axes,
)


def diagnosis(
    path: PathLike,
    *,
    cosines: Any,
    worth: Mapping[int, float],
    meta_batch_size: int,
    steps: Sequence[int] = (),
    divisors: Sequence[float] = (),
    half_widths: Sequence[float] = (),
) -> pathlib.Path:
    """Draws how task gradients relate.

    On the left the cosines between the gradients of the tasks of two meta-batches; in the
    middle how many steps of one task a step with n tasks is worth, between the mean's 1 and
    the sum's n; on the right the divisor of the sum that this means, over training, if it was
    measured there.

    Args:
      path: the PNG file to write.
      cosines: `[M, M]`, in [-1, 1].
      worth: meta-batch size to gain.
      meta_batch_size: that of the run.
      steps: outer steps at which the divisor was measured.
      divisors: at these steps.
      half_widths: of the divisors' 95% intervals; may be NaN.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from maml_jax.plots import diagnosis
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     diagnosis(f"{folder}/diagnosis.png", cosines=np.eye(4), worth={1: 1.0, 2: 1.5},
      ...         meta_batch_size=2, steps=[0, 10], divisors=[2.0, 1.3], half_widths=[0.1, 0.1]
      ...     ).name
      'diagnosis.png'
    """
    file = png_path(path)
    check_lengths({"steps": steps, "divisors": divisors, "half_widths": half_widths})
    figure = new_figure(12.2 if len(steps) > 1 else 8.4, 3.9, layout="constrained")
    axes = figure.subplots(1, 3 if len(steps) > 1 else 2)
    _heat_map(figure, axes[0], np.asarray(cosines))
    _worth(axes[1], worth, meta_batch_size)
    if len(steps) > 1:
        _divisor(axes[2], steps, divisors, half_widths, meta_batch_size)
    return save(figure, file)


def _heat_map(figure, axes, cosines):
    apart = ~np.eye(len(cosines), dtype=bool)
    limit = max(float(np.quantile(np.abs(cosines[apart]), 0.99)) if apart.any() else 1.0, 0.05)
    image = axes.imshow(cosines, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    style_axes(axes, "Which tasks pull together?", "task", "task")
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, extend="both")
    bar.ax.tick_params(labelsize=8, color=GREY, labelcolor=INK)
    bar.set_label("cosine: red against, blue together", fontsize=8, color=INK)


def _worth(axes, worth, meta_batch_size):
    sizes = np.array(sorted(worth))
    gains = np.array([worth[int(n)] for n in sizes])
    style_axes(
        axes,
        "What is a meta-batch worth?",
        "tasks in the meta-batch",
        "steps of one task it is worth",
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.plot(sizes, sizes, color=GREY, **DASHED)
    axes.plot(sizes, np.ones_like(sizes), color=GREY, **DASHED)
    axes.plot(sizes, gains, color=BLUE, linewidth=2, marker="o", markersize=3.5)
    here = worth[meta_batch_size]
    axes.plot([meta_batch_size], [here], "o", color=VERMILLION, markersize=8, zorder=4)
    axes.annotate(
        f"{meta_batch_size} tasks: {here:.1f}",
        (meta_batch_size, here),
        xytext=(-6, 8),
        textcoords="offset points",
        fontsize=9,
        color=VERMILLION,
        ha="right",
    )
    text = {"fontsize": 8.5, "color": GREY}
    axes.annotate(
        "independent noise (sum)", (sizes[-1], sizes[-1]), ha="right", va="bottom", **text
    )
    axes.annotate("all say the same (mean)", (sizes[-1], 1), ha="right", va="bottom", **text)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")


def _divisor(axes, steps, divisors, half_widths, meta_batch_size):
    style_axes(axes, "The divisor that the gradients ask for", "outer step", "divisor of the sum")
    steps, divisors = np.asarray(steps), np.asarray(divisors, float)
    half = np.nan_to_num(np.asarray(half_widths, float))
    axes.set_yscale("log", base=2)
    top = 1.15 * max(meta_batch_size, float(np.nanmax(divisors + half)))
    low = max(np.nanmin(divisors - half), 0.5 * np.nanmin(divisors), 0.25)
    axes.set_ylim(0.8 * min(low, 1), top)
    axes.fill_between(
        steps, np.maximum(divisors - half, low), divisors + half, color=BLUE, alpha=0.2, linewidth=0
    )
    axes.plot(steps, divisors, color=BLUE, linewidth=2, marker="o", markersize=4)
    mean = f"mean of {meta_batch_size}"
    for level, label, above in ((1, "sum", False), (meta_batch_size, mean, True)):
        axes.axhline(level, color=GREY, **DASHED)
        place = {"ha": "right", "va": "bottom" if above else "top"}  # The line is between them.
        axes.annotate(label, (steps[-1], level), fontsize=8.5, color=GREY, **place)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
