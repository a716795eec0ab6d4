"""A run: one folder that holds a configuration, how it trained, and what came out.

config.json           the configuration and the versions it was started with
metrics.jsonl         the log
checkpoints/          the newest two
result.json           the final evaluation with its protocol and baselines
learning_curve.png, inner_steps.png, adaptation.png
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
from typing import Any

import jax
from rich.console import Console

from maml_jax import training
from maml_jax.assembly import Problem, assemble, pixel_baseline
from maml_jax.evaluation import Evaluation
from maml_jax.metrics_log import read_metrics
from maml_jax.pictures import draw_all
from maml_jax.recipes import Config
from maml_jax.reporting import progress_report

_PACKAGES = ("maml-jax", "jax", "jaxlib", "flax", "optax", "numpy")


def new_run_dir(name: str, root: str | os.PathLike = "runs") -> pathlib.Path:
    """Picks a folder that no run has: `runs/NAME`, then `runs/NAME-2` and so on.

    Args:
      name: of the run.
      root: folder of all runs.

    Returns:
      The folder, not yet made.

    Example:
      >>> from maml_jax.runs import new_run_dir
      >>> new_run_dir("first", root="no_such_folder").name
      'first'
    """
    path, number = pathlib.Path(root) / name, 1
    while path.exists():
        number += 1
        path = pathlib.Path(root) / f"{name}-{number}"
    return path


def start_run(config: Config, run_dir: str | os.PathLike, *, console: Console) -> dict[str, Any]:
    """Trains a configuration in a new folder, evaluates it, and draws its pictures.

    Args:
      config: what to train.
      run_dir: a folder that holds no run yet.
      console: where to report.

    Returns:
      What `result.json` holds.

    Raises:
      FileExistsError: if the folder holds a run.
      TrainingStopped: after a stop signal, when the state is saved.
    """
    run_dir = pathlib.Path(run_dir)
    if (run_dir / "config.json").exists():
        raise FileExistsError(
            f"{run_dir} holds a run already; go on with `maml-jax resume {run_dir}`, or name "
            "another folder with --run-dir."
        )
    problem = assemble(config)
    training.checkpoints.check_writable(run_dir / "checkpoints", 0)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    _write_json(
        run_dir / "config.json", {"config": dataclasses.asdict(config), "versions": versions}
    )
    return _train(problem, run_dir, training.start(problem.outer, problem.params), console)


def resume_run(run_dir: str | os.PathLike, *, console: Console) -> dict[str, Any]:
    """Goes on with a run from its newest sound checkpoint, bit for bit.

    Args:
      run_dir: the run's folder.
      console: where to report.

    Returns:
      What `result.json` holds.

    Raises:
      FileNotFoundError: if the folder holds no run.
      CheckpointCorruptError: if no checkpoint is sound.
    """
    run_dir = pathlib.Path(run_dir)
    problem = assemble(read_config(run_dir))
    progress = training.start(problem.outer, problem.params)
    progress = training.resume(run_dir, progress, _settings(problem.config))
    console.print(f"resuming after step {progress.step:,}", highlight=False)
    return _train(problem, run_dir, progress, console)


def evaluate_run(run_dir: str | os.PathLike, **changes: Any) -> Evaluation:
    """Evaluates the best parameters of a run on meta-test tasks.

    Args:
      run_dir: the run's folder.
      **changes: protocol settings that differ from the run's: `num_tasks`, `num_steps`,
        `transductive`.

    Returns:
      The evaluation.

    Raises:
      FileNotFoundError: if the folder holds no run, or the run no checkpoint.
    """
    problem, progress = load_run(run_dir)
    return problem.evaluate(progress.best_params, "test", **changes)


def plot_run(run_dir: str | os.PathLike) -> list[pathlib.Path]:
    """Draws the pictures of a run anew; evaluates first if it has no result yet.

    Args:
      run_dir: the run's folder.

    Returns:
      The files.

    Raises:
      FileNotFoundError: if the folder holds no run, or the run no checkpoint.
    """
    run_dir = pathlib.Path(run_dir)
    problem, progress = load_run(run_dir)
    if not (run_dir / "result.json").exists():
        return _finish(problem, run_dir, progress)[1]
    result = json.loads((run_dir / "result.json").read_text())
    names = [field.name for field in dataclasses.fields(Evaluation)]
    test = Evaluation(**{name: result["test"][name] for name in names})
    return _draw(problem, run_dir, progress, test, result["baselines"])


def read_config(run_dir: str | os.PathLike) -> Config:
    """Reads the configuration of a run.

    Args:
      run_dir: the run's folder.

    Returns:
      The configuration.

    Raises:
      FileNotFoundError: if the folder holds no run.
      ValueError: if the file has a field that this version does not know.
    """
    path = pathlib.Path(run_dir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{run_dir} holds no run (no config.json); start one with `maml-jax train`."
        )
    fields = json.loads(path.read_text())["config"]
    unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(Config)})
    if unknown:
        raise ValueError(
            f"{path} has fields that this version does not know: {unknown}; use the version "
            "named in the file."
        )
    return Config(**fields)


def load_run(run_dir: str | os.PathLike) -> tuple[Problem, training.Progress]:
    """Reads a run: its problem, and its newest sound checkpoint.

    Args:
      run_dir: the run's folder.

    Returns:
      The problem and the progress.

    Raises:
      FileNotFoundError: if the folder holds no run, or the run no checkpoint.
    """
    run_dir = pathlib.Path(run_dir)
    problem = assemble(read_config(run_dir))
    before = training.start(problem.outer, problem.params)
    progress = training.resume(run_dir, before, _settings(problem.config))
    if progress is before:
        raise FileNotFoundError(
            f"{run_dir} has no checkpoint yet; train it with `maml-jax resume {run_dir}`."
        )
    return problem, progress


def _train(
    problem: Problem, run_dir: pathlib.Path, progress: training.Progress, console: Console
) -> dict[str, Any]:
    config = problem.config
    schedule = training.Schedule(**{field.name: value for field, value in _schedule_fields(config)})
    with progress_report(console, first_step=progress.step, num_steps=config.outer_steps) as report:
        progress = training.train(
            problem.outer,
            problem.meta_train,
            progress,
            problem.key("train"),
            run_dir=run_dir,
            schedule=schedule,
            validate=lambda params: problem.evaluate(params, "validation"),
            report=report,
            config=_settings(config),
        )
    return _finish(problem, run_dir, progress)[0]


def _schedule_fields(config: Config):
    names = {"num_steps": "outer_steps"}
    for field in dataclasses.fields(training.Schedule):
        yield field, getattr(config, names.get(field.name, field.name))


def _finish(problem: Problem, run_dir: pathlib.Path, progress: training.Progress):
    """Evaluates the best parameters and the baselines, writes the result, draws."""
    test = problem.evaluate(progress.best_params, "test")
    untrained = problem.evaluate(problem.inner.init(problem.params), "test")
    baselines = {"untrained": untrained.mean}
    if not problem.config.is_regression:
        pixels = pixel_baseline(problem, num_tasks=problem.config.test_tasks)
        baselines = {"nearest neighbour in pixels": pixels, **baselines}
    result = {
        "test": test.as_dict(),
        "summary": str(test),
        "baselines": baselines,
        "reported": problem.config.reported,
        "outer_steps": progress.step,
        "best_step": int(progress.best_step),
        "training_seconds": _training_seconds(run_dir),
    }
    _write_json(run_dir / "result.json", result)
    return result, _draw(problem, run_dir, progress, test, baselines)


def _draw(problem, run_dir, progress, test, baselines) -> list[pathlib.Path]:
    rows = read_metrics(run_dir / "metrics.jsonl")
    return draw_all(
        run_dir, problem, progress.best_params, rows=rows, test=test, baselines=baselines
    )


def _training_seconds(run_dir: pathlib.Path) -> float:
    return sum(row.get("seconds", 0.0) for row in read_metrics(run_dir / "metrics.jsonl"))


def _settings(config: Config) -> dict[str, Any]:
    """Gives what must be equal for a checkpoint to be this run's: not where the data lie."""
    settings = dataclasses.asdict(config)
    del settings["data_dir"]
    return {**settings, "x64": bool(jax.config.jax_enable_x64)}


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
