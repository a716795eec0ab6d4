"""The pictures of E8b: learning rates carried from B = 1 to B = 16."""

import math

import numpy as np
from e8_drawing import (
    BENCH_WORDS,
    COLORS,
    OPTIMIZERS,
    PROTOCOLS,
    WORDS,
    B,
    headline,
    with_cell,
)
from e8_reading import cells_of, ratio
from e8_training import SAMPLINGS
from matplotlib import ticker
from records import array

from maml_jax.plots._style import DASHED, GREY, INK, new_figure, style_axes


def learning_rates(folder):
    """E8b: loss over the learning rate, B = 16, independent against correlated."""
    cells = cells_of(folder, "omniglot")
    if f"adam correlated B={B}" not in cells:
        return None
    figure = new_figure(10, 6.6, layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for index, (optimizer, name) in enumerate(OPTIMIZERS.items()):
        for axes, (protocol, held) in zip(grid[index], PROTOCOLS.items(), strict=True):
            _curves(axes, cells, optimizer, protocol)
            label = "learning rate / best one at B = 1" if index else ""
            style_axes(axes, f"{name}, {held} as at B = 1", label, "query loss")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_ylim(0.83, 1.65)
    grid[0, 0].legend(fontsize=8.5, frameon=False, loc="lower left", bbox_to_anchor=(0, 0.08))
    grid[0, 1].annotate("guessing", (0.25, math.log(5)), fontsize=8.5, color=GREY, va="bottom")
    headline(
        figure,
        f"Omniglot, B = {B}: one alphabet for all tasks moves the best learning rate (★) down or\n"
        "leaves it, never up towards the sum (tuning seeds and tasks, mean of 3 seeds)",
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
    names = ("mean", "sum") if optimizer == "momentum" else ("mean = sum", "× B")
    marks = {names[0]: 1, "root": math.sqrt(B), names[1]: B}
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
    known = with_cell(folder, f"adam correlated B={B}")
    if not known:
        return None
    figure = new_figure(11, 1.2 + 2.2 * len(known), layout="constrained")
    grid = figure.subplots(len(known), 4, sharex=True, sharey=True, squeeze=False)
    for index, (bench, cells) in enumerate(known.items()):
        columns = iter(grid[index])
        for optimizer, name in OPTIMIZERS.items():
            for protocol, held in PROTOCOLS.items():
                axes = next(columns)
                _forest(axes, cells, optimizer, protocol)
                title = f"{name},\n{held}" if index == 0 else ""
                style_axes(axes, title, "", "")
                axes.set_yticks(range(len(ARMS)), ARMS.values())
        grid[index, 0].set_ylabel(BENCH_WORDS[bench], fontsize=10.5, color=INK)
    grid[0, 0].invert_yaxis()
    for axes in grid[-1]:
        axes.set_xlabel("loss / loss of the tuned mean", fontsize=9, color=INK)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.FixedLocator([0.9, 1.0, 1.1, 1.2, 1.3]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    handles = [grid[0, 0].plot([], [], "o", color=COLORS[s], label=WORDS[s])[0] for s in SAMPLINGS]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    headline(
        figure,
        f"Learning rate of B = 1 carried to B = {B}: AdaScale is within 4% of the best at the\n"
        "same number of tasks, whatever the sampling (95% over 8 seeds; left is better)",
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


PICTURES = {"e8_rates": learning_rates, "e8_arms": arms}
