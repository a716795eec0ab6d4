"""Draws the exponents of optimizers: where the divisor of the meta-batch does something."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK, GREY, BLUE, VERMILLION, GREEN = "#222222", "#6b6b6b", "#0072B2", "#D55E00", "#009E73"
MARKS = (  # norm of the gradient, marker, size, face, colour
    ("1e-06", "o", 30, "white", VERMILLION),
    ("1", "o", 34, BLUE, BLUE),
    ("1000", "|", 70, INK, INK),
)
TITLES = {
    "0": "Degree 0: mean and sum are the same",
    "1": "Degree 1: sum at η/B is mean at η",
    "mixed": "Mixed: convert, or stay with the mean",
}


def draw(rows, path):
    """Draws exponents p of ‖u(32·g)‖ = 32ᵖ ‖u(g)‖ at three sizes of the gradient.

    Args:
      rows: of result.json; pieces of optimizers are left out.
      path: PNG file to write.
    """
    groups = {
        degree: [r for r in rows if r["degree"] == degree and r["kind"] != "piece"]
        for degree in ("0", "1", "mixed")
    }
    right = len(groups["1"]) + len(groups["mixed"])
    height = 0.21 * max(len(groups["0"]), right + 3) + 1.4
    figure = Figure(figsize=(11, height), facecolor="white")
    grid = figure.add_gridspec(
        2, 2, height_ratios=(len(groups["1"]), len(groups["mixed"])), hspace=0.24, wspace=0.62
    )
    places = {"0": grid[:, 0], "1": grid[0, 1], "mixed": grid[1, 1]}
    for degree, group in groups.items():
        _panel(figure.add_subplot(places[degree]), group, TITLES[degree])
    figure.legend(
        handles=[
            Line2D([], [], linestyle="", marker=m, markersize=7, markerfacecolor=face, color=color,
                   label=f"‖g‖ = {float(norm):g}")
            for norm, m, _, face, color in MARKS
        ],
        loc="upper center", ncols=3, frameon=False, fontsize=9.5, bbox_to_anchor=(0.5, 0.975),
    )  # fmt: skip
    figure.suptitle(
        "What 32 times the gradient does to the update: 32 to the power p",
        x=0.5, y=0.992, fontsize=12, color=INK,
    )  # fmt: skip
    figure.savefig(path, dpi=80, bbox_inches="tight")


def _panel(axes, group, title):
    for y, row in enumerate(group):
        found = [(row["exponents"][norm], *style) for norm, *style in MARKS]
        points = [p for p, *_ in found if p == p]
        axes.plot([min(points), max(points)], [y, y], color="#c9c9c9", linewidth=2, zorder=1)
        for p, marker, size, face, color in found:
            colors = {"color": color} if marker == "|" else {"facecolor": face, "edgecolor": color}
            axes.scatter(p, y, s=size, marker=marker, linewidth=1.5, zorder=2, **colors)
    axes.set_yticks(range(len(group)), [row["name"] for row in group], fontsize=8.5, color=INK)
    axes.set_ylim(len(group) - 0.4, -0.6)
    low = min(row["exponents"]["1"] for row in group)
    axes.set_xlim(min(-0.2, low - 0.12), 1.3)
    axes.set_xticks([x for x in (-1, -0.5, 0, 0.5, 1) if x >= min(0, low)])
    axes.set_xlabel("p", fontsize=9, color=INK)
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(color=GREY, labelcolor=INK, length=3, labelsize=8.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#aaaaaa")
