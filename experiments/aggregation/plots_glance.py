"""The picture that says it at a glance, and P1, learning rates of mean and sum."""

import e1_equivalence
import numpy as np
from criteria import values_of
from matplotlib import ticker
from records import array
from verdicts_divisor import effective
from verdicts_transfer import by_cell

from maml_jax.plots._style import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    INK,
    SKY,
    VERMILLION,
    new_figure,
    style_axes,
)

COLORS = {0.0: BLUE, 0.05: SKY, 0.2: GREEN, 0.3: GREEN, 0.5: "#CC79A7", 0.9: VERMILLION, 1.0: INK}
SHOWN = (0.0, 0.2, 0.9)


def tasks_axis(axes, sizes):
    """A log₂ axis of meta-batch sizes."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def rho_text(rho):
    """Says a correlation in words."""
    words = {0.0: "independent tasks (ρ = 0)", 0.9: "nearly copies (ρ = 0.9)"}
    return words.get(rho, f"ρ = {rho:g}")


def at_a_glance(folder):
    """Four panels: whether the divisor matters, which one carries over, what correlation does."""
    e1, e2 = values_of(folder, "e1"), values_of(folder, "e2_f1")
    steps, tasks = by_cell(e2, "sgd", "steps"), by_cell(e2, "sgd", "tasks")
    if not steps or "adam B=12 rho=0.0" not in e1:
        return None
    figure = new_figure(10.2, 8.4, layout="constrained")
    panels = figure.subplots(2, 2)
    _curves(panels[0, 0], e1["adam B=12 rho=0.0"], "adam", e1_equivalence.OPTIMIZERS["adam"][3])
    panels[0, 0].set_title(
        "1  Adam and its kin: it makes no difference", loc="left", fontsize=11.5, color=INK
    )
    _carried(panels[0, 1], steps, "2  SGD, same number of steps: take the MEAN")
    _carried(panels[1, 0], tasks, "3  SGD, same number of tasks: take the SUM")
    _worth(panels[1, 1], e2)
    figure.suptitle(
        "Mean or sum? What is held fixed decides, not how alike the tasks are",
        x=0.01,
        ha="left",
        fontsize=14,
        color=INK,
    )
    return figure


def _carried(axes, cells, title):
    """Best learning rate relative to B = 1, by B, one line per ρ, beside the two rules."""
    sizes = np.array([1, *sorted({size for size, _ in cells})])
    style_axes(
        axes, title, "tasks in a meta-batch, B", "best learning rate on the mean, over B = 1"
    )
    axes.title.set_fontsize(11.5)
    axes.plot(sizes, np.ones_like(sizes), **DASHED, color=GREY)
    axes.plot(sizes, sizes, **DASHED, color=GREY)
    grey = {"fontsize": 9, "color": GREY}
    axes.annotate("dividing by B: mean", (sizes[-1], 0.8), ha="right", va="top", **grey)
    axes.annotate("adding up: sum", (12, 15), rotation=32, rotation_mode="anchor", **grey)
    for rho in SHOWN:
        line = [1.0, *(cells[int(size), rho]["multiple"] for size in sizes[1:])]
        axes.plot(sizes, line, "o-", color=COLORS[rho], label=rho_text(rho), linewidth=2)
    axes.set_yscale("log", base=2)
    axes.set_ylim(0.5, 2 * sizes[-1])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.legend(fontsize=9, frameon=False, loc="upper left")
    tasks_axis(axes, sizes)


def _worth(axes, e2):
    """Best reachable error by B, relative to B = 1."""
    points = effective(e2, "sgd", {})
    sizes = sorted({size for size, _ in points})
    style_axes(
        axes,
        "4  What likeness does decide: how much a larger B is worth",
        "tasks in a meta-batch, B",
        "best error at the same number of steps, over B = 1",
    )
    axes.title.set_fontsize(11.5)
    one = points[1, 0.0][1]
    for rho in SHOWN:
        line = {1: 1.0} | {n: points[n, rho][1] / one for n in sizes if (n, rho) in points}
        style = {"color": COLORS[rho], "label": rho_text(rho), "linewidth": 2}
        axes.plot(list(line), list(line.values()), "o-", **style)
    axes.annotate(
        "same for mean and sum", (0.03, 0.05), xycoords="axes fraction", fontsize=9, color=GREY
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    tasks_axis(axes, sizes)
    axes.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(0.0, 0.3))


def _curves(axes, values, name, middle):
    """Error by learning rate, mean and sum."""
    grid = 10 ** (middle + np.arange(-10, 11) * 0.2)
    degree = e1_equivalence.OPTIMIZERS[name][0]
    style_axes(axes, name, "learning rate", "error at the end (excess risk)")
    axes.plot(
        grid,
        array(values["curves"]["mean"]),
        "-",
        color=BLUE,
        linewidth=5,
        alpha=0.35,
        label="mean",
    )
    rates, risks = grid, array(values["curves"]["sum"])
    if degree == 1:
        rates = np.concatenate([grid, grid / e1_equivalence.SHOWN_SIZE])
        risks = np.concatenate([risks, array(values["curves"]["sum, lr/B"])])
    order = np.argsort(rates)
    line = {"color": VERMILLION, "markersize": 4, "linewidth": 1.3}
    axes.plot(rates[order], risks[order], "o--", label="sum", **line)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(fontsize=9, frameon=False, loc="lower left")


def learning_rates(folder):
    """P1: error by learning rate for SGD (shifted by B), SGD with clipping, and Adam (the same)."""
    e1 = values_of(folder, "e1")
    shown = {
        "sgd": "SGD: the same curve, B times to the left",
        "clip + sgd": "clipping at norm 1, then SGD: two curves",
        "adam": "Adam: the same curve",
    }
    if any(f"{name} B=12 rho=0.0" not in e1 for name in shown):
        return None
    figure = new_figure(12.5, 4.0, layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 3, sharey=True), shown.items(), strict=True):
        _curves(axes, e1[f"{name} B=12 rho=0.0"], name, e1_equivalence.OPTIMIZERS[name][3])
        axes.set_title(f"{title} (B = 12)", loc="left", fontsize=10.5, color=INK)
        axes.set_ylim(3e-4, 30)
    return figure
