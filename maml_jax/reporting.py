"""What a run shows while it trains: a progress bar on a terminal, plain lines elsewhere."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from maml_jax.evaluation import Evaluation
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
