"""Sinusoid tasks against their definition in the MAML paper, section 5.1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.data.sinusoid import sinusoid, sinusoid_parameters


def test_targets_are_the_sine_of_the_task(tolerance):
    """Oracle: y = A sin(x - φ) in NumPy, with the A and φ that belong to the key."""
    key = jax.random.key(3)
    task = sinusoid(shot=5, query_shot=9)(jax.random.clone(key))
    amplitude, phase = sinusoid_parameters(key)
    for examples, count in ((task.support, 5), (task.query, 9)):
        expected = float(amplitude) * np.sin(np.asarray(examples.inputs) - float(phase))
        assert examples.inputs.shape == (count, 1)
        np.testing.assert_allclose(examples.targets, expected, rtol=0, atol=10 * tolerance)


def test_support_and_query_share_no_input():
    """Oracle: 40 independent real numbers are distinct."""
    task = sinusoid(shot=20, query_shot=20)(jax.random.key(0))
    inputs = np.concatenate([task.support.inputs, task.query.inputs])
    assert len(np.unique(inputs)) == 40


def test_distribution_of_amplitude_phase_and_inputs():
    """Oracle: mean and standard deviation of U[a, b], within 5 standard errors."""
    keys = jax.random.split(jax.random.key(1), 4000)
    amplitude, phase = jax.vmap(sinusoid_parameters)(jax.random.clone(keys))
    inputs = jax.vmap(sinusoid(shot=1, query_shot=1))(keys).support.inputs.ravel()
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, np.pi), (inputs, -5.0, 5.0)):
        values = np.asarray(values)
        spread = (high - low) / np.sqrt(12)
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 5 * spread / np.sqrt(4000)
        assert abs(values.std() - spread) < 0.03 * spread
    assert abs(np.corrcoef(amplitude, phase)[0, 1]) < 5 / np.sqrt(4000)


def test_default_type_and_one_trace_for_equal_settings():
    traces = []

    def first(sampler, key):
        traces.append(1)
        return sampler(key).support.inputs[0, 0]

    compiled = jax.jit(first, static_argnums=0)
    one = compiled(sinusoid(), jax.random.key(0))
    two = compiled(sinusoid(shot=10), jax.random.key(0))
    assert one.dtype == jnp.zeros(()).dtype
    assert one == two
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shot": 0}, "shot must be an integer of at least 1, got 0"),
        ({"query_shot": 2.5}, r"query_shot must be an integer of at least 1, got 2\.5"),
        ({"shot": True}, "shot must be an integer of at least 1, got True"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        sinusoid(**settings)
