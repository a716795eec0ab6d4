"""Figures of values over steps, and of one-dimensional tasks.

The package's docstring says what all figures share: metrics, half-widths, gaps and errors.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from maml_jax.plots._style import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    INK,
    SKY,
    VERMILLION,
    PathLike,
    Tasks,
    check_lengths,
    check_num_tasks,
    label_right,
    metric_text,
    new_figure,
    png_path,
    save,
    scale_metric,
    style_axes,
)


def learning_curve(
    path: PathLike,
    *,
    train_steps: ArrayLike,
    train_values: ArrayLike,
    validation_steps: ArrayLike,
    validation_means: ArrayLike,
    validation_half_widths: ArrayLike,
    metric: str,
    baselines: Mapping[str, float] = {},
    test: tuple[float, float] | None = None,
    title: str,
) -> pathlib.Path:
    """Draws meta-training, meta-validation and meta-test over outer steps.

    Args:
      path: the PNG file to write.
      train_steps: `[N]`, outer steps, increasing.
      train_values: `[N]`, the metric on training tasks; a rolling median is drawn over it.
      validation_steps: `[V]`, outer steps, increasing; may be empty.
      validation_means: `[V]`, means of the metric over validation tasks.
      validation_half_widths: `[V]`, their half-widths.
      metric: "accuracy" or the name of a loss.
      baselines: name to value; dashed lines.
      test: mean and half-width over meta-test tasks, drawn after the last step.
      title: what the reader should see.

    Example:
      >>> import tempfile
      >>> from maml_jax.plots import learning_curve
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     learning_curve(f"{folder}/curve.png", train_steps=[1, 2, 3],
      ...         train_values=[0.2, 0.5, 0.6], validation_steps=[1, 3],
      ...         validation_means=[0.2, 0.55], validation_half_widths=[0.02, 0.03],
      ...         metric="accuracy", baselines={"chance": 0.2}, title="It learns").name
      'curve.png'
    """
    file = png_path(path)
    train = _columns(train_steps=train_steps, train_values=train_values)
    validation = _columns(
        validation_steps=validation_steps,
        validation_means=validation_means,
        validation_half_widths=validation_half_widths,
    )
    return save(_draw_learning_curve(train, validation, metric, baselines, test, title), file)


def inner_steps(
    path: PathLike,
    *,
    steps: ArrayLike,
    means: ArrayLike,
    half_widths: ArrayLike,
    metric: str,
    trained_steps: int,
    title: str,
) -> pathlib.Path:
    """Draws a metric on query examples after 0, 1, 2, ... inner steps.

    Args:
      path: the PNG file to write.
      steps: `[K]`, numbers of inner steps, increasing.
      means: `[K]`, means of the metric over tasks.
      half_widths: `[K]`, their half-widths.
      metric: "accuracy" or the name of a loss.
      trained_steps: the number of inner steps in meta-training; marked.
      title: what the reader should see.

    Example:
      >>> import tempfile
      >>> from maml_jax.plots import inner_steps
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     inner_steps(f"{folder}/steps.png", steps=[0, 1, 2], means=[4.0, 0.5, 0.3],
      ...         half_widths=[0.4, 0.1, 0.1], metric="mean squared error",
      ...         trained_steps=1, title="One step does most").name
      'steps.png'
    """
    file = png_path(path)
    columns = _columns(steps=steps, means=means, half_widths=half_widths)
    return save(_draw_inner_steps(columns, metric, trained_steps, title), file)


def regression_adaptation(path: PathLike, *, tasks: Tasks) -> pathlib.Path:
    """Draws one-dimensional regression tasks before and after adaptation.

    Args:
      path: the PNG file to write.
      tasks: 1 to 6 mappings with `support_inputs [N]`, `support_targets [N]`,
        `curve_inputs [M]` (increasing), `truth [M]`, `before [M]`, the prediction at θ, and
        `after`, a mapping from inner steps to predictions `[M]`.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from maml_jax.plots import regression_adaptation
      >>> x = np.linspace(-5.0, 5.0, 50)
      >>> task = dict(support_inputs=x[::9], support_targets=np.sin(x[::9]), curve_inputs=x,
      ...     truth=np.sin(x), before=0 * x, after={1: 0.9 * np.sin(x)})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     regression_adaptation(f"{folder}/sine.png", tasks=[task]).name
      'sine.png'
    """
    file = png_path(path)
    check_num_tasks(tasks, 6)
    return save(_draw_regression(tasks), file)


def _draw_learning_curve(train, validation, metric, baselines, test, title):
    figure = new_figure(8.0, 4.1)
    axes = style_axes(figure.add_axes((0.1, 0.13, 0.6, 0.76)), title, "outer step", metric)
    labels = [
        (value, f"{name} {metric_text(metric, value)}", GREY) for name, value in baselines.items()
    ]
    for value in baselines.values():
        axes.axhline(value, color=GREY, **DASHED)
    axes.plot(*train, color=SKY, linewidth=0.7, alpha=0.5)
    smooth = _rolling_median(*train)
    axes.plot(*smooth, color=BLUE, linewidth=1.8)
    labels += [(y, "meta-training", BLUE) for y in smooth[1][-1:]]
    _plot_band(axes, *validation, color=GREEN)
    for i in np.flatnonzero(np.isfinite(validation[1]))[-1:]:
        text = metric_text(metric, validation[1][i], validation[2][i])
        labels.append((validation[1][i], f"meta-validation {text}", GREEN))
    if test is not None:
        last = np.max(np.concatenate([train[0], validation[0], [0.0]]))
        axes.errorbar(1.03 * last, *test, color=VERMILLION, fmt="D", markersize=5, capsize=4)
        labels.append((test[0], f"meta-test {metric_text(metric, *test)}", VERMILLION))
    scale_metric(axes, metric)
    label_right(axes, labels)
    note = "dark blue: rolling median\nband, bar: 95% intervals"
    axes.text(1.035, -0.04, note, transform=axes.transAxes, fontsize=7.5, color=GREY, va="top")
    return figure


def _draw_inner_steps(columns, metric, trained_steps, title):
    figure = new_figure(5.8, 3.8)
    axes = style_axes(figure.add_axes((0.13, 0.14, 0.83, 0.75)), title, "inner steps", metric)
    steps, means, half_widths = columns
    _plot_band(axes, *columns, color=BLUE)
    axes.axvline(trained_steps, color=VERMILLION, **DASHED)
    axes.margins(0.07, 0.16)
    scale_metric(axes, metric)
    axes.locator_params("x", integer=True)
    side = "right" if trained_steps > np.mean(axes.get_xlim()) else "left"
    rises = metric == "accuracy"  # texts go to the side that the curve leaves empty
    style = {"textcoords": "offset points", "fontsize": 8.5, "va": "center"}
    at, offset = (trained_steps, 0.03 if rises else 0.97), (-5 if side == "right" else 5, 0)
    note = f"meta-trained with {trained_steps} step" + "s" * (trained_steps != 1)
    across = axes.get_xaxis_transform()
    axes.annotate(note, at, offset, xycoords=across, color=VERMILLION, ha=side, **style)
    finite = np.flatnonzero(np.isfinite(means))
    for i in {*finite[:1], *finite[-1:], *finite[steps[finite] == trained_steps]}:
        half_width = np.nan_to_num(half_widths[i])
        at = steps[i], means[i] + (-half_width if rises else half_width)
        last = i == finite[-1]
        text, offset = metric_text(metric, means[i]), (6 * (not last), -10 if rises else 10)
        axes.annotate(text, at, offset, color=INK, ha="center" if last else "left", **style)
    return figure


def _draw_regression(tasks):
    columns = 2 if len(tasks) == 4 else min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = new_figure(max(2.7 * columns, 5.0), 2.3 * rows + 0.6, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    spans, handles = [], {}
    for task, axes in zip(tasks, panels.flat, strict=False):
        names = "curve_inputs", "truth", "before"
        x, truth, before = _columns(**{name: task[name] for name in names})
        support = _columns(**{name: task[name] for name in ("support_inputs", "support_targets")})
        after = sorted(task["after"].items())
        lines = [y for n, y in after for y in _columns(truth=truth, **{f"after {n} steps": y})[1:]]
        axes.plot(x, truth, color="#b8b8b8", linewidth=4.5, label="truth")
        axes.plot(x, before, color=INK, linewidth=1.4, linestyle=":", label="before adaptation")
        for i, (line, (n, _)) in enumerate(zip(lines, after, strict=True), 1):
            style = {"alpha": i / len(lines), "linestyle": "-" if i == len(lines) else "--"}
            label = f"after {n} inner step" + "s" * (n != 1)
            axes.plot(x, line, color=BLUE, linewidth=1.6, label=label, **style)
        axes.plot(*support, "o", color=VERMILLION, markersize=4.5, label="support")
        errors = [float(np.mean((y - truth) ** 2)) for y in [before, *lines][:: len(lines) or 1]]
        style_axes(axes, "MSE " + " → ".join(f"{error:.2g}" for error in errors), "", "")
        spans.append([truth, support[1], before, *lines])
        handles.update({line.get_label(): line for line in axes.lines})
    for axes in panels.flat[len(tasks) :]:
        axes.set_visible(False)
    known = np.concatenate([[0.0], *(values for span in spans for values in span[:2])])
    drawn = np.concatenate([known, *(values for span in spans for values in span[2:])])
    low, high = np.nanmin(known), np.nanmax(known)
    height = high - low or 1.0  # a diverged prediction is cut half a height beyond the truth
    low, high = max(np.nanmin(drawn), low - height / 2), min(np.nanmax(drawn), high + height / 2)
    panels[0, 0].set_ylim(low - 0.07 * height, high + 0.07 * height)
    style: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "labelcolor": INK}
    figure.legend(
        handles.values(),
        handles,
        loc="outside upper center",
        ncols=5 if columns == 3 else 3,
        **style,
    )
    return figure


def _columns(**arrays):
    """Turns array-likes of one length into float arrays, with NaN for infinities."""
    columns = {name: np.asarray(array, float).reshape(-1) for name, array in arrays.items()}
    check_lengths(columns)
    return [np.where(np.isfinite(column), column, np.nan) for column in columns.values()]


def _rolling_median(steps, values):
    """Smooths by medians over a thirtieth of the run, at up to 300 places."""
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    half = len(values) // 60
    places = np.unique(np.linspace(0, len(values) - 1, 300).astype(int)) if len(values) else []
    medians = [np.median(values[max(i - half, 0) : i + half + 1]) for i in places]
    return steps[np.asarray(places, int)], np.asarray(medians)


def _plot_band(axes, x, means, half_widths, *, color):
    half = np.nan_to_num(half_widths)
    axes.fill_between(x, means - half, means + half, color=color, alpha=0.2, linewidth=0)
    axes.plot(x, means, "o-", color=color, linewidth=1.8, markersize=3.5)
