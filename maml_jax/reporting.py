"""What is shown of a run and of measurements: a progress bar, lines, tables."""

import contextlib
import functools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from maml_jax.bench import Measured
from maml_jax.diagnosing import keep
from maml_jax.diagnosis import Diagnosis
from maml_jax.evaluation import Evaluation
from maml_jax.recipes import PRESETS
from maml_jax.training import Report


@contextlib.contextmanager
def progress_report(console: Console, *, first_step: int, num_steps: int) -> Iterator[Report]:
    """Shows a progress bar, if the console is a terminal, and a line per validation.

    Args:
      console: where to show it.
      first_step: the step from which training goes on.
      num_steps: the last step.

    Yields:
      A `Report` for `training.train`.

    Example:
      >>> from rich.console import Console
      >>> from maml_jax.reporting import progress_report
      >>> with progress_report(Console(quiet=True), first_step=0, num_steps=10) as report:
      ...     report(5, {"query_loss": 1.0}, None)
    """
    bar = Progress(
        TextColumn("meta-training"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
        TextColumn("{task.fields[shown]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        # A second Ctrl-C kills at once, and must not leave a terminal without a cursor.
        console.show_cursor(True)
        row = bar.add_task("", total=num_steps, completed=first_step, shown="compiling")

        def report(step: int, metrics: dict[str, float], evaluation: Evaluation | None) -> None:
            if evaluation is not None:
                bar.console.print(_validation_line(step, evaluation), highlight=False)
                return
            bar.update(row, completed=step, shown=_summary(metrics))

        yield report


def result_table(result: dict[str, Any]) -> Table:
    """Puts the result of a run beside its baselines.

    Args:
      result: what `runs.start_run` returns.

    Returns:
      A table for a console.
    """
    test = result["test"]
    table = Table(title=f"meta-test, {test['num_tasks']:,} tasks", title_justify="left")
    for column in ("", test["metric"], "95% interval"):
        table.add_column(column)
    show = "{:.2%}".format if test["metric"] == "accuracy" else "{:.4f}".format
    half_width = test["half_widths"][test["metric"]][-1]
    table.add_row("meta-learned", show(test["mean"]), "± " + show(half_width))
    for name, value in result["baselines"].items():
        table.add_row(name, show(value), "")
    return table


def say(console: Console, line: str) -> None:
    """Prints a line as it is: a path in it may be long, and hold brackets.

    Args:
      console: where to.
      line: the line.
    """
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def report_presets() -> None:
    """Prints what can be trained by name, and what its source reports."""
    columns = "{:<30} {:>10}  {:>11}  {:>5}  {:>11}"
    print(columns.format("preset", "inner rate", "inner steps", "tasks", "outer steps"))
    for name, config in PRESETS.items():
        steps = f"{config.inner_steps} / {config.test_inner_steps}"
        rate, outer_steps = f"{config.inner_learning_rate:g}", f"{config.outer_steps:,}"
        print(columns.format(name, rate, steps, config.meta_batch_size, outer_steps))
        if config.reported:
            print(f"    reported: {config.reported}")
    print("Inner rates are for the mean loss over the support set; steps in training / at test.")


def report_bench(console: Console, name: str, measured: Iterable[Measured]) -> None:
    """Shows each measurement as it comes, then what to do with them.

    Args:
      console: where to show it.
      name: of what was measured.
      measured: at least one measurement.
    """
    show = functools.partial(console.print, highlight=False, soft_wrap=True)
    all_of_them = []
    for one in measured:
        all_of_them.append(one)
        show(_bench_line(one))
    best = max(all_of_them, key=lambda one: one.rate)
    (auto,) = (one for one in all_of_them if one.is_default)
    seconds = 1000 * best.seconds
    time = f"{seconds / 60:.1f} minutes" if seconds > 100 else f"{seconds:.1f} seconds"
    show(f"Fastest: {_setting(best)}; 1,000 outer steps take {time}.")
    if best is auto:
        show(f"`maml-jax train {name}` runs it this way.")
    elif best.rate < 1.1 * auto.rate:
        show(f"`maml-jax train {name}` takes {_setting(auto)}, as fast within 10%.")
    else:
        times = best.rate / auto.rate
        show(
            f"`maml-jax train {name}` takes {_setting(auto)}, which is {times:.1f} times slower "
            f"here; in a script, give make_outer_step task_axis={best.task_axis!r}."
        )


def report_diagnoses(console: Console, found: Iterable[Diagnosis], folder: pathlib.Path) -> None:
    """Shows a line for each diagnosis as it comes, the last one whole, and keeps them all.

    Args:
      console: where to show it.
      found: at least one diagnosis.
      folder: where the files go.
    """
    made = []
    for one in found:
        made.append(one)
        say(console, _diagnosis_line(one))
    say(console, f"\n{made[-1]}")
    files = keep(folder, made)
    say(console, "\n" + " and ".join(path.name for path in files) + f" are in {folder}")


def _diagnosis_line(one: Diagnosis) -> str:
    gain, divisor = one.estimates["gain"][0], one.estimates["divisor"][0]
    size = one.facts.meta_batch_size
    return (
        f"step {one.step:6,}: a step with {size} tasks is worth {gain:.1f} steps with one; divisor "
        f"{divisor:.1f}, between the sum's 1 and the mean's {size}"
    )


def _setting(one: Measured) -> str:
    devices = "1 device" if one.num_devices == 1 else f"{one.num_devices} devices"
    return f"task_axis={one.task_axis!r} on {devices}"


def _bench_line(one: Measured) -> str:
    memory = "" if one.temporary_bytes is None else f", {one.temporary_bytes / 2**20:,.0f} MiB"
    return (
        f"{_setting(one):34} {one.rate:9,.0f} tasks/s  {1e3 * one.seconds:9,.2f} ms a step "
        f"of {one.num_tasks} tasks (compiled in {one.compile_seconds:.1f} s{memory})"
    )


def _validation_line(step: int, evaluation: Evaluation) -> str:
    after = f"after {evaluation.inner_steps[-1]} inner step"
    plural = "" if evaluation.inner_steps[-1] == 1 else "s"
    return f"step {step:6,}: validation {evaluation.metric} {evaluation.headline()} {after}{plural}"


def _summary(metrics: dict[str, float]) -> str:
    """Puts the training metrics of one call in a few words."""
    if "query_loss" not in metrics:
        return "no task counted"
    loss = f"loss {metrics['query_loss']:.3f}"
    return f"{loss}, accuracy {metrics['accuracy']:.1%}" if "accuracy" in metrics else loss
