"""P2 to P4: the collapse on B_eff, how learning rates carry over, what AdaScale divides by."""

import gaussian
import numpy as np
from criteria import matching, values_of
from plots_glance import COLORS, rho_text
from records import array
from verdicts_divisor import effective
from verdicts_transfer import by_cell, ratio

from maml_jax.plots._style import DASHED, GREY, INK, new_figure, scale_metric, style_axes


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
    markers = {1: "s", 2: ".", 4: "o", 8: ".", 16: "^", 32: ".", 64: "D"}
    for axes, (bench, name, title) in zip(figure.subplots(1, 3), panels, strict=True):
        style_axes(axes, title, "effective number of tasks, B / (1 + (B-1)ρ)", "best error")
        found = points[bench, name]
        curve = sorted(point for (_, rho), point in found.items() if rho == 0)
        axes.plot(*zip(*curve, strict=True), "-", color=COLORS[0.0], linewidth=1)
        for (size, rho), (tasks, risk) in found.items():
            axes.plot(tasks, risk, markers[size], color=COLORS[rho], markersize=7)
        for rho in sorted({rho for _, rho in found}):
            axes.plot([], [], "o", color=COLORS[rho], label=f"ρ = {rho:g}")
        for size in sorted({size for size, rho in found if rho > 0}):
            axes.plot([], [], markers[size], color=GREY, label=f"B = {size}")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        scale_metric(axes, "loss")
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
    panels = [
        ("f1 sgd", "F1, SGD, B = 16", {"loc": "lower left", "bbox_to_anchor": (0, 0.12)}),
        (
            "f2 adam",
            "F2 (sinusoids), Adam, B = 16",
            {"loc": "upper left", "bbox_to_anchor": (0, 0.85)},
        ),
    ]
    found = [matching(e7, name + r" B=16 rho=(.*)") for name, *_ in panels]
    if not all(found):
        return None
    figure = new_figure(10.2, 4.0, layout="constrained")
    for axes, cells, (_, title, place) in zip(figure.subplots(1, 2), found, panels, strict=True):
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
        axes.legend(fontsize=9, frameon=False, **place)
    return figure
