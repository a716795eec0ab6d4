"""Pictures of clipping, weights and robust rules (P5 to P7)."""

import e3_weights
import e4_robust
import numpy as np
from criteria import matching, values_of

from maml_jax.plots._style import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    INK,
    SKY,
    VERMILLION,
    label_right,
    new_figure,
    style_axes,
)

PALETTE = (BLUE, VERMILLION, GREEN, SKY, "#CC79A7", "#E69F00", INK)


def clipping(folder):
    """P5: best learning rate of the sum over that of the mean, by clipping threshold."""
    sweep = matching(values_of(folder, "e1"), r"threshold (.*)").values()
    rows = sorted((v["threshold"], v["best"]["sum"] / v["best"]["mean"]) for v in sweep)
    if len(rows) < 3:
        return None
    size = next(iter(sweep))["num_tasks"]
    figure = new_figure(6.4, 4.0, layout="constrained")
    axes = style_axes(
        figure.subplots(),
        f"Clipping, then SGD (F1, B = {size}): which rule converts the learning rate?",
        "clipping threshold on the norm of the aggregated gradient",
        "best lr of the sum / best lr of the mean",
    )
    axes.plot(*zip(*rows, strict=True), "o-", color=BLUE, linewidth=2)
    for line, text in (
        (1.0, "1: clipping always binds, the divisor is gone"),
        (1 / size, "1/B: never binds"),
    ):
        axes.axhline(line, **DASHED, color=GREY)
        axes.annotate(text, (rows[0][0], line * 1.06), fontsize=9, color=GREY)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.6 / size, 1.7)
    return figure


def inverse_variance(folder):
    """P6: risk by the shift δ of groups, mean and weights, with and without variance between."""
    e3 = values_of(folder, "e3")
    panels = (0.05, 1.0)
    labels = {
        "mean": GREY,
        "by size": VERMILLION,
        "inverse variance, known": BLUE,
        "inverse variance, estimated": SKY,
    }
    if f"inverse variance, estimated tau2={panels[-1]} delta=1.0 label_noise=0" not in e3:
        return None
    figure = new_figure(10.6, 4.0, layout="constrained")
    for axes, between in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        style_axes(
            axes,
            f"variance between tasks τ² = {between:g}, within 1/n, n = 1 … 50",
            "shift δ of a task with its size",
            "error (stationary excess risk)",
        )
        for label, color in labels.items():
            cells = [
                e3[f"{label} tau2={between} delta={d} label_noise=0"] for d in e3_weights.DELTAS
            ]
            risks = np.array([cell["risk"] for cell in cells])
            x = np.maximum(e3_weights.DELTAS, 0.01)
            axes.plot(x, risks[:, 0], "o-", color=color, linewidth=2, markersize=4, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([0.01, 0.03, 0.1, 0.3, 1.0], ["0", "0.03", "0.1", "0.3", "1"])
        axes.minorticks_off()
        axes.legend(fontsize=9, frameon=False, loc="upper left")
    return figure


def breakdown(folder):
    """P7: risk by the share of broken tasks, each rule at its own best learning rate."""
    cells = values_of(folder, "e4_f1")
    shares = e4_robust.SHARES["f1"]
    if f"mean broken={shares[-1]}" not in cells:
        return None
    names = [
        name
        for name in e4_robust.rules(e4_robust.NUM_TASKS)
        if f"{name} broken={shares[-1]}" in cells
    ]
    groups = {
        "robust rules": [n for n in names if n not in e4_robust.SURGERY],
        "gradient surgery": ["mean", *(n for n in names if n in e4_robust.SURGERY)],
    }
    figure = new_figure(12.6, 4.6, layout="constrained")
    for axes, (title, chosen) in zip(
        figure.subplots(1, 2, sharey=True), groups.items(), strict=True
    ):
        style_axes(
            axes,
            f"{title} (F1, B = 16)",
            "share of broken tasks (20 times as far off)",
            "error at the best learning rate",
        )
        ends = []
        for index, name in enumerate(chosen):
            risks = [cells[f"{name} broken={share}"]["risk"][0] for share in shares]
            risks = [np.nan if risk is None else risk for risk in risks]
            color = GREY if name == "mean" else PALETTE[(index - 1) % len(PALETTE)]
            style = "-" if index <= len(PALETTE) else "--"
            axes.plot(
                np.array(shares) * 100, risks, "o" + style, color=color, linewidth=2, markersize=4
            )
            ends.append((risks[-1], name, color))
        axes.set_yscale("log")
        axes.set_xticks([100 * share for share in shares], [f"{share:.0%}" for share in shares])
        label_right(axes, ends)
    return figure


PICTURES = {
    "p5_clipping": clipping,
    "p6_inverse_variance": inverse_variance,
    "p7_breakdown": breakdown,
}
