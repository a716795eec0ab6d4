"""What the figures share: checks, palette, axes, labels and the writing of PNG files."""

import io
import math
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

# Okabe and Ito's colour-blind safe palette, https://jfly.uni-koeln.de/color/
INK, GREY, BLUE, SKY = "#222222", "#6b6b6b", "#0072B2", "#56B4E9"
GREEN, VERMILLION = "#009E73", "#D55E00"
DASHED: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1, "zorder": 1}
_MAX_BYTES = 200_000
PathLike: TypeAlias = str | pathlib.Path
Tasks: TypeAlias = Sequence[Mapping[str, Any]]


def png_path(path: PathLike) -> pathlib.Path:
    """Turns `path` into a `pathlib.Path`; raises `ValueError` where it is not ".png"."""
    path = pathlib.Path(path)
    if path.suffix != ".png":
        raise ValueError(f'path must end in ".png", got "{path}": rename the file.')
    return path


def check_num_tasks(tasks: Tasks, most: int) -> None:
    """Raises `ValueError` unless there are 1 to `most` tasks."""
    if not 1 <= len(tasks) <= most:
        raise ValueError(f"tasks must hold 1 to {most} tasks, got {len(tasks)}: choose some.")


def check_lengths(arrays):
    """Raises `ValueError` where the arrays of a mapping from names differ in length."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        got = ", ".join(str(length) for length in lengths.values())
        names = ", ".join(lengths)
        raise ValueError(f"{names} must have equal lengths, got {got}: pass one per entry.")


def new_figure(width, height, **options):
    """Makes a white figure, in inches, that pyplot does not know."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white", **options)


def style_axes(axes, title, x_label, y_label):
    """Gives axes the look of all figures: two spines, a light grid, a title on the left."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.set_ylabel(y_label, fontsize=9, color=INK)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color=GREY, labelcolor=INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#aaaaaa")
    return axes


def metric_text(metric, value, half_width=math.nan):
    """Writes a value, an accuracy in percent, and its half-width where that is finite."""
    scale, form, unit = (100, ".1f", "%") if metric == "accuracy" else (1, ".3g", "")
    if math.isfinite(half_width):
        unit = f" ± {scale * half_width:{'.1f' if scale == 100 else '.2g'}}{unit}"
    return f"{scale * value:{form}}{unit}"


def scale_metric(axes, metric):
    """Puts accuracies on a percent axis within [0, 1], losses on a log axis."""
    from matplotlib import ticker

    empty = not np.isfinite(axes.dataLim.intervaly).all()
    if metric == "accuracy":
        low, high = (0.0, 1.0) if empty else axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.03))
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        return
    axes.set_yscale("log")
    if empty or min(axes.get_ylim()) <= 0:  # nothing positive was drawn
        axes.set_ylim(0.1, 1.0)
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    locator = ticker.LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5) if decades < 0.7 else locator)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def label_right(axes, labels):
    """Writes (value, text, colour) beside the axes, moved apart where they would overlap."""
    labels = [
        (value, textwrap.fill(text, 32), color)
        for value, text, color in sorted(labels)
        if math.isfinite(value)
    ]
    points = [axes.transData.transform((1.0, value)) for value, *_ in labels]
    wanted = axes.transAxes.inverted().transform(np.reshape(points, (-1, 2)))[:, 1]
    sizes = np.array([0.05 * (1 + text.count("\n")) + 0.02 for _, text, _ in labels])
    ends = np.cumsum(sizes)
    start = np.clip(wanted, 0.0, 1.0) - ends + sizes / 2  # a common shift of all that follow
    up, down = np.maximum.accumulate(start), np.minimum.accumulate(start[::-1])[::-1]
    middle = np.clip((up + down) / 2, -0.03, 1.03 - ends[-1:]) + ends - sizes / 2
    for y, at, (_, text, color) in zip(middle, wanted, labels, strict=True):
        axes.annotate(
            text,
            (1.0, at),
            (1.035, y),
            "axes fraction",
            fontsize=8.5,
            color=color,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "relpos": (0, 0.5)},
        )


def save(figure, path: pathlib.Path) -> pathlib.Path:
    """Writes a PNG under 200 KB: in full colour, else 256 colours, else fewer dots."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    for dpi in (110, 90, 70, 50):
        full, small = io.BytesIO(), io.BytesIO()
        figure.savefig(full, format="png", dpi=dpi)
        if len(full.getvalue()) < _MAX_BYTES:
            path.write_bytes(full.getvalue())
            return path
        picture = Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        picture.save(small, format="png", optimize=True)
        if len(small.getvalue()) < _MAX_BYTES:
            break
    path.write_bytes(small.getvalue())
    return path
