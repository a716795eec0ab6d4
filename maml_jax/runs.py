"""A run: one folder that holds a configuration, how it trained, and what came out.

config.json           the configuration and the versions it was started with
metrics.jsonl         the log
checkpoints/          the newest two
result.json           the final evaluation with its protocol and baselines
learning_curve.png, inner_steps.png, adaptation.png

Where the device runs out of memory, every function here raises `MemoryError` with what
was asked of it and what to lower; checkpoints that are there stay.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from maml_jax import checkpoints, diagnosing, memory_errors, processes, run_lock, training
from maml_jax.assembly import Problem, assemble, pixel_baseline
from maml_jax.diagnosis import Diagnosis
from maml_jax.evaluation import Evaluation
from maml_jax.metrics_log import read_metrics
from maml_jax.pictures import draw_all
from maml_jax.recipes import Config
from maml_jax.reporting import progress_report, say
from maml_jax.run_folder import (
    checked_settings,
    comparable_settings,
    read_result,
    read_settings,
    resume_command,
    write_config,
    write_json,
)
from maml_jax.run_folder import claim_run_dir as claim_run_dir
from maml_jax.run_folder import read_config as read_config


def start_run(config: Config, run_dir: str | os.PathLike, *, console: Console) -> dict[str, Any]:
    """Trains a configuration in a new folder, evaluates it, and draws its pictures.

    Args:
      config: what to train.
      run_dir: a folder that holds no run yet.
      console: where to report.

    Returns:
      What `result.json` holds.

    Raises:
      FileExistsError: if the folder holds a run, or checkpoints of one.
      CheckpointWriteError: if the folder cannot be written.
      RunLockedError: if another process trains in it.
      TrainingStopped: after a stop signal, when the state is saved.
    """
    run_dir = pathlib.Path(run_dir)
    processes.first_does(lambda: _check_new(run_dir))
    with memory_errors.explained(config):
        problem = assemble(config)
        processes.first_does(lambda: checkpoints.check_writable(run_dir / "checkpoints", 0))
        with run_lock.held(run_dir, lambda line: say(console, line)):
            processes.first_does(lambda: _begin(run_dir, config))
            return _train(problem, run_dir, training.start(problem.outer, problem.params), console)


def resume_run(run_dir: str | os.PathLike, *, console: Console) -> dict[str, Any]:
    """Goes on with a run from its newest sound checkpoint, bit for bit.

    A run that has no checkpoint yet starts at step 0; one that is trained to the end is
    only evaluated and drawn again.

    Args:
      run_dir: the run's folder.
      console: where to report.

    Returns:
      What `result.json` holds.

    Raises:
      FileNotFoundError: if the folder holds no run.
      CheckpointCorruptError: if there are checkpoints, but none is sound.
      CheckpointWriteError: if the folder cannot be written.
      RunLockedError: if another process trains in the folder.
      TrainingStopped: after a stop signal, when the state is saved.
    """
    run_dir = pathlib.Path(run_dir)
    settings = _settings_for_all(run_dir)
    config = Config(**settings)
    processes.first_does(lambda: checkpoints.check_writable(run_dir / "checkpoints", 0))
    with memory_errors.explained(config):
        problem = assemble(config)
        fresh = training.start(problem.outer, problem.params)
        with run_lock.held(run_dir, lambda line: say(console, line)):
            progress = training.resume(run_dir, fresh, comparable_settings(settings))
            if progress is fresh:
                line = "There is no checkpoint yet: starting at step 0."
            elif progress.step >= config.outer_steps:
                line = f"All {progress.step:,} steps are done: evaluating again."
            else:
                line = f"Going on after step {progress.step:,} of {config.outer_steps:,}."
            say(console, line)
            return _train(problem, run_dir, progress, console)


def _check_new(run_dir: pathlib.Path) -> None:
    if (run_dir / "config.json").exists() or checkpoints.steps(run_dir / "checkpoints"):
        raise FileExistsError(
            f"{run_dir} holds a run already; go on with `{resume_command(run_dir)}`, or name "
            "another folder with --run-dir."
        )


def _begin(run_dir: pathlib.Path, config: Config) -> None:
    _check_new(run_dir)  # Another process may have begun one since.
    write_config(run_dir, config)


def _settings_for_all(run_dir: pathlib.Path) -> dict[str, Any]:
    """Reads the settings where the folder is, and gives them to all processes."""
    return json.loads(processes.from_first(lambda: json.dumps(read_settings(run_dir)).encode()))


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
    return _evaluated(problem, progress.best_params, "test", **changes)


def plot_run(run_dir: str | os.PathLike) -> list[pathlib.Path]:
    """Draws the pictures of a run anew; evaluates first if its result is not of its last step.

    Args:
      run_dir: the run's folder.

    Returns:
      The files.

    Raises:
      FileNotFoundError: if the folder holds no run, or the run no checkpoint.
      ValueError: if `result.json` is damaged.
    """
    run_dir = pathlib.Path(run_dir)
    problem, progress = load_run(run_dir)
    with memory_errors.explained(problem.config):
        result = read_result(run_dir)
        if result is None or result.outer_steps != progress.step:
            return _finish(problem, run_dir, progress)[1]
        return _draw(problem, run_dir, progress, result.test, result.baselines)


def diagnose_preset(config: Config, *, budget: float) -> Iterator[Diagnosis]:
    """Trains a configuration for a little while, and measures how task gradients relate.

    Args:
      config: what to train.
      budget: seconds after which no further stretch of training is begun.

    Yields:
      Each diagnosis when it is made.
    """
    with memory_errors.explained(config):
        yield from diagnosing.diagnose_preset(assemble(config), budget=budget)


def diagnose_run(run_dir: str | os.PathLike) -> Iterator[Diagnosis]:
    """Measures how task gradients of a run relate: untrained, at its best, and at its end.

    Args:
      run_dir: the run's folder.

    Yields:
      Each diagnosis when it is made.

    Raises:
      FileNotFoundError: if the folder holds no run, or the run no checkpoint.
    """
    problem, progress = load_run(run_dir)
    best = diagnosing.state_at(problem, progress.best_params, progress.best_step)
    with memory_errors.explained(problem.config):
        yield from diagnosing.diagnose_run(problem, best, progress.state)


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
    settings = read_settings(run_dir)
    config = Config(**settings)
    with memory_errors.explained(config):
        problem = assemble(config)
        before = training.start(problem.outer, problem.params)
        progress = training.resume(run_dir, before, comparable_settings(settings))
    if progress is before:
        raise FileNotFoundError(
            f"{run_dir} has no checkpoint yet; train it with `{resume_command(run_dir)}`."
        )
    return problem, progress


def _train(
    problem: Problem, run_dir: pathlib.Path, progress: training.Progress, console: Console
) -> dict[str, Any]:
    config = problem.config
    steps = {"first_step": progress.step, "num_steps": config.outer_steps}
    with progress_report(console, **steps) as report:
        progress = training.train(
            problem.outer,
            problem.meta_train,
            progress,
            problem.key("train"),
            run_dir=run_dir,
            schedule=_schedule(config),
            validate=lambda params: _evaluated(problem, params, "validation"),
            diagnose=problem.diagnose,
            report=report,
            config=checked_settings(config),
        )
    return _finish(problem, run_dir, progress)[0]


def _schedule(config: Config) -> training.Schedule:
    return training.Schedule(
        num_steps=config.outer_steps,
        meta_batch_size=config.meta_batch_size,
        steps_per_call=config.steps_per_call,
        validate_every=config.validate_every,
        checkpoint_every=config.checkpoint_every,
        diagnose_every=config.diagnose_every,
    )


def _evaluated(problem: Problem, params: Any, split: str, **changes: Any) -> Evaluation:
    with memory_errors.explained(problem.config, evaluating=True):
        return problem.evaluate(params, split, **changes)


def _finish(problem: Problem, run_dir: pathlib.Path, progress: training.Progress):
    """Evaluates the best parameters and the baselines; process 0 writes the result and draws."""
    test = _evaluated(problem, progress.best_params, "test")
    untrained = _evaluated(problem, problem.inner.init(problem.params), "test")
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
    }
    if not processes.is_first():
        return result, []
    rows = read_metrics(run_dir / "metrics.jsonl")
    result["training_seconds"] = sum(row.get("seconds", 0.0) for row in rows)
    write_json(run_dir / "result.json", result)
    return result, _draw(problem, run_dir, progress, test, baselines)


def _draw(problem, run_dir, progress, test, baselines) -> list[pathlib.Path]:
    rows = read_metrics(run_dir / "metrics.jsonl")
    # The other processes do not draw: what pictures need is computed here alone.
    params, meta_test = processes.on_this_process((progress.best_params, problem.meta_test))
    problem = dataclasses.replace(problem, meta_test=meta_test)
    return draw_all(run_dir, problem, params, rows=rows, test=test, baselines=baselines)
