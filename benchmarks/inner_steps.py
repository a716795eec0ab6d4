"""A measure of our compiled outer gradient against inner steps and mode of differentiation."""

import argparse
import itertools
import pathlib

import report_table
import workloads


def sweep(description, measure, columns, *, title, num_tasks, inner_steps, output):
    """Measures every combination, prints the table, writes the JSON file.

    Args:
      description: what the program's help says.
      measure: `(workload, num_tasks, inner steps, mode) -> {name: number}`.
      columns: from the names of the numbers to heading and format, such as ("MiB", ".0f").
      title: of the table.
      num_tasks: default number of tasks.
      inner_steps: default numbers of inner steps.
      output: default name of the JSON file.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--workloads", nargs="+", default=["W2"])
    parser.add_argument("--num-tasks", type=int, default=num_tasks)
    parser.add_argument("--inner-steps", nargs="+", type=int, default=inner_steps)
    modes = list(workloads.MODES)
    parser.add_argument("--modes", nargs="+", choices=modes, default=modes)
    folder = pathlib.Path(__file__).parent / "results"
    parser.add_argument("--output", type=pathlib.Path, default=folder / output)
    options = parser.parse_args()
    results, rows = [], []
    cases = itertools.product(options.workloads, options.modes, options.inner_steps)
    for name, mode, num_steps in cases:
        numbers = measure(name, options.num_tasks, num_steps, mode)
        settings = {"workload": name, "mode": mode, "num_steps": num_steps}
        results.append({**settings, "num_tasks": options.num_tasks, **numbers})
        shown = (format(numbers[key], form) for key, (_, form) in columns.items())
        rows.append((name, mode, str(num_steps), *shown))
        report_table.write(options.output, {"results": results})
    headings = ("", "mode", "inner steps", *(heading for heading, _ in columns.values()))
    report_table.show(title, rows, headings)
