"""Diagnosis: what is measured of known tasks, what is advised, and the command."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax as mj
from maml_jax import cli
from maml_jax.advice import Facts, advise
from maml_jax.assembly import assemble
from maml_jax.diagnosing import diagnose_preset
from maml_jax.metrics_log import read_metrics
from maml_jax.recipes import PRESETS
from maml_jax.tasks import Examples, Task

DIM, SIZE = 8, 8
SINUSOID = "sinusoid-10shot-finn2017"


def loss_fn(params, examples):
    """½ mean ‖θ - y‖²: a task's gradient is θ minus the mean of its targets."""
    return 0.5 * jnp.mean(jnp.sum((params[None] - examples.targets) ** 2, axis=-1))


def sampler(group_key, key, *, shared=1.0, own=1.0, noise=0.0):
    """A task whose mean has a part shared by its group, its own, and noisy examples."""
    own_key, noise_key = jax.random.split(key)
    middle = jnp.sqrt(shared) * jax.random.normal(group_key, (DIM,))
    middle += jnp.sqrt(own) * jax.random.normal(own_key, (DIM,))
    targets = middle[None] + jnp.sqrt(noise) * jax.random.normal(noise_key, (4, DIM))
    examples = Examples(inputs=targets, targets=targets)
    return Task(support=examples, query=examples)


def diagnose(tasks_per_group=SIZE, *, theta=1.0, optimizer=None, num_batches=32, **variances):
    outer = mj.make_outer_step(loss_fn, mj.maml(optax.sgd(0.0), 0), optimizer or optax.sgd(0.1))
    grouped = mj.Grouped(
        sampler=jax.tree_util.Partial(lambda g, k: sampler(g, k, **variances)),
        tasks_per_group=tasks_per_group,
    )
    state = outer.init(jnp.full(DIM, theta))
    return mj.diagnose(outer, state, grouped, key=0, meta_batch_size=SIZE, num_batches=num_batches)


def within(found, name, want):
    value, half = found.estimates[name]
    assert half < abs(want) + 0.5
    assert abs(value - want) <= 1.5 * half, (name, value, half, want)


def test_known_correlation_is_found():
    """Signal 8, shared variance 8, own variance 8: ρ = 1/2, worth 8 / (1 + 7/2) tasks."""
    found = diagnose(shared=1.0, own=1.0)
    within(found, "correlation", 0.5)
    within(found, "group_correlation", 0.5)
    within(found, "effective_tasks", 8 / 4.5)
    within(found, "noise_scale", 2.0)
    within(found, "gain", 24 / (8 + 16 * (0.5 + 0.5 / 8)))
    within(found, "coherence", 16 / 24)
    assert any("correlated" in sentence for sentence in found.advice)


def test_independent_tasks_are_not_called_correlated():
    found = diagnose(1, shared=0.5, own=0.5)
    within(found, "correlation", 0.0)
    within(found, "gain", 16 / (8 + 8 / 8))
    assert not any("correlated" in sentence for sentence in found.advice)


def test_noise_of_small_query_sets_is_told_from_differences_between_tasks():
    """Four examples of variance 4 · 8 each: variance 8 of 16 is the query set's own."""
    found = diagnose(1, shared=0.0, own=1.0, noise=4.0)
    within(found, "own_noise", 0.5)


def test_the_report_and_its_figures():
    found = diagnose()
    text = str(found)
    assert "Gradients of 256 tasks in 32 meta-batches of 8" in text
    assert "correlation within a group" in text
    assert found.cosines.shape == (16, 16)
    json.dumps(found.as_dict(), allow_nan=False)
    assert found.as_dict()["gain"] == found.estimates["gain"][0]


def test_no_signal_gives_no_infinite_figure_in_json():
    found = diagnose(1, theta=0.0, shared=0.0)
    json.dumps(found.as_dict(), allow_nan=False)


def test_tasks_that_are_broken_are_counted_and_left_out():
    def broken(key):
        task = sampler(jax.random.fold_in(key, 2), jax.random.fold_in(key, 3))
        bad = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.2)
        targets = jnp.where(bad, jnp.nan, task.query.targets)
        examples = Examples(inputs=targets, targets=targets)
        return Task(support=examples, query=examples)

    outer = mj.make_outer_step(loss_fn, mj.maml(optax.sgd(0.0), 0), optax.sgd(0.1))
    state = outer.init(jnp.ones(DIM))
    found = mj.diagnose(outer, state, broken, key=0, meta_batch_size=SIZE)
    assert 10 < found.facts.num_broken < 45
    assert found.advice[0].startswith(f"{found.facts.num_broken} of 128 tasks")
    assert all(np.isfinite(value) for value, _ in found.estimates.values())


FACTS = Facts(
    meta_batch_size=8, num_batches=4, num_tasks=32, num_broken=0, degree=1.0, norm_spread=2.0
)
ESTIMATES = {
    "gain": (6.0, 0.5),
    "coherence": (0.05, 0.01),
    "correlation": (0.0, 0.01),
    "effective_tasks": (8.0, 0.1),
    "conflicts": (0.1, 0.01),
    "own_noise": (0.1, 0.01),
}
WORTH = {1: 1.0, 2: 1.9, 4: 3.5, 8: 6.0, 16: 10.0, 32: 14.0}
CASES = {
    "degree 1": ({}, {}, {}, "The sum is the same training with the learning rate multiplied by 8"),
    "degree 0": ({"degree": 0.0}, {}, {}, "It makes no difference to this optimizer"),
    "mixed": ({"degree": None}, {}, {}, r"mj.reduction_report\(optimizer, 8\)"),
    "far from redundant": ({}, {}, {}, "far from redundant, 16 would be worth 10.0"),
    "redundant": (
        {},
        {"gain": (1.3, 0.1)},
        {1: 1.0, 2: 1.2, 4: 1.25, 8: 1.3, 16: 1.32},
        "2 tasks already give 1.2",
    ),
    "enough": (
        {},
        {"gain": (6.0, 0.1)},
        {1: 1.0, 2: 1.9, 4: 3.5, 8: 6.0, 16: 6.6},
        "more tasks add little",
    ),
    "correlated": (
        {},
        {"correlation": (0.3, 0.05), "effective_tasks": (2.6, 0.2)},
        {},
        "as that of 2.6 independent tasks, not 8. The sum does not help",
    ),
    "groups": ({}, {"group_correlation": (0.3, 0.05)}, {}, "enough groups for it not to matter"),
    "noisy conflicts": ({}, {"conflicts": (0.4, 0.01)}, {}, "that is noise"),
    "conflicts": (
        {},
        {"conflicts": (0.5, 0.01), "coherence": (-0.01, 0.001)},
        {},
        "nothing is left in common",
    ),
    "wild": ({"norm_spread": 30.0}, {}, {}, "30 times the median"),
    "own noise": ({}, {"own_noise": (0.8, 0.1)}, {}, "80% of the variance"),
    "broken": ({"num_broken": 3}, {}, {}, "3 of 32 tasks have no finite gradient"),
}


@pytest.mark.parametrize(("facts", "estimates", "worth", "says"), CASES.values(), ids=CASES)
def test_advice(facts, estimates, worth, says):
    facts = dataclasses.replace(FACTS, **facts)
    advice = " ".join(advise(facts, ESTIMATES | estimates, worth or WORTH))
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(advice)


def test_advice_says_nothing_of_what_is_not_there():
    assert len(advise(FACTS, ESTIMATES, WORTH)) == 2


ERRORS = {
    "odd": ({"num_batches": 5}, "num_batches must be even, they go in pairs, got 5"),
    "few": ({"num_batches": 2}, "num_batches must be at least 4, got 2"),
    "one task": ({"meta_batch_size": 1}, "meta_batch_size must be at least 2, got 1"),
}


@pytest.mark.parametrize(("options", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(options, message):
    outer = mj.make_outer_step(loss_fn, mj.maml(optax.sgd(0.0), 0), optax.sgd(0.1))
    settings = {"meta_batch_size": 4, **options}
    with pytest.raises(ValueError, match=message):
        mj.diagnose(outer, outer.init(jnp.ones(DIM)), lambda key: None, 0, **settings)


def test_all_tasks_broken_is_an_error():
    def broken(key):
        task = sampler(jax.random.fold_in(key, 2), jax.random.fold_in(key, 3))
        return dataclasses.replace(
            task, query=dataclasses.replace(task.query, targets=jnp.full((4, DIM), jnp.nan))
        )

    outer = mj.make_outer_step(loss_fn, mj.maml(optax.sgd(0.0), 0), optax.sgd(0.1))
    with pytest.raises(ValueError, match="at least 2 tasks of each meta-batch with a finite loss"):
        mj.diagnose(outer, outer.init(jnp.ones(DIM)), broken, 0, meta_batch_size=4)


def test_a_preset_is_measured_at_growing_steps_until_time_is_up():
    """A clock that jumps by a second at each look: stretches of 10 and 20 steps, not of 70."""
    config = dataclasses.replace(PRESETS[SINUSOID], features=4, meta_batch_size=4)
    problem = assemble(config)
    ticks = iter(range(1000))
    found = list(diagnose_preset(problem, budget=7.0, clock=lambda: next(ticks)))
    assert [one.step for one in found] == [0, 10, 30]


@pytest.mark.slow
def test_the_command_diagnoses_a_preset_and_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [SINUSOID, "--features", "4", "--meta-batch-size", "4", "--outer-steps", "8"]
    small += ["--steps-per-call", "4", "--validation-tasks", "2", "--test-tasks", "2"]
    cli.main(["diagnose", *small, "--budget", "0", "--output", "here"])
    out = capsys.readouterr().out
    assert "Mean or sum?" in out
    assert (tmp_path / "here" / "diagnosis.png").read_bytes()[:4] == b"\x89PNG"
    kept = json.loads((tmp_path / "here" / "diagnosis.json").read_text())["diagnoses"]
    assert [one["step"] for one in kept] == [0, 10]
    cli.main(["train", *small, "--run-dir", "run", "--diagnose-every", "4"])
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    logged = [row["diagnosis"] for row in rows if "diagnosis" in row]
    capsys.readouterr()
    cli.main(["diagnose", "run"])
    assert "Mean or sum?" in capsys.readouterr().out
    kept = json.loads((tmp_path / "run" / "diagnosis.json").read_text())["diagnoses"]
    assert kept[0]["step"] == 0
    np.testing.assert_allclose(kept[-1]["gain"], logged[-1]["gain"], rtol=1e-5)
