"""What the pictures of E8 share: colours, words, points with bars, a headline."""

import numpy as np
from e8_reading import BENCHES, cells_of

from maml_jax.plots._style import BLUE, GREEN, INK, SKY, VERMILLION

COLORS = {"independent": BLUE, "correlated": VERMILLION}
WORDS = {"independent": "each task its own alphabet", "correlated": "one alphabet for all tasks"}
BENCH_COLORS = {
    "omniglot": VERMILLION,
    "omniglot sets": INK,
    "glyphs": GREEN,
    "omniglot conv4": SKY,
}
BENCH_WORDS = {
    "omniglot": "Omniglot",
    "omniglot sets": "Omniglot, sets of 5",
    "glyphs": "Glyphs",
    "omniglot conv4": "Omniglot, Conv4",
}
OPTIMIZERS = {"momentum": "SGD with momentum", "adam": "Adam"}
PROTOCOLS = {"steps": "same number of steps", "tasks": "same number of tasks"}
B = 16


def with_cell(folder, name):
    """The cells of each bench that has a cell of that name."""
    known = {bench: cells_of(folder, bench) for bench in BENCHES}
    return {bench: cells for bench, cells in known.items() if name in cells}


def headline(figure, text):
    """Writes what a picture shows above it."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=11.5, color=INK)


def draw_points(axes, x, intervals, color, marker, label, *, hollow=False):
    """Draws intervals over x, joined by a line."""
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
