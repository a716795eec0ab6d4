"""Gains: their formulas, what they are at the ends, and what a step with them does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax as mj
import problems
from maml_jax import gains
from maml_jax.spread import spread_of


def spread(matrix, mask=None):
    valid = jnp.ones(len(matrix), bool) if mask is None else jnp.asarray(mask)
    return spread_of(jnp.asarray(matrix), valid)


def published_gain(steps, num_tasks, decay):
    """AdaScale's appendix B.3 without floors, in NumPy: local and total squared norms."""
    variance = squared = seen = 0.0
    for matrix in steps:
        local, total = np.square(matrix).sum(), np.square(matrix.mean(0)).sum()
        var = local / (num_tasks - 1) - total * num_tasks / (num_tasks - 1)
        sqr = max(total - var / num_tasks, 0)
        variance = decay * variance + (1 - decay) * var
        squared = decay * squared + (1 - decay) * sqr
        seen = decay * seen + (1 - decay)
    variance, squared = variance / seen, squared / seen
    return (variance + squared) / (variance / num_tasks + squared)


def test_adascale_is_the_published_formula(tolerance):
    """Over three steps, with the decay of the authors' code, 1 - n / 1000, and another."""
    rng = np.random.default_rng(0)
    steps = [rng.normal(size=(5, 7)) + 0.5 for _ in range(3)]
    for decay in (None, 0.3):
        rule = gains.adascale(decay=decay)
        memory = rule.init()
        for matrix in steps:
            got, memory = rule.measure(spread(matrix), memory)
        want = published_gain(steps, 5, 1 - 5 / 1000 if decay is None else decay)
        np.testing.assert_allclose(got, want, rtol=1e5 * tolerance if decay is None else 1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_adascale_at_its_ends(scale):
    """n for orthogonal gradients, 1 for identical ones, between for others; D r = n."""
    rule = gains.adascale(decay=0.0)
    ends = {4.0: np.eye(4), 1.0: np.ones((4, 3))}
    for want, matrix in ends.items():
        got, _ = rule.measure(spread(scale * matrix.astype(np.float32)), rule.init())
        np.testing.assert_allclose(got, want, rtol=1e-5)
    for seed in range(5):
        matrix = np.random.default_rng(seed).normal(size=(4, 6))
        one = spread(scale * matrix)
        got, _ = rule.measure(one, rule.init())
        assert 1 - 1e-5 <= got <= 4 + 1e-5
        np.testing.assert_allclose(one.gain * one.divisor, 4, rtol=1e-5)


def test_gradients_that_cancel_give_at_most_the_number_of_tasks():
    rule = gains.adascale(decay=0.0)
    got, _ = rule.measure(spread(np.array([[1.0], [-1.0], [1.0], [-1.0]])), rule.init())
    np.testing.assert_allclose(got, 4)


def test_one_task_and_no_task_say_nothing():
    """They move no average, and are worth one step."""
    rule = gains.adascale()
    _, before = rule.measure(spread(np.eye(4)), rule.init())
    for mask in ([True, False, False, False], [False] * 4):
        got, after = rule.measure(spread(np.eye(4), mask), before)
        np.testing.assert_allclose(got, 1.0, rtol=1e-6)
        assert all(after[name] == before[name] for name in after)


def tasks_and_step(gain, optimizer=None, num_tasks=4):
    tasks = problems.linear_tasks(num_tasks=num_tasks)
    outer = mj.make_outer_step(
        problems.linear_loss,
        mj.maml(optax.sgd(0.1), 1),
        optax.sgd(0.01) if optimizer is None else optimizer,
        gain=gain,
    )
    return tasks, outer, outer.init(problems.params())


def moved(before, after):
    return problems.flat(after.params) - problems.flat(before.params)


def test_linear_gain_of_the_mean_is_the_sum(tolerance):
    tasks, outer, state = tasks_and_step(gains.linear())
    got = moved(state, outer.update(state, tasks)[0])
    plain = mj.make_outer_step(
        problems.linear_loss, mj.maml(optax.sgd(0.1), 1), optax.sgd(0.01), aggregation="sum"
    )
    state = plain.init(problems.params())
    want = moved(state, plain.update(state, tasks)[0])
    np.testing.assert_allclose(got, want, rtol=1e4 * tolerance, atol=100 * tolerance)


def test_gains_of_the_count_look_at_tasks_that_count():
    tasks, outer, state = tasks_and_step(gains.square_root(base=3.0))
    mask = jnp.array([True, True, True, False])
    _, metrics = outer.update(state, tasks, mask=mask)
    np.testing.assert_allclose(metrics["step_factor"], 1.0, rtol=1e-6)
    state, metrics = outer.update(state, tasks)
    np.testing.assert_allclose(metrics["step_factor"], np.sqrt(4 / 3), rtol=1e-6)
    np.testing.assert_allclose(state.gain_state.progress, 4 / 3, rtol=1e-6)
    assert "divisor" not in metrics  # No per-task gradients were held for it.


def test_adascale_lengthens_the_step_after_the_optimizer(tolerance):
    """Adam divides out a factor in front of it; behind it, it shows: power 1/2 by its degree."""
    for optimizer, power in ((optax.sgd(0.01), 1.0), (optax.adam(0.01), 0.5)):
        tasks, outer, state = tasks_and_step(gains.adascale(), optimizer)
        after, metrics = outer.update(state, tasks)
        plain = mj.make_outer_step(problems.linear_loss, mj.maml(optax.sgd(0.1), 1), optimizer)
        start = plain.init(problems.params())
        want = moved(start, plain.update(start, tasks)[0])
        gain = float(metrics["gain"])
        assert 1.05 < gain <= 4
        np.testing.assert_allclose(metrics["step_factor"], gain**power, rtol=1e-5)
        np.testing.assert_allclose(metrics["progress"], gain, rtol=1e-5)
        np.testing.assert_allclose(
            moved(state, after), gain**power * want, rtol=1e5 * tolerance, atol=1e3 * tolerance
        )


def test_schedules_read_progress_not_steps():
    """A rate that falls from 1 to 0 over a progress of 8, with four tasks a step: two steps."""
    falling = optax.linear_schedule(1.0, 0.0, 8)
    tasks, outer, state = tasks_and_step(gains.linear(schedule=falling))
    factors = []
    for _ in range(3):
        state, metrics = outer.update(state, tasks)
        factors.append(float(metrics["step_factor"]))
    np.testing.assert_allclose(factors, [4.0, 2.0, 0.0], atol=1e-6)
    assert int(state.step) == 3


def test_a_step_without_tasks_makes_no_progress():
    tasks, outer, state = tasks_and_step(gains.adascale())
    after, _ = outer.update(state, tasks, mask=jnp.zeros(4, bool))
    np.testing.assert_array_equal(moved(state, after), 0)
    assert after.gain_state.progress == 0


def test_many_steps_in_one_call_carry_the_gain():
    model = mj.models.Mlp(features=(4, 1))
    outer = mj.make_outer_step(
        mj.losses.regression(model.apply),
        mj.maml(optax.sgd(0.01), 1),
        optax.adam(1e-3),
        gain=gains.adascale(),
    )
    state = outer.init(model.init(jax.random.key(0), jnp.zeros((1, 1))))
    state, metrics = mj.run_outer_steps(
        outer, mj.data.sinusoid(), state, jax.random.key(1), num_steps=4, meta_batch_size=3
    )
    progress = np.asarray(metrics["progress"])
    assert (np.diff(progress) >= 1 - 1e-5).all()
    np.testing.assert_allclose(progress[-1], state.gain_state.progress)


ERRORS = {
    "base": (lambda: gains.linear(base=0.0), ValueError, "base must be above 0 and finite, got 0"),
    "decay": (lambda: gains.adascale(decay=1.0), ValueError, r"decay must be in \[0, 1\), got 1"),
    "power": (lambda: gains.adascale(power=np.inf), ValueError, "power must be finite, got inf"),
    "kind": (lambda: tasks_and_step("adascale"), TypeError, "gain must be a value of.*got str"),
    "mixed": (
        lambda: tasks_and_step(
            gains.adascale(), optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
        ),
        ValueError,
        "adascale needs power= for this optimizer",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
