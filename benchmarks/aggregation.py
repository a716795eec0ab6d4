"""What each aggregation costs: time and memory of one outer gradient, in units of the mean.

    python benchmarks/aggregation.py [--workload W1] [--num-tasks 32] [--repeats 7] [--output FILE]

Rules of the levels STATIC and LOSS should cost the mean, and hold no per-task gradients; those
from NORMS up hold them, once. Each is checked first against `aggregate` of the gradients of
single tasks. "Held" is what the compiled program needs beyond that of the mean, in units of all
per-task gradients, by XLA's own count; "held, vmap" the same with all tasks side by side, as on
an accelerator. Where tasks run one after the other, as large ones do on a CPU, a rule of level
LOSS has to hold gradients until the last loss is known.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import workloads
from maml_jax import aggregation as agg
from maml_jax.benchmarking import alternate, relative_error, timed
from maml_jax.inner_loop import task_loss
from report_table import show, write

RULES = {
    "mean": agg.mean(),
    "sum": agg.sum(),
    "weighted": agg.weighted(),
    "by_size": agg.by_size(),
    "random_weights": agg.random_weights(),
    "tilted": agg.tilted(1.0),
    "cvar": agg.cvar(0.3),
    "by_complexity": agg.by_complexity(),
    "norm_clipped": agg.norm_clipped(),
    "geometric_median": agg.geometric_median(),
    "krum": agg.krum(2),
    "mgda": agg.mgda(),
    "upgrad": agg.upgrad(),
    "dual_projection": agg.dual_projection(),
    "pcgrad": agg.pcgrad(),
    "cagrad": agg.cagrad(),
    "imtl_g": agg.imtl_g(),
    "nash_mtl": agg.nash_mtl(),
    "aligned_mtl": agg.aligned_mtl(),
    "config": agg.config(),
    "median": agg.median(),
    "trimmed_mean": agg.trimmed_mean(2),
    "graddrop": agg.graddrop(),
}


def single_gradients(workload):
    """Losses, support losses and gradients of each task, one compiled call a task."""
    one = functools.partial(task_loss, workload.inner(), workload.loss_fn)
    compiled = jax.jit(jax.value_and_grad(one, has_aux=True))
    seen = []
    for index in range(workload.num_tasks):
        task = jax.tree.map(lambda leaf, i=index: leaf[i], workload.tasks)
        (loss, metrics), grads = compiled(workload.params, task)
        seen.append((loss, metrics["support_loss"], grads))
    return jax.tree.map(lambda *parts: jnp.stack(parts), *seen)


def want(rule, workload, single, weights):
    """What the rule gives of the gradients of single tasks."""
    losses, support_losses, grads = single
    count = jnp.full(workload.num_tasks, len(workload.tasks.query.targets[0]))
    return agg.aggregate(
        rule,
        grads,
        losses=losses,
        support_losses=support_losses,
        num_query=count,
        weights=weights if rule.uses_weights else None,
        key=jax.random.fold_in(jax.random.key(0), 0),
    )


def compiled(rule, workload, options, task_axis):
    """Compiles one rule; gives the program and its state."""
    outer = workload.outer(aggregation=rule, on_nonfinite="propagate", task_axis=task_axis)
    state = outer.init(workload.params)
    return jax.jit(outer.gradient).lower(state, workload.tasks, **options).compile(), state


def temporary_bytes(program):
    """What a program needs besides its arguments."""
    return program.memory_analysis().temp_size_in_bytes


def prepare(name, rule, workload, single):
    """Compiles one rule, checks it, and gives a function that runs it."""
    weights = jnp.linspace(0.5, 1.5, workload.num_tasks)
    options = {"weights": weights} if rule.uses_weights else {}
    program, state = compiled(rule, workload, options, "auto")
    grads, _ = program(state, workload.tasks, **options)
    row = {
        "rule": name,
        "level": rule.level.name,
        "error": relative_error(grads, want(rule, workload, single, weights)),
        "bytes": temporary_bytes(program),
        "vmap_bytes": temporary_bytes(compiled(rule, workload, options, "vmap")[0]),
    }

    def run():
        return timed(lambda: program(state, workload.tasks, **options))

    run()
    return run, row


def main():
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="W1", choices=["W1", "W2", "W3"])
    parser.add_argument("--num-tasks", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    here = pathlib.Path(__file__).parent
    parser.add_argument("--output", default=here / "results" / "aggregation.json")
    options = parser.parse_args()
    workload = workloads.make(options.workload, num_tasks=options.num_tasks)
    single = single_gradients(workload)
    all_gradients = sum(leaf.nbytes for leaf in jax.tree.leaves(single[2]))
    names = list(dict.fromkeys(["mean", *options.rules]))
    sides, rows = {}, []
    for name in names:
        sides[name], row = prepare(name, RULES[name], workload, single)
        rows.append(row)
    # The mean again, as a side of its own: what two equal programs differ by.
    sides["mean, again"] = sides["mean"]
    rows.append({**rows[0], "rule": "mean, again"})
    timings = alternate(sides, repeats=options.repeats)
    for row in rows:
        timing = timings[row["rule"]]
        ratios = np.array(timing.seconds) / np.array(timings["mean"].seconds)
        row.update(
            **timing.as_dict(),
            ratio=timing.median / timings["mean"].median,
            ratio_quartiles=np.quantile(ratios, (0.25, 0.75)).tolist(),
            held=(row["bytes"] - rows[0]["bytes"]) / all_gradients,
            vmap_held=(row["vmap_bytes"] - rows[0]["vmap_bytes"]) / all_gradients,
        )
    report(options, rows)


def report(options, rows):
    """Prints a table and writes the file."""
    cells = [
        (
            row["rule"],
            row["level"],
            f"{1e3 * row['median']:.1f}",
            f"{row['ratio']:.2f}",
            "{:.2f} – {:.2f}".format(*row["ratio_quartiles"]),
            f"{row['held']:.2f}",
            f"{row['vmap_held']:.2f}",
            f"{row['error']:.0e}",
        )
        for row in rows
    ]
    title = f"{options.workload}, {options.num_tasks} tasks: one outer gradient"
    columns = ("rule", "level", "ms", "times the mean", "quartiles", "held", "held, vmap", "error")
    show(title, cells, columns)
    content = {"workload": options.workload, "num_tasks": options.num_tasks, "rows": rows}
    write(options.output, content)


if __name__ == "__main__":
    main()
