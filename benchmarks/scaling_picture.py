"""The picture of `scaling.py`: two panels of counts, two of the model."""

import scaling_model as paper
from maml_jax.plots import _style

COLOURS = {"W1": _style.BLUE, "W2": _style.VERMILLION, "W3": _style.GREEN}
STYLES = {"float32": "-", "bfloat16": (0, (5, 2)), "only products": (0, (1, 1.5))}
MODEL = "model, not a measurement"
PLAIN = ("mean", "mean, masked", "tilted", "norm_clipped", "upgrad", "median")


def figure(content):
    """Draws the four panels."""
    made = _style.new_figure(10, 8, layout="constrained")
    made.get_layout_engine().set(h_pad=0.12, w_pad=0.12)
    panels = made.subplots(2, 2).ravel()
    work(panels[0], content["results"])
    sent(panels[1], content["rules"])
    share(panels[2], content["model"])
    strong(panels[3], content["model"])
    return made


def powers_of_two(axes, values):
    """Puts an axis on base 2, with a tick for each value."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()


def work(axes, results):
    """Work of each device against the number of devices."""
    _style.style_axes(axes, "Work of each device, counted", "devices", "FLOPs, of one device's")
    counts = sorted({row["devices"] for row in results})
    axes.plot(counts, [1 / n for n in counts], color=_style.GREY, **_style.DASHED)
    sizes = {"W1": 9, "W2": 6, "W3": 3}
    for scaling, marker in (("weak", "s"), ("strong", "o")):
        for name, colour in COLOURS.items():
            rows = [r for r in results if (r["workload"], r["scaling"]) == (name, scaling)]
            if rows:
                parts = [row["flops"] / rows[0]["flops"] for row in rows]
                style = {"color": colour, "marker": marker, "markersize": sizes[name]}
                label = name if scaling == "strong" else None
                axes.plot(counts, parts, linewidth=1, label=label, **style)
    powers_of_two(axes, counts)
    axes.set_yscale("log", base=2)
    axes.set_yticks([1 / n for n in counts], [f"1/{n}" if n > 1 else "1" for n in counts])
    axes.set_ylim(0.8 / counts[-1], 1.6)
    text = {"fontsize": 8.5, "color": _style.INK}
    axes.text(counts[0], 1.15, "as many tasks on each device (weak)", **text)
    axes.text(counts[0], 0.9 / counts[-1], "one meta-batch (strong): all on 1 / devices", **text)
    axes.legend(frameon=False, fontsize=8.5, loc="center right", bbox_to_anchor=(1, 0.65))


def sent(axes, rules):
    """What a device sends, by rule."""
    most = max(int(row["devices"]) for row in rules if row["devices"].isdigit())
    rows = [row for row in rules if row["devices"] == str(most) and row["rule"] in PLAIN]
    title = f"Sent by each of {most} devices, counted"
    about = f"{rows[0]['workload']}, {rows[0]['num_tasks']} tasks"
    _style.style_axes(axes, title, f"kB in an outer step, {about}", "")
    labels = [f"{row['rule']}\n{row['level']}" for row in rows]
    kilobytes = [row["sent_bytes"] / 1e3 for row in rows]
    bars = axes.barh(labels, kilobytes, color=_style.SKY, height=0.6)
    axes.bar_label(bars, [f"{value:,.0f}" for value in kilobytes], padding=3, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * max(kilobytes))
    axes.grid(visible=False, axis="y")


def lines(made, table, x_name, value, **where):
    """Gives a line for each workload and bound: name, bound, x and y."""
    rows = [row for row in made[table] if all(row[name] == want for name, want in where.items())]
    for name, bound in dict.fromkeys((row["workload"], row["bound"]) for row in rows):
        line = [row for row in rows if (row["workload"], row["bound"]) == (name, bound)]
        yield name, bound, [row[x_name] for row in line], [row[value] for row in line]


def draw(axes, made, table, x_name, value, **where):
    """Draws these lines, one style a bound."""
    for name, bound, x, y in lines(made, table, x_name, value, **where):
        style = {"color": COLOURS[name], "linestyle": STYLES[bound], "marker": "o", "markersize": 3}
        axes.plot(x, y, label=f"{name}, {bound}", **style)


def share(axes, made):
    """The exchange's part of a step against the tasks of a chip."""
    title = f"Exchange's part of a step, v5e-256:\n{MODEL}"
    _style.style_axes(axes, title, "tasks a chip", "")
    draw(axes, made, "steps", "per_chip", "share", slice="v5e-256")
    axes.axhline(paper.SHARE, color=_style.GREY, **_style.DASHED)
    powers_of_two(axes, paper.TASKS_PER_CHIP)
    axes.set_yscale("log")
    marks = (0.0001, 0.001, 0.01, 0.05, 0.1, 1)
    axes.set_yticks(marks, [f"{100 * mark:g}%" for mark in marks])
    axes.minorticks_off()
    axes.set_ylim(1e-6, 1)
    axes.legend(frameon=False, fontsize=8.5, loc="lower left", handlelength=3.5)


def strong(axes, made):
    """Efficiency of chips that share a meta-batch."""
    title = f"Efficiency of v5e chips that share {paper.STRONG_TASKS} tasks:\n{MODEL}"
    _style.style_axes(axes, title, "chips", "time of one chip over chips · time")
    draw(axes, made, "strong", "chips", "strong")
    powers_of_two(axes, sorted({row["chips"] for row in made["strong"]}))
    axes.set_ylim(0, 1.05)
    marks = (0, 0.25, 0.5, 0.75, 1)
    axes.set_yticks(marks, [f"{mark:.0%}" for mark in marks])
    axes.legend(frameon=False, fontsize=8.5, loc="lower left", handlelength=3.5)
