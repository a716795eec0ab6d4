"""The pictures of a run, from its log, its result and its parameters."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax import plots
from maml_jax.assembly import Problem, example_tasks
from maml_jax.evaluation import Evaluation
from maml_jax.inner_loop import MetaParams
from maml_jax.losses import predict
from maml_jax.tasks import Examples, Task

_CURVE_POINTS = 200


def draw_all(
    folder: pathlib.Path,
    problem: Problem,
    params: MetaParams,
    *,
    rows: list[dict[str, Any]],
    test: Evaluation,
    baselines: dict[str, float],
) -> list[pathlib.Path]:
    """Draws the learning curve, the inner steps, and what adaptation looks like.

    Args:
      folder: where the PNG files go.
      problem: the run's problem.
      params: the meta-parameters to show.
      rows: the run's log.
      test: the final evaluation.
      baselines: names and values of the headline metric without meta-learning.

    Returns:
      The files.
    """
    metric = _shown(test.metric)
    train_name = "accuracy" if test.metric == "accuracy" else "query_loss"
    calls = [row for row in rows if train_name in row]
    checks = [(row["step"], row["validation"]) for row in rows if "validation" in row]
    curve = plots.learning_curve(
        folder / "learning_curve.png",
        train_steps=[row["step"] for row in calls],
        train_values=[row[train_name] for row in calls],
        validation_steps=[step for step, _ in checks],
        validation_means=[value["means"][test.metric][-1] for _, value in checks],
        validation_half_widths=[value["half_widths"][test.metric][-1] for _, value in checks],
        metric=metric,
        baselines=baselines,
        test=(test.mean, test.half_width),
        title=f"Meta-test {metric} {test.headline()}",
    )
    steps = plots.inner_steps(
        folder / "inner_steps.png",
        steps=test.inner_steps,
        means=test.means[test.metric],
        half_widths=test.half_widths[test.metric],
        metric=metric,
        trained_steps=problem.config.inner_steps,
        title=f"{metric.capitalize()} on new tasks after each inner step",
    )
    draw = _draw_regression if problem.config.is_regression else _draw_images
    return [curve, steps, draw(folder / "adaptation.png", problem, params)]


def _shown(metric: str) -> str:
    return "mean squared error" if metric == "loss" else metric


def _draw_regression(path: pathlib.Path, problem: Problem, params: MetaParams) -> pathlib.Path:
    """Draws six test tasks with the prediction before adaptation and after."""
    last = problem.config.test_inner_steps
    shown = sorted({min(problem.config.inner_steps, last), last})
    tasks = example_tasks(problem, num_tasks=6)
    curve = jnp.linspace(-5.0, 5.0, _CURVE_POINTS)[:, None]

    @jax.jit
    def predictions(task):
        return _after_each_step(problem, params, task, Examples(inputs=curve, targets=curve))

    panels = []
    for index in range(6):
        task = jax.tree.map(lambda leaf, i=index: leaf[i], tasks)
        steps = np.asarray(predictions(task))[:, :, 0]
        order = np.argsort(task.query.inputs[:, 0])
        panels.append(
            {
                "support_inputs": np.asarray(task.support.inputs)[:, 0],
                "support_targets": np.asarray(task.support.targets)[:, 0],
                "curve_inputs": np.asarray(curve)[:, 0],
                "truth": _sine_through(
                    np.asarray(task.query.inputs)[order, 0],
                    np.asarray(task.query.targets)[order, 0],
                    np.asarray(curve)[:, 0],
                ),
                "before": steps[0],
                "after": {number: steps[number] for number in shown},
            }
        )
    return plots.regression_adaptation(path, tasks=panels)


def _sine_through(inputs: np.ndarray, targets: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Recovers y = a sin x + b cos x, which every sinusoid task is, from its noiseless data."""
    design = np.stack([np.sin(inputs), np.cos(inputs)], axis=1)
    a, b = np.linalg.lstsq(design, targets, rcond=None)[0]
    return a * np.sin(curve) + b * np.cos(curve)


def _draw_images(path: pathlib.Path, problem: Problem, params: MetaParams) -> pathlib.Path:
    """Draws test tasks with the predicted class of queries before adaptation and after."""
    count = 3 if problem.config.way <= 10 else 1
    tasks = example_tasks(problem, num_tasks=count)

    @jax.jit
    def probabilities(task):
        query = task.query
        if not problem.config.transductive:
            query = dataclasses.replace(query, reference=task.support)
        return jax.nn.softmax(_after_each_step(problem, params, task, query))

    panels = []
    for index in range(count):
        task = jax.tree.map(lambda leaf, i=index: leaf[i], tasks)
        steps = np.asarray(probabilities(task))
        panels.append(
            {
                "support_images": np.asarray(task.support.inputs),
                "support_labels": np.asarray(task.support.targets),
                "query_images": np.asarray(task.query.inputs),
                "query_labels": np.asarray(task.query.targets),
                "before": steps[0],
                "after": steps[-1],
            }
        )
    return plots.image_adaptation(path, tasks=panels)


def _after_each_step(problem: Problem, params: MetaParams, task: Task, examples: Examples):
    """Predicts after 0, 1, … inner steps: `[K + 1, N, ...]`."""
    observe = problem.inner.observe
    assert observe is not None  # Every inner loop that a configuration can name has one.
    return observe(
        problem.loss_fn,
        params,
        task.support,
        lambda adapted: predict(problem.apply_fn, adapted, examples),
        num_steps=problem.config.test_inner_steps,
    )
