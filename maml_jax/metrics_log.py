"""The log of a run: one JSON object per line, appended, safe to cut anywhere."""

import json
import os
import pathlib
from typing import Any


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a log; a last line that was cut by a kill is left out.

    Args:
      path: the `metrics.jsonl` of a run; may be missing.

    Returns:
      The lines in order, each with a "step".

    Raises:
      ValueError: if a line before the last is not JSON.

    Example:
      >>> from maml_jax.metrics_log import read_metrics
      >>> read_metrics("no_such_run/metrics.jsonl")
      []
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    rows = []
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines) - 1:
                break  # No newline follows: a kill cut this line.
            raise ValueError(f"line {number + 1} of {path} is not JSON: {error}.") from error
    return rows


def truncate_metrics(path: str | os.PathLike, step: int) -> None:
    """Drops what was logged after a step, so that a resumed run repeats no line.

    Args:
      path: the `metrics.jsonl` of a run; may be missing.
      step: the step from which the run goes on.

    Example:
      >>> import pathlib, tempfile
      >>> from maml_jax.metrics_log import append_metrics, read_metrics, truncate_metrics
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "metrics.jsonl"
      ...     for step in (10, 20, 30):
      ...         append_metrics(path, {"step": step})
      ...     truncate_metrics(path, 20)
      ...     read_metrics(path)
      [{'step': 10}, {'step': 20}]
    """
    path = pathlib.Path(path)
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(temporary, path)


def append_metrics(path: str | os.PathLike, row: dict[str, Any]) -> None:
    """Appends one line.

    Args:
      path: the `metrics.jsonl` of a run; made if missing.
      row: plain values, with a "step".

    Example:
      >>> import pathlib, tempfile
      >>> from maml_jax.metrics_log import append_metrics
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     append_metrics(pathlib.Path(folder) / "metrics.jsonl", {"step": 1, "loss": 0.5})
    """
    with open(path, "a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")
