"""Diagnosing a preset, or a run, and the picture of it: what `maml-jax diagnose` does."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator

from maml_jax import plots
from maml_jax.assembly import Problem
from maml_jax.diagnosis import Diagnosis
from maml_jax.outer_loop import run_outer_steps
from maml_jax.outer_state import OuterState
from maml_jax.run_folder import write_json

# Steps at which a preset is measured, until time is up.
_PACE = (0, 10, 30, 100, 300, 1000)


def diagnose_preset(
    problem: Problem, *, budget: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[Diagnosis]:
    """Trains a little, and measures at the start and after 10, 30, 100, … outer steps.

    Args:
      problem: what to train.
      budget: seconds after which no further stretch is begun that would take longer.
      clock: gives seconds.

    Yields:
      Each diagnosis when it is made.
    """
    began = now = clock()
    state, last, ahead = problem.outer.init(problem.params), 0, 0.0
    for index, step in enumerate(_PACE):
        if index > 1 and now - began + ahead > budget:
            return
        state = _train(problem, state, step - last)
        trained = clock()
        yield problem.diagnose(state)
        before, now = now, clock()
        if index + 1 < len(_PACE) and step > last:
            longer = (_PACE[index + 1] - step) / (step - last)
            ahead = (trained - before) * longer + now - trained
        last = step


def diagnose_run(problem: Problem, best: OuterState, last: OuterState) -> Iterator[Diagnosis]:
    """Measures a run before training, at its best parameters, and at its last.

    Args:
      problem: the run's problem.
      best: a state with the best parameters and their step.
      last: the newest state.

    Yields:
      Each diagnosis when it is made, in the order of steps.
    """
    yield problem.diagnose(problem.outer.init(problem.params))
    if 0 < int(best.step) < int(last.step):
        yield problem.diagnose(best)
    if int(last.step) > 0:
        yield problem.diagnose(last)


def keep(folder: pathlib.Path, found: list[Diagnosis]) -> list[pathlib.Path]:
    """Writes diagnoses, made one after the other in training, and draws the last.

    Args:
      folder: where to.
      found: at least one.

    Returns:
      The files, `diagnosis.json` and `diagnosis.png`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "diagnosis.json"
    write_json(written, {"diagnoses": [one.as_dict() for one in found]})
    last = found[-1]
    pairs = [one.estimates["divisor"] for one in found]
    picture = plots.diagnosis(
        folder / "diagnosis.png",
        cosines=last.cosines,
        worth=last.worth,
        meta_batch_size=last.facts.meta_batch_size,
        steps=[one.step for one in found],
        divisors=[value for value, _ in pairs],
        half_widths=[half for _, half in pairs],
    )
    return [written, picture]


def state_at(problem: Problem, params, step) -> OuterState:
    """Makes a state of parameters alone, for a diagnosis.

    Args:
      problem: the run's problem.
      params: its meta-parameters.
      step: the outer step they are of.

    Returns:
      A state with a fresh optimizer.
    """
    fresh = problem.outer.init(problem.params)
    return dataclasses.replace(fresh, params=params, step=step)


def _train(problem: Problem, state: OuterState, num_steps: int) -> OuterState:
    """Makes outer steps ten at a time: one program serves every stretch."""
    for _ in range(num_steps // 10):
        state, _ = run_outer_steps(
            problem.outer,
            problem.meta_train,
            state,
            problem.key("train"),
            num_steps=10,
            meta_batch_size=problem.config.meta_batch_size,
        )
    return state
