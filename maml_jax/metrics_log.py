"""The log of a run: one JSON object per line, appended, safe to cut anywhere."""

import json
import os
import pathlib
from typing import Any

import numpy as np

from maml_jax.atomic_files import written_whole
from maml_jax.file_errors import naming

_COUNTS = ("n_nonfinite", "n_valid")


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
    lines = path.read_text(encoding="utf-8").split("\n")
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

    Raises:
      ValueError: as in `read_metrics`.

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
    with written_whole(path) as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in kept)


def append_metrics(path: str | os.PathLike, row: dict[str, Any]) -> None:
    """Appends one line; returns when it is safely on disk.

    Args:
      path: the `metrics.jsonl` of a run; made if missing.
      row: plain values, with a "step".

    Example:
      >>> import pathlib, tempfile
      >>> from maml_jax.metrics_log import append_metrics
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     append_metrics(pathlib.Path(folder) / "metrics.jsonl", {"step": 1, "loss": 0.5})
    """
    with naming(path), open(path, "a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")
        log.flush()
        # A checkpoint must not outlive, in a power cut, the lines that led to it.
        os.fsync(log.fileno())


def average_metrics(metrics: dict[str, np.ndarray]) -> dict[str, float]:
    """Averages the metrics of several outer steps.

    A step of which no task counts has no loss: it enters the averages of the counts
    `n_valid` and `n_nonfinite` only. If all steps are such, only those two are given.

    Args:
      metrics: what `run_outer_steps` gives, each `[S]` for `S` outer steps.

    Returns:
      The averages.

    Example:
      >>> import numpy as np
      >>> from maml_jax.metrics_log import average_metrics
      >>> metrics = {"n_valid": [4, 0], "n_nonfinite": [0, 4], "query_loss": [1.5, 0.0]}
      >>> average_metrics({name: np.array(values) for name, values in metrics.items()})
      {'n_valid': 2.0, 'n_nonfinite': 2.0, 'query_loss': 1.5}
    """
    alive = metrics["n_valid"] > 0
    return {
        name: float(np.mean(values if name in _COUNTS else values[alive]))
        for name, values in metrics.items()
        if name in _COUNTS or alive.any()
    }
