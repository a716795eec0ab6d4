"""The training loop: what it logs, when it validates and saves, what it keeps, when it stops.

The oracle is the outer steps made one by one outside of the loop, or counting by hand.
"""

import dataclasses
import itertools
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maml_jax as mj
from maml_jax import checkpoints, training
from maml_jax.metrics_log import average_metrics
from maml_jax.training import Schedule
from training_runs import (
    CALL_ENDS,
    CONFIG,
    KEY,
    OUTER,
    SAMPLER,
    SCHEDULE,
    SKIPPING,
    bits,
    broken,
    evaluation_of,
    fresh,
    quick_compilation,  # noqa: F401
    resumed,
    rows,
    train,
    validate,
)


@pytest.fixture(scope="module")
def by_hand():
    """The states after 0, 1, … 14 outer steps, and the metrics of each, without the loop."""
    states, metrics = [OUTER.init(jnp.zeros((3, 1)))], []
    for step in range(14):
        tasks = mj.meta_batch(SAMPLER, jax.random.fold_in(KEY, step), 2)
        state, measured = OUTER.update(states[-1], tasks)
        states.append(state)
        metrics.append(jax.device_get(measured))
    return states, metrics


def test_log_has_a_line_per_call_and_per_validation(tmp_path, by_hand, tolerance):
    """Oracle: the steps made by hand; and that what is reported is what is logged."""
    told = []
    progress = train(tmp_path, report=lambda *what: told.append(what))
    logged = rows(tmp_path)
    states, metrics = by_hand
    calls = [row for row in logged if "validation" not in row]
    validations = [row for row in logged if "validation" in row]
    assert [row["step"] for row in calls] == CALL_ENDS
    # 5 is reached by the call that ends at 6, 10 by that which ends at 12; and the end.
    assert [row["step"] for row in validations] == [6, 12, 14]
    assert [row["step"] for row in logged] == [3, 6, 6, 9, 12, 12, 14, 14]
    near = {"rel": 100 * tolerance}
    for row, (first, last) in zip(calls, itertools.pairwise([0, *CALL_ENDS]), strict=True):
        for name in ("query_loss", "support_loss", "grad_norm"):
            wanted = np.mean([measured[name] for measured in metrics[first:last]])
            assert row[name] == pytest.approx(wanted, **near)
        assert (row["n_valid"], row["n_nonfinite"]) == (2, 0)
    for row in validations:
        evaluation = validate(states[row["step"]].params)
        assert row["validation"]["mean"] == pytest.approx(evaluation.mean, abs=100 * tolerance)
        assert set(row["validation"]) == set(evaluation.as_dict())
    np.testing.assert_allclose(progress.state.params, states[-1].params, rtol=100 * tolerance)
    assert [
        {"step": step, **averages}
        if evaluation is None
        else {"step": step, "mean": evaluation.mean}
        for step, averages, evaluation in told
    ] == [
        {"step": row["step"], "mean": row["validation"]["mean"]} if "validation" in row else row
        for row in logged
    ]


@pytest.mark.parametrize("every", [1, 2, 3, 5, 7, 20])
@pytest.mark.parametrize("per_call", [1, 3, 4, 20])
def test_schedule_arithmetic(per_call, every):
    """Oracle: counting step by step."""
    schedule = Schedule(num_steps=10, meta_batch_size=1, steps_per_call=per_call)
    ends = [step for step in range(1, 11) if step % per_call == 0 or step == 10]
    for before, end in itertools.pairwise([0, *ends]):
        assert [schedule.call_end(step) for step in range(before, end)] == [end] * (end - before)
        reached = any(step % every == 0 for step in range(before + 1, end + 1))
        assert schedule.is_due(every, before=before, after=end) == (reached or end == 10)


@pytest.mark.parametrize(
    "name", ["num_steps", "meta_batch_size", "steps_per_call", "validate_every", "checkpoint_every"]
)
def test_schedule_refuses_zero(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Schedule(**{"num_steps": 1, "meta_batch_size": 1, name: 0})


def test_saves_when_due(tmp_path, monkeypatch):
    """Oracle: by hand: 4, 8, 12 are reached at 6, 9, 12, and the end is at 14."""
    saved = []
    monkeypatch.setattr(checkpoints, "save", lambda folder, step, state, config: saved.append(step))
    train(tmp_path)
    assert saved == [6, 9, 12, 14]


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("accuracy", [0.2, 0.5, 0.5, 0.4], 2),
        ("accuracy", [0.9, 0.5, 0.7, 0.8], 1),
        ("loss", [2.0, 1.0, 1.0, 1.5], 2),
        ("loss", [2.0, 3.0, 1.0, 0.5], 4),
        ("loss", [math.nan, 3.0, math.nan, 4.0], 2),
        ("loss", [math.nan, math.inf, 4.0, 5.0], 3),
    ],
)
def test_best_parameters_are_kept(tmp_path, metric, values, best):
    """Oracle: the parameters that the best validation saw; the earlier one of a tie."""
    seen, left = [], list(values)

    def scripted(params):
        seen.append(params)
        return evaluation_of(left.pop(0), metric)

    schedule = dataclasses.replace(SCHEDULE, num_steps=8, steps_per_call=2, validate_every=2)
    progress = train(tmp_path, schedule=schedule, validate=scripted)
    assert left == []
    assert int(progress.best_step) == 2 * best
    assert float(progress.best_value) == values[best - 1]
    assert bits(progress.best_params) == bits(seen[best - 1])
    assert (bits(progress.best_params) == bits(progress.state.params)) == (best == 4)
    assert bits(training.resume(tmp_path, fresh(), CONFIG)) == bits(progress)


def test_without_validation_the_last_parameters_are_kept(tmp_path):
    progress = train(tmp_path, validate=None)
    assert bits(progress.best_params) == bits(progress.state.params)
    assert bits(progress.best_params) != bits(fresh().best_params)
    assert int(progress.best_step) == 14
    assert not any("validation" in row for row in rows(tmp_path))
    assert bits(training.resume(tmp_path, fresh(), CONFIG)) == bits(progress)


def test_a_run_made_longer_ends_where_one_does_that_was_so_from_the_start(
    tmp_path, by_hand, tolerance
):
    """Its calls still end at multiples of 5; calls of other lengths may round otherwise."""
    schedule = dataclasses.replace(SCHEDULE, num_steps=3, steps_per_call=5)
    train(tmp_path, schedule=schedule)
    progress = resumed(tmp_path, schedule=dataclasses.replace(schedule, num_steps=5))
    assert [row["step"] for row in rows(tmp_path) if "validation" not in row] == [3, 5]
    np.testing.assert_allclose(progress.state.params, by_hand[0][5].params, rtol=100 * tolerance)


def test_a_new_start_in_the_same_folder_starts_the_log_anew(tmp_path):
    """Where the one before left no checkpoint, as after a failure before the first."""
    train(tmp_path)
    before = rows(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    train(tmp_path)
    assert rows(tmp_path) == before


def test_a_new_start_does_not_mix_with_the_checkpoints_of_another(tmp_path):
    """Else `resume` would go on with the other; nothing of it is touched. Damaged ones may stay."""
    train(tmp_path)
    kept = checkpoints.steps(tmp_path / "checkpoints")
    before = rows(tmp_path)
    with pytest.raises(
        FileExistsError, match=rf"holds step {kept[0]}, .* begin after 0: go on with .*resume, or"
    ):
        train(tmp_path)
    assert checkpoints.steps(tmp_path / "checkpoints") == kept
    assert rows(tmp_path) == before
    for step in kept:
        (tmp_path / "checkpoints" / f"{step:08d}" / "manifest.json").write_text("{}")
    train(tmp_path)
    assert rows(tmp_path) == before


def test_diverged_run_stops_with_parameters_unchanged(tmp_path):
    """Oracle: the initial state. Calls of 3 dead steps: the fourth makes it 12 in a row."""
    with pytest.raises(
        training.DivergedError, match="in the last 12 outer steps, up to step 12: the run has"
    ):
        train(tmp_path, outer=SKIPPING, sampler=broken(1.0))
    progress = training.resume(tmp_path, fresh(SKIPPING), CONFIG)
    assert progress.step == 9
    start = fresh(SKIPPING).state
    assert bits(progress.state.params) == bits(start.params)
    assert bits(progress.state.opt_state) == bits(start.opt_state)
    # No task counts, so there is no loss to log.
    calls = [row for row in rows(tmp_path) if "validation" not in row]
    assert calls == [{"step": step, "n_valid": 0, "n_nonfinite": 2} for step in (3, 6, 9)]


def test_dead_steps_are_counted_across_calls():
    """Oracle: counting one step after the other."""
    random, diverged = np.random.default_rng(0), 0
    for _ in range(200):
        n_valid = np.repeat(random.integers(0, 2, size=12), random.integers(1, 7, size=12))
        in_a_row, counted, end = 0, 0, 0
        for call in np.array_split(n_valid, 7):
            for number in call:
                in_a_row = 0 if number else in_a_row + 1
            end += len(call)
            if in_a_row >= 10:
                diverged += 1
                with pytest.raises(training.DivergedError, match=f"last {in_a_row} .* step {end}:"):
                    training._check_alive(call, counted, end)
                break
            counted = training._check_alive(call, counted, end)
            assert counted == in_a_row
    assert 20 < diverged < 180


def test_skipped_tasks_do_not_stop_a_run(tmp_path):
    """Oracle: the steps made by hand; a step without a task enters no average of losses."""
    progress = train(tmp_path, outer=SKIPPING, sampler=broken(0.5), validate=None)
    state, losses, counts = SKIPPING.init(jnp.zeros((3, 1))), [], []
    for step in range(14):
        tasks = mj.meta_batch(broken(0.5), jax.random.fold_in(KEY, step), 2)
        state, metrics = SKIPPING.update(state, tasks)
        losses.append(float(metrics["query_loss"]))
        counts.append(int(metrics["n_valid"]))
    assert set(counts) == {0, 1, 2}
    for row, (first, last) in zip(rows(tmp_path), itertools.pairwise([0, *CALL_ENDS]), strict=True):
        alive = [losses[step] for step in range(first, last) if counts[step]]
        assert row["n_valid"] == pytest.approx(np.mean(counts[first:last]))
        assert row["n_nonfinite"] == pytest.approx(2 - np.mean(counts[first:last]))
        assert row.get("query_loss") == (pytest.approx(np.mean(alive)) if alive else None)
    np.testing.assert_allclose(progress.state.params, state.params, rtol=1e-4)


def test_raising_leaves_a_usable_checkpoint(tmp_path):
    """Oracle: the first broken step, found one by one; and a run that ends before its call."""
    sampler = broken(0.08)
    sampled = [mj.meta_batch(sampler, jax.random.fold_in(KEY, step), 2) for step in range(14)]
    step = next(s for s in range(14) if not np.isfinite(sampled[s].query.inputs).all())
    last = step // 3 * 3
    assert 0 < last < step, "the oracle needs steps before the broken one: choose another key"
    never_due = dataclasses.replace(SCHEDULE, checkpoint_every=100)
    with pytest.raises(mj.NonFiniteTaskError, match=f"outer step {step}: ") as raised:
        train(tmp_path / "raised", sampler=sampler, schedule=never_due)
    assert raised.value.step == step
    progress = training.resume(tmp_path / "raised", fresh(), CONFIG)
    before = dataclasses.replace(SCHEDULE, num_steps=last)
    assert progress.step == last
    assert bits(progress.state) == bits(
        train(tmp_path / "before", sampler=sampler, schedule=before, validate=None).state
    )


def test_average_metrics_leaves_dead_steps_out_of_the_loss():
    metrics = {
        "n_valid": np.array([2, 0, 4]),
        "n_nonfinite": np.array([2, 4, 0]),
        "query_loss": np.array([1.0, 0.0, 5.0]),
    }
    assert average_metrics(metrics) == {"n_valid": 2.0, "n_nonfinite": 2.0, "query_loss": 3.0}
    dead = {name: values[1:2] for name, values in metrics.items()}
    assert average_metrics(dead) == {"n_valid": 0.0, "n_nonfinite": 4.0}
