"""The pictures of E8, from its results.

python experiments/aggregation/e8_plots.py [--folder FOLDER] [--to FOLDER]
"""

import argparse
import pathlib

import e8_plots_rates
import e8_verdicts_clipping as clipping
import numpy as np
from e8_drawing import (
    BENCH_COLORS,
    BENCH_WORDS,
    COLORS,
    PROTOCOLS,
    WORDS,
    B,
    draw_points,
    headline,
    with_cell,
)
from e8_reading import measured, ratio
from e8_training import SAMPLINGS

from maml_jax.plots._style import DASHED, GREY, INK, new_figure, save, style_axes

HERE = pathlib.Path(__file__).resolve().parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default=HERE / "results")
    parser.add_argument("--to", type=pathlib.Path, default=HERE)
    options = parser.parse_args()
    draw_all(options.folder, options.to)


def draw_all(folder, to):
    """Draws every picture of which the results are there."""
    for name, draw in PICTURES.items():
        figure = draw(folder)
        if figure is not None:
            print(save(figure, to / f"{name}.png"))


def at_a_glance(folder):
    """The question of E8b: does the sum fare better where tasks are more correlated?"""
    known = with_cell(folder, f"momentum correlated B={B}")
    if not known:
        return None
    figure = new_figure(10, 4.4, layout="constrained")
    for axes, (protocol, held) in zip(figure.subplots(1, 2), PROTOCOLS.items(), strict=True):
        for bench, cells in known.items():
            found = [
                ratio(cells[f"momentum {s} B={B}"], "sum", "mean", protocol) for s in SAMPLINGS
            ]
            rho = [measured(cells, s, "512", "correlation").estimate for s in SAMPLINGS]
            draw_points(axes, rho, found, BENCH_COLORS[bench], "o", BENCH_WORDS[bench])
        axes.axhline(1, color=GREY, **DASHED)
        axes.annotate("sum is worse ↑", (0.62, 1.0), xycoords=("axes fraction", "data"), **_ASIDE)
        title = f"SGD, learning rate of B = 1, {held}"
        label = "measured correlation ρ of two tasks"
        style_axes(axes, title, label, f"loss of sum / mean, B = {B}")
    figure.axes[0].legend(fontsize=8.5, frameon=False, loc="upper right")
    headline(
        figure,
        "Correlated tasks do not favour the sum. From each task its own alphabet (ρ = 0) to one\n"
        "alphabet for all tasks, it loses ground on the mean, or keeps it. 95% over 8 seeds.",
    )
    return figure


_ASIDE = {
    "fontsize": 8.5,
    "color": GREY,
    "ha": "right",
    "va": "bottom",
    "xytext": (0, 2),
    "textcoords": "offset points",
}


def correlation(folder):
    """E8a: correlation, coherence and what 16 tasks are worth, along training."""
    known = with_cell(folder, "diagnosis correlated")
    if not known:
        return None
    figure = new_figure(11, 3.9, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for index, (bench, cells) in enumerate(known.items()):
        states = [key for key in cells["diagnosis correlated"] if key.isdigit()]
        x = np.arange(len(states)) + 0.08 * (index - 1.5)
        color, word = BENCH_COLORS[bench], BENCH_WORDS[bench]
        rho = [measured(cells, "correlated", state, "correlation") for state in states]
        apart = [measured(cells, "independent", state, "correlation") for state in states]
        kappa = [measured(cells, "correlated", state, "coherence") for state in states]
        draw_points(left, x, rho, color, "o", word)
        draw_points(left, x, apart, color, "o", None, hollow=True)
        draw_points(middle, x, [_through(worth_of, r) for r in rho], color, "o", word)
        draw_points(right, x, [_through(worth_of, k) for k in kappa], color, "o", word)
    labels = (
        (left, "Correlation ρ of two tasks\n● one alphabet for all, ○ each its own", ""),
        (
            middle,
            f"Independent tasks that {B} tasks of one\nalphabet are worth, B/(1 + (B-1)ρ)",
            "",
        ),
        (right, f"AdaScale's gain for {B} tasks of one\nalphabet (mean: 1, sum: {B})", ""),
    )
    for axes, title, label in labels:
        style_axes(axes, title, "outer steps taken", label)
        axes.set_xticks(range(len(states)), states)
    left.axhline(0, color=GREY, **DASHED)
    for axes in (middle, right):
        axes.set_ylim(0, B + 0.5)
    left.legend(fontsize=8.5, frameon=False)
    return figure


def worth_of(share):
    """B / (1 + (B - 1) share), for a share in [0, 1]."""
    return B / (1 + (B - 1) * min(max(share, 0), 1))


def _through(function, interval):
    """An interval mapped by a decreasing function."""
    return function(interval[0]), function(interval[2]), function(interval[1])


def thresholds(folder):
    """E8c: the sum over the mean behind one clipping threshold, and how often it binds."""
    known = with_cell(folder, "clipping correlated")
    if not known:
        return None
    figure = new_figure(10, 6.4, layout="constrained")
    grid = figure.subplots(2, len(known), sharex=True, sharey="row", squeeze=False)
    for column, (bench, cells) in zip(grid.T, known.items(), strict=True):
        for sampling in SAMPLINGS:
            ratios = clipping.ratios(cells, sampling, "losses")
            look = (COLORS[sampling], "o", WORDS[sampling])
            draw_points(column[0], list(ratios), ratios.values(), *look)
            for name, style in (("mean", "-"), ("sum", ":")):
                shares = [e[name]["binding"] for e in clipping.entries(cells, sampling)]
                look = {"color": COLORS[sampling], "marker": "o", "markersize": 4}
                column[1].plot(list(ratios), shares, style, **look)
        title = f"{BENCH_WORDS[bench]}: loss of sum / mean at equal threshold"
        style_axes(column[0], title, "", "ratio of losses")
        label = "threshold / usual norm of the mean"
        style_axes(column[1], "Share of steps that are clipped", label, "")
        column[1].annotate("mean", (1.15, 0.5), fontsize=9, color=INK)
        column[1].annotate("sum", (18.5, 0.5), fontsize=9, color=INK)
        column[0].axhline(1, color=GREY, **DASHED)
        column[1].set_xscale("log", base=2)
        column[1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    grid[0, 0].legend(fontsize=8.5, frameon=False)
    headline(
        figure,
        f"Clipping before Adam, B = {B}: where only the sum is clipped it loses at most 2%\n"
        "(95% over 8 seeds, learning rate of B = 1)",
    )
    return figure


PICTURES = {
    "e8_at_a_glance": at_a_glance,
    "e8_correlation": correlation,
    "e8_clipping": thresholds,
    **e8_plots_rates.PICTURES,
}

if __name__ == "__main__":
    main()
