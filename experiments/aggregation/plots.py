"""The pictures of the study, from its results.

python experiments/aggregation/plots.py [--folder FOLDER] [--to FOLDER]
"""

import argparse
import pathlib

import e1_equivalence
import gaussian
import numpy as np
import plots_rules
from criteria import matching, values_of
from matplotlib import ticker
from records import array
from verdicts_divisor import effective
from verdicts_transfer import by_cell, ratio

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
COLORS = {0.0: BLUE, 0.05: SKY, 0.2: GREEN, 0.3: GREEN, 0.5: "#CC79A7", 0.9: VERMILLION, 1.0: INK}
SHOWN = (0.0, 0.2, 0.9)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default=HERE / "results")
    parser.add_argument("--to", type=pathlib.Path, default=HERE)
    options = parser.parse_args()
    draw_all(options.folder, options.to)


def draw_all(folder, to):
    """Draws every picture of which the results are there."""
    pictures = {
        "at_a_glance": at_a_glance,
        "p1_learning_rates": learning_rates,
        "p2_collapse": collapse,
        "p3_transfer": transfer_map,
        "p4_divisor": divisor,
        **plots_rules.PICTURES,
    }
    for name, draw in pictures.items():
        figure = draw(folder)
        if figure is not None:
            print(save(figure, to / f"{name}.png"))


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
        "Mean or sum? What you hold fixed decides; how alike the tasks are does not",
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
    axes.annotate(
        "what dividing by B does: mean",
        (sizes[-1], 0.8),
        ha="right",
        va="top",
        fontsize=9,
        color=GREY,
    )
    axes.annotate(
        "what adding up does: sum",
        (sizes[-1] * 0.55, sizes[-1] * 0.72),
        ha="right",
        va="bottom",
        fontsize=9,
        color=GREY,
    )
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
        line = [1.0, *(points[size, rho][1] / one for size in sizes[1:])]
        axes.plot(sizes, line, "o-", color=COLORS[rho], label=rho_text(rho), linewidth=2)
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
    axes.plot(
        grid,
        array(values["curves"]["sum"]),
        "o--",
        color=VERMILLION,
        markersize=4,
        linewidth=1.3,
        label="sum",
    )
    if degree == 1:
        axes.plot(
            grid / 12,
            array(values["curves"]["sum, lr/B"]),
            "o--",
            color=VERMILLION,
            markersize=4,
            linewidth=1.3,
        )
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


def collapse(folder):
    """P2: best error against the effective number of tasks, on both families."""
    e7 = values_of(folder, "e7")
    panels = [
        ("f1", "sgd", "F1 (Gaussian tasks), SGD"),
        ("f2", "momentum", "F2, momentum"),
        ("f2", "adam", "F2 (MAML on sinusoids), Adam"),
    ]
    points = {
        (bench, name): effective(
            values_of(folder, f"e2_{bench}"), name, e7 if bench == "f2" else {}
        )
        for bench, name, _ in panels
    }
    if not all(len(found) > 1 for found in points.values()):
        return None
    figure = new_figure(12.5, 4.0, layout="constrained")
    markers = {1: "s", 4: "o", 16: "^", 64: "D"}
    for axes, (bench, name, title) in zip(figure.subplots(1, 3), panels, strict=True):
        style_axes(axes, title, "effective number of tasks, B / (1 + (B-1)ρ)", "best error")
        found = points[bench, name]
        curve = sorted(point for (_, rho), point in found.items() if rho == 0)
        axes.plot(*zip(*curve, strict=True), "-", color=COLORS[0.0], linewidth=1)
        for (size, rho), (tasks, risk) in found.items():
            axes.plot(tasks, risk, markers[size], color=COLORS[rho], markersize=7)
        for rho in sorted({rho for _, rho in found}):
            axes.plot([], [], "o", color=COLORS[rho], label=f"ρ = {rho:g}")
        for size in sorted({size for size, _ in found}):
            axes.plot([], [], markers[size], color=GREY, label=f"B = {size}")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower left")
    return figure


def transfer_map(folder):
    """P3: risk over best risk for each multiple and protocol, and AdaScale."""
    e2 = values_of(folder, "e2_f1")
    steps, tasks = by_cell(e2, "sgd", "steps"), by_cell(e2, "sgd", "tasks")
    scaled = by_cell(e2, "sgd", "quality")
    if not (steps and tasks and scaled):
        return None
    figure = new_figure(11.0, 8.6, layout="constrained")
    panels = figure.subplots(3, 3)
    for row, (arm, text) in enumerate(
        (("mean", "mean: lr"), ("root", "lr · √B"), ("sum", "sum: lr · B"))
    ):
        for column, (cells, what) in enumerate(((steps, "same steps"), (tasks, "same tasks"))):
            grid = {key: ratio(values, arm) for key, values in cells.items()}
            _heat(panels[row, column], grid, f"{text}, {what}: error over best", 1.0, 30.0)
    quality = {key: array(v["adascale"]["ratio"])[0] for key, v in scaled.items()}
    quick = {key: 1024 / v["adascale, decay 0.9"]["steps"] for key, v in scaled.items()}
    most = {key: gaussian.effective_tasks(key[1], key[0]) for key in scaled}
    _heat(panels[0, 2], quality, "AdaScale: error over that of B = 1", 1.0, 30.0)
    _heat(panels[1, 2], quick, "AdaScale: times fewer steps", 1.0, 64.0, "Blues")
    _heat(panels[2, 2], most, "the most possible: B_eff", 1.0, 64.0, "Blues")
    figure.suptitle(
        "A learning rate tuned at B = 1 carried to B (SGD, F1)",
        x=0.01,
        ha="left",
        fontsize=12.5,
        color=INK,
    )
    return figure


def _heat(axes, grid, title, low, high, colors="YlOrBr"):
    """A map of numbers over B and ρ, on a log scale of colours."""
    sizes, rhos = sorted({key[0] for key in grid}), sorted({key[1] for key in grid})
    table = np.array([[grid[size, rho] for size in sizes] for rho in rhos])
    shade = np.log(np.clip(np.where(np.isfinite(table), table, high), low, high))
    axes.imshow(shade, cmap=colors, vmin=np.log(low), vmax=np.log(high), aspect="auto", alpha=0.75)
    for row, column in np.ndindex(table.shape):
        value = table[row, column]
        text = f"{value:.2g}" if value < 100 else f"{value:.0f}" if value < 1e4 else "diverges"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xticks(range(len(sizes)), [f"B = {size}" for size in sizes], fontsize=8.5)
    axes.set_yticks(range(len(rhos)), [f"ρ = {rho:g}" for rho in rhos], fontsize=8.5)
    axes.tick_params(length=0)


def divisor(folder):
    """P4: D over training, by what AdaScale divides the sum."""
    e7 = values_of(folder, "e7")
    panels = [("f1 sgd", "F1, SGD, B = 16"), ("f2 adam", "F2 (sinusoids), Adam, B = 16")]
    found = [matching(e7, name + r" B=16 rho=(.*)") for name, _ in panels]
    if not all(found):
        return None
    figure = new_figure(10.2, 4.0, layout="constrained")
    for axes, cells, (_, title) in zip(figure.subplots(1, 2), found, panels, strict=True):
        style_axes(axes, title, "outer step", "divisor of the sum that AdaScale takes, D")
        for line, text in ((1, "sum: D = 1"), (16, "mean: D = B = 16")):
            axes.axhline(line, **DASHED, color=GREY)
            axes.annotate(text, (1, line * 1.06), fontsize=9, color=GREY)
        for (rho,), values in cells.items():
            if float(rho) in (0.0, 0.2, 0.3, 0.9):
                amount = 16 * np.array(values["q"]) / np.array(values["a"])
                axes.plot(
                    values["step"],
                    amount,
                    color=COLORS[float(rho)],
                    linewidth=2,
                    label=rho_text(float(rho)),
                )
        axes.set_xscale("log")
        axes.set_yscale("log", base=2)
        axes.set_ylim(0.7, 24)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(0, 0.35))
    return figure


if __name__ == "__main__":
    main()
