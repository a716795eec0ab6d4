"""The pictures of E8, from its results.

python experiments/aggregation/e8_plots.py [--folder FOLDER] [--to FOLDER]
"""

import argparse
import math
import pathlib

import e8_verdicts_clipping as clipping
import numpy as np
from e8_reading import BENCHES, cells_of, measured, ratio
from e8_training import SAMPLINGS
from matplotlib import ticker
from records import array

from maml_jax.plots._style import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    INK,
    SKY,
    VERMILLION,
    new_figure,
    save,
    style_axes,
)

HERE = pathlib.Path(__file__).resolve().parent
COLORS = {"independent": BLUE, "correlated": VERMILLION}
WORDS = {"independent": "each its own alphabet", "correlated": "one alphabet for all"}
BENCH_COLORS = {"omniglot": VERMILLION, "glyphs": GREEN, "omniglot conv4": SKY}
BENCH_WORDS = {"omniglot": "Omniglot", "glyphs": "glyphs", "omniglot conv4": "Omniglot, Conv4"}
OPTIMIZERS = {"momentum": "SGD with momentum", "adam": "Adam"}
PROTOCOLS = {"steps": "same number of steps", "tasks": "same number of tasks"}
B = 16


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


def correlation(folder):
    """E8a: correlation, coherence and what 16 tasks are worth, along training."""
    known = {bench: cells_of(folder, bench) for bench in BENCHES}
    known = {bench: cells for bench, cells in known.items() if "diagnosis correlated" in cells}
    if not known:
        return None
    figure = new_figure(11, 3.9, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for index, (bench, cells) in enumerate(known.items()):
        states = [key for key in cells["diagnosis correlated"] if key.isdigit()]
        x = np.arange(len(states)) + 0.08 * (index - 1)
        color, word = BENCH_COLORS[bench], BENCH_WORDS[bench]
        rho = [measured(cells, "correlated", state, "correlation") for state in states]
        apart = [measured(cells, "independent", state, "correlation") for state in states]
        kappa = [measured(cells, "correlated", state, "coherence") for state in states]
        _points(left, x, rho, color, "o", word)
        _points(left, x, apart, color, "o", None, hollow=True)
        _points(middle, x, kappa, color, "o", word)
        worth = [_through(lambda r: B / (1 + (B - 1) * min(max(r, 0), 1)), r) for r in rho]
        gain = [_through(lambda k: B / (1 + (B - 1) * max(k, 0)), k) for k in kappa]
        _points(right, x, worth, color, "s", f"{word}: independent tasks")
        _points(right, x, gain, color, "^", f"{word}: AdaScale's gain", hollow=True)
    titles = (
        (
            left,
            "Correlation of the noise of two tasks\n● one alphabet for all, ○ each its own",
            "ρ",
        ),
        (middle, "Coherence of two tasks (signal + shared\nnoise, over all), one alphabet", "κ"),
        (
            right,
            f"What a meta-batch of {B} is worth, one alphabet\n■ B/(1 + (B-1)ρ), △ gain",
            "tasks",
        ),
    )
    for axes, title, label in titles:
        style_axes(axes, title, "outer steps taken", label)
        axes.set_xticks(range(len(states)), states)
    left.axhline(0, color=GREY, **DASHED)
    middle.axhline(0, color=GREY, **DASHED)
    right.set_ylim(0, B + 0.5)
    left.legend(fontsize=8.5, frameon=False)
    return figure


def _through(function, interval):
    """An interval mapped by a decreasing function."""
    return function(interval[0]), function(interval[2]), function(interval[1])


def _points(axes, x, intervals, color, marker, label, *, hollow=False):
    found = np.array([tuple(interval) for interval in intervals])
    bars = np.abs(found[:, 1:] - found[:, :1]).T
    axes.errorbar(
        x,
        found[:, 0],
        bars,
        color=color,
        marker=marker,
        markersize=5,
        markerfacecolor="white" if hollow else color,
        linewidth=1.2,
        linestyle=":" if hollow else "-",
        capsize=2,
        label=label,
    )


def learning_rates(folder):
    """E8b: loss over the learning rate, B = 16, independent against correlated."""
    cells = cells_of(folder, "omniglot")
    if f"adam correlated B={B}" not in cells:
        return None
    figure = new_figure(10, 6.6, layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for row, (optimizer, name) in zip(grid, OPTIMIZERS.items(), strict=True):
        for axes, (protocol, held) in zip(row, PROTOCOLS.items(), strict=True):
            _curves(axes, cells, optimizer, protocol)
            style_axes(
                axes,
                f"{name}, {held} as at B = 1",
                "learning rate / best one at B = 1",
                "query loss",
            )
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    grid[0, 0].legend(fontsize=8.5, frameon=False, loc="upper left")
    figure.suptitle(
        f"Omniglot, B = {B}: the best learning rate is where it is because of what is held fixed,\n"
        "tasks of one alphabet move it little (tuning seeds and tasks)",
        x=0.01,
        ha="left",
        fontsize=11.5,
        color=INK,
    )
    return figure


def _curves(axes, cells, optimizer, protocol):
    for sampling in SAMPLINGS:
        cell = cells[f"{optimizer} {sampling} B={B}"]
        factors, losses = array(cell["factors"]), array(cell["curves"]["mean"][protocol])
        color = COLORS[sampling]
        axes.plot(factors, losses, color=color, marker="o", markersize=4, label=WORDS[sampling])
        best = int(np.argmin(losses))
        axes.plot(factors[best], losses[best], marker="*", color=color, markersize=13)
    axes.axhline(math.log(5), color=GREY, **DASHED)
    marks = {"mean": 1, "root": math.sqrt(B), "sum" if optimizer == "momentum" else "B": B}
    if optimizer == "adam":
        marks = {"mean = sum": 1, "root": math.sqrt(B), "× B": B}
    for name, factor in marks.items():
        axes.axvline(factor, color="#bbbbbb", linewidth=0.9, zorder=0)
        axes.annotate(
            name,
            (factor, 0.02),
            xycoords=("data", "axes fraction"),
            fontsize=8.5,
            color=INK,
            ha="left",
            xytext=(3, 0),
            textcoords="offset points",
        )


ARMS = {
    "mean": "mean",
    "root": "mean × √B",
    "sum": "sum",
    "adascale": "AdaScale",
    "best adascale": "AdaScale, tuned",
}


def arms(folder):
    """E8b: each arm at the carried learning rate, over the tuned mean."""
    benches = [b for b in BENCHES if f"adam correlated B={B}" in cells_of(folder, b)]
    if not benches:
        return None
    figure = new_figure(11, 1.2 + 2.6 * len(benches), layout="constrained")
    grid = figure.subplots(len(benches), 4, sharex=True, sharey=True, squeeze=False)
    for row, bench in zip(grid, benches, strict=True):
        cells, columns = cells_of(folder, bench), iter(row)
        for optimizer, name in OPTIMIZERS.items():
            for protocol, held in PROTOCOLS.items():
                axes = next(columns)
                _forest(axes, cells, optimizer, protocol)
                title = f"{BENCH_WORDS[bench]}\n{name}, {held.replace('number of ', '')}"
                style_axes(axes, title, "", "")
                axes.set_yticks(range(len(ARMS)), ARMS.values())
        row[0].invert_yaxis()
    for axes in grid[-1]:
        axes.set_xlabel("loss / loss of the tuned mean", fontsize=9, color=INK)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.FixedLocator([0.8, 1.0, 1.2, 1.5, 2.0]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    handles = [grid[0, 0].plot([], [], "o", color=COLORS[s], label=WORDS[s])[0] for s in SAMPLINGS]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=9, frameon=False)
    figure.suptitle(
        f"Learning rate of B = 1 carried to B = {B} (95% over 8 seeds)",
        x=0.01,
        ha="left",
        fontsize=11.5,
        color=INK,
    )
    return figure


def _forest(axes, cells, optimizer, protocol):
    for offset, sampling in zip((-0.14, 0.14), SAMPLINGS, strict=True):
        cell = cells[f"{optimizer} {sampling} B={B}"]
        found = np.array([tuple(ratio(cell, arm, "best", protocol)) for arm in ARMS])
        bars = np.abs(found[:, 1:] - found[:, :1]).T
        y = np.arange(len(ARMS)) + offset
        axes.errorbar(
            found[:, 0],
            y,
            xerr=bars,
            fmt="o",
            color=COLORS[sampling],
            markersize=4.5,
            capsize=2,
            linewidth=1.2,
        )
    axes.axvline(1, color=GREY, **DASHED)


def thresholds(folder):
    """E8c: the sum over the mean behind one clipping threshold, and how often it binds."""
    known = {bench: cells_of(folder, bench) for bench in BENCHES}
    known = {bench: cells for bench, cells in known.items() if "clipping correlated" in cells}
    if not known:
        return None
    figure = new_figure(10, 6.4, layout="constrained")
    grid = figure.subplots(2, len(known), sharex=True, sharey="row", squeeze=False)
    for column, (bench, cells) in zip(grid.T, known.items(), strict=True):
        for sampling in SAMPLINGS:
            ratios = clipping.ratios(cells, sampling, "losses")
            _points(
                column[0], list(ratios), ratios.values(), COLORS[sampling], "o", WORDS[sampling]
            )
            for name, style in (("mean", "-"), ("sum", ":")):
                shares = [e[name]["binding"] for e in clipping.entries(cells, sampling)]
                column[1].plot(
                    list(ratios),
                    shares,
                    style,
                    color=COLORS[sampling],
                    marker="o",
                    markersize=4,
                    label=f"{name}, {WORDS[sampling]}",
                )
        style_axes(
            column[0], f"{BENCH_WORDS[bench]}: sum / mean at equal threshold", "", "ratio of losses"
        )
        style_axes(
            column[1], "Share of steps that are clipped", "threshold / usual norm of the mean", ""
        )
        column[0].axhline(1, color=GREY, **DASHED)
        column[1].set_xscale("log", base=2)
        column[1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    grid[0, 0].legend(fontsize=8.5, frameon=False)
    grid[1, 0].legend(fontsize=8.5, frameon=False)
    figure.suptitle(
        f"Clipping before Adam, B = {B}: the only place where the divisor can act (95%, 8 seeds)",
        x=0.01,
        ha="left",
        fontsize=11.5,
        color=INK,
    )
    return figure


PICTURES = {
    "e8_correlation": correlation,
    "e8_rates": learning_rates,
    "e8_arms": arms,
    "e8_clipping": thresholds,
}

if __name__ == "__main__":
    main()
