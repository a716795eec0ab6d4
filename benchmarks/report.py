"""One self-contained HTML page with tables and plots from the JSON files of the benchmarks.

    python benchmarks/report.py [--results benchmarks/results] [--output FILE]

The pictures of the peers and of scaling are written beside the page too, as PNG files.
"""

import argparse
import base64
import html
import io
import itertools
import json
import pathlib

from matplotlib import ticker
from matplotlib.figure import Figure

import scaling_picture
import scaling_tables

STYLE = """body { font: 15px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
img { max-width: 100% } code { background: #f4f4f4 }"""

LABELS = {
    "maml_jax_steps": "maml_jax, run_outer_steps",
    "naive_vmap": "naive JAX, vmap",
    "naive_loop": "naive JAX, loop",
    "loop": "PyTorch loop",
    "func_loop": "torch.func loop",
    "func_loop_compiled": "torch.func loop, compiled",
    "func_vmap": "torch.func vmap",
    "func_vmap_compiled": "torch.func vmap, compiled",
    "higher": "higher",
    "learn2learn": "learn2learn",
    "torchopt": "TorchOpt",
    "jax_meta": "jax-meta",
}

SETTINGS = {  # of a case of throughput.py, and what people call them
    "workload": "workload",
    "axis": "task axis",
    "dtype": "activations",
    "way": "way",
    "shot": "shot",
    "num_steps": "inner steps",
    "devices": "devices",
    "statistics": "statistics",
}


def picture(figure):
    """Draws a figure into the page itself."""
    file = io.BytesIO()
    save(figure, file)
    return f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def save(figure, file):
    """Writes a figure as PNG."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight")


def table(columns, rows):
    """Writes a table of anything that can be a string."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in columns) + "</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row))
    return "<table>" + "\n".join(lines) + "</table>"


def peers(content):
    """The time of each peer in units of ours: bars, and a table for each workload."""
    parts = [picture(peers_figure(content))]
    columns = ("", "median, ms", "times ours", "gradient differs by")
    for result in content["results"]:
        cells = [
            (
                label(row["peer"]),
                f"{1e3 * row['median']:.2f}",
                f"{row['ratio']:.2f}",
                "" if row["relative_error"] is None else f"{row['relative_error']:.0e}",
            )
            for row in result["rows"]
        ]
        failed = [(label(peer), reason, "", "") for peer, reason in result["failed"].items()]
        parts += [f"<h3>{heading(result)}</h3>", table(columns, cells + failed)]
    return "\n".join(parts)


def label(peer):
    """Names a peer for people."""
    return LABELS.get(peer, peer)


def heading(result):
    """Names a workload with its tasks."""
    return f"{result['workload']}, {result['num_tasks']} tasks"


def peers_figure(content):
    """Draws a panel of bars for each workload, the fastest at the top."""
    results = content["results"]
    rows = max(len(result["rows"]) for result in results)
    figure = Figure(figsize=(10, -(-len(results) // 2) * (0.3 * rows + 1)), layout="constrained")
    for index, result in enumerate(results):
        axes = figure.add_subplot(-(-len(results) // 2), min(2, len(results)), index + 1)
        names = [label(row["peer"]) for row in result["rows"]]
        ratios = [row["ratio"] for row in result["rows"]]
        colours = ["#d1495b" if name.startswith("maml_jax") else "#8d99ae" for name in names]
        bars = axes.barh(names, ratios, color=colours)
        axes.bar_label(bars, [f"{ratio:.3g}" for ratio in ratios], padding=3, fontsize=8)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlim(0.5, max(20, 4 * max(ratios)))
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_title(heading(result), loc="left", fontsize=10)
        axes.set_xlabel("time in units of ours", fontsize=9)
        axes.tick_params(labelsize=9)
    return figure


def throughput(content):
    """Tasks per second against the meta-batch size, and the fraction of the roof."""
    rows = [row for row in content["results"] if "median" in row]
    series = {}
    for row in rows:
        point = (row["num_tasks"], row["num_tasks"] / row["median"])
        series.setdefault(tuple(said(row, name) for name in SETTINGS), []).append(point)
    differs = [len(set(values)) > 1 for values in zip(*series, strict=True)]
    lines = {
        " ".join((key[0], *itertools.compress(key[1:], differs[1:]))): points
        for key, points in series.items()
    }
    figure = lines_figure(lines, "tasks of the meta-batch", "tasks per second")
    columns = (*SETTINGS.values(), "tasks", "ms", "tasks/s", "GFLOP/s", "of products", "of copies")
    cells = [
        (
            *("of the workload" if row[name] is None else row[name] for name in SETTINGS),
            row["num_tasks"],
            f"{1e3 * row['median']:.1f}",
            f"{row['num_tasks'] / row['median']:.0f}",
            f"{row['flops_per_second'] / 1e9:.0f}",
            f"{row['roof_fraction']:.0%}",
            f"{row['copy_fraction']:.0%}",
        )
        for row in rows
    ]
    return picture(figure) + table(columns, cells)


def said(row, name):
    """Says a setting of a row for a legend, such as "5-way" or "2 devices"."""
    value, noun = row[name], SETTINGS[name]
    if name in ("way", "shot"):
        return f"{value}-{noun}"
    if name in ("num_steps", "devices"):
        return "" if value is None else f"{value} {noun}"
    if name == "statistics":
        return f"{noun} of {value}"
    return str(value)


def lines_figure(lines, x_label, y_label):
    """Draws lines of (x, y) by their names, both axes logarithmic with plain numbers."""
    figure = Figure(figsize=(8, 4))
    axes = figure.add_subplot()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), "o-", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(frameon=False, fontsize=8)
    return figure


def memory(content):
    """Temporary memory against inner steps, one line a mode."""
    rows = [(row, f"{row['temporary_bytes'] / 2**20:.0f}") for row in content["results"]]
    return against_inner_steps(rows, ("temporary memory, MiB",))


def compile_time(content):
    """Seconds to compile against inner steps, one line a mode."""
    names = ("compile_seconds", "again_seconds", "trace_seconds")
    rows = [(row, *(f"{row[name]:.1f}" for name in names)) for row in content["results"]]
    return against_inner_steps(rows, ("compile, s", "again, from the cache, s", "trace, s"))


def against_inner_steps(rows, names):
    """A table of (result, *numbers) and a plot of the first number, one line a mode."""
    lines = {}
    for row, value, *_ in rows:
        lines.setdefault(row["mode"], []).append((row["num_steps"], float(value)))
    figure = lines_figure(lines, "inner steps", names[0])
    settings = ("workload", "mode", "num_steps")
    cells = [(*(row[name] for name in settings), *values) for row, *values in rows]
    return picture(figure) + table(("workload", "mode", "inner steps", *names), cells)


def breakdown(content):
    """Milliseconds per task by kind of operation."""
    names = [name for name in content["results"][0] if name != "workload"]
    cells = [
        (row["workload"], *(f"{1e3 * row[name]:.1f}" for name in names))
        for row in content["results"]
    ]
    return table(("ms per task", *(name.replace("_", " ") for name in names)), cells)


def kernels(content):
    """The forms of the convolution."""
    columns = ("layer", "tasks", "operation", "ours, ms", "lax.conv, ms")
    cells = [
        (
            row["layer"],
            row["axis"],
            row["operation"],
            f"{1e3 * row['ours']['median']:.2f}",
            f"{1e3 * row['lax.conv']['median']:.2f}",
        )
        for row in content["results"]
    ]
    return table(columns, cells)


def scaling(content):
    """What each of several devices does and exchanges, and the model of TPUs."""
    parts = [picture(scaling_picture.figure(content))]
    for title, columns, rows in scaling_tables.tables(content):
        parts += [f"<h3>{html.escape(title)}</h3>", table(columns, rows)]
    return "\n".join(parts)


PICTURES = {"peers": peers_figure, "scaling": scaling_picture.figure}

SECTIONS = {
    "peers": peers,
    "throughput": throughput,
    "memory": memory,
    "compile_time": compile_time,
    "kernels": kernels,
    "breakdown": breakdown,
    "scaling": scaling,
}


def main():
    """Writes the page."""
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=pathlib.Path, default=here / "results")
    parser.add_argument("--output", type=pathlib.Path, default=None)
    options = parser.parse_args()
    parts = []
    for path in sorted(options.results.glob("*.json")):
        content = json.loads(path.read_text())
        section = SECTIONS.get(path.stem.split("-")[0])
        if section is None:
            continue
        if path.stem in PICTURES:
            beside = (options.output or path).with_name(f"{path.stem}.png")
            save(PICTURES[path.stem](content), beside)
        facts = ", ".join(f"{name} {value}" for name, value in content["machine"].items())
        parts += [f"<h2>{path.stem}</h2>", f"<p>{html.escape(facts)}</p>", section(content)]
    output = options.output or options.results / "report.html"
    head = f"<meta charset=utf-8><title>maml_jax benchmarks</title><style>{STYLE}</style>"
    output.write_text(f"<!doctype html>{head}<h1>maml_jax benchmarks</h1>\n" + "\n".join(parts))
    print(output)


if __name__ == "__main__":
    main()
