"""What is the same again: bits in two processes, tasks whatever the sizes, programs at every call.

    python -m pytest tests/test_determinism.py

That a resumed run has the bits of one that nothing stopped is in test_resume.py, test_signals.py
and test_kill.py; devices against one device in test_devices.py and test_device_counts.py; tasks
side by side, in turn and in chunks in test_outer_step.py.
"""

import functools
import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

import maml_jax as mj
from children import (
    SMALL,
    environment,  # noqa: F401
    fingerprints,
    finish,
    rows,
    start,
)
from maml_jax import checks, outer_loop
from maml_jax.command_tools import show_warning
from training_runs import (
    KEY,
    SAMPLER,
    SCHEDULE,
    SKIPPING,
    bits,
    quick_compilation,  # noqa: F401
    train,
)

FIFTY = [*SMALL, "--outer-steps", "50", "--validate-every", "25", "--checkpoint-every", "25"]


@pytest.mark.slow
def test_two_processes_with_one_seed_end_with_the_same_bits(tmp_path, environment):  # noqa: F811
    """50 steps on one core. They share no compiled program, no hash seed and no folder."""
    folders = [tmp_path / "one", tmp_path / "two"]
    running = [
        start(
            [*FIFTY, "--run-dir", folder],
            {
                **environment,
                "JAX_COMPILATION_CACHE_DIR": str(tmp_path / f"compiled {number}"),
                "PYTHONHASHSEED": str(number),
            },
        )
        for number, folder in enumerate(folders)
    ]
    for child in running:
        code, _, err = finish(child)
        assert (code, err) == (0, "")
    one, two = folders
    assert fingerprints(one) == fingerprints(two)
    assert fingerprints(one)[0] == 50
    assert len(fingerprints(one)[1]) > 20  # Parameters, the best ones, both moments of Adam.
    assert rows(one) == rows(two)


_PROGRAMS = """
import hashlib, jax, jax.numpy as jnp, optax
import maml_jax as mj
mesh = jax.make_mesh((2,), ("tasks",), axis_types=(jax.sharding.AxisType.Auto,))
model = mj.models.Mlp(features=(4, 1))
loss_fn = mj.losses.regression(model.apply)
def told(params, examples):
    loss = loss_fn(params, examples)
    return loss, {"small": (loss > 1) * jnp.int8(1), "half": loss.astype(jnp.float16)}
tasks = mj.meta_batch(mj.data.sinusoid(), jax.random.key(0), 4)
for rule in ("mean", mj.aggregation.tilted(1.0), mj.aggregation.pcgrad()):
    outer = mj.make_outer_step(
        told, mj.maml(optax.sgd(0.01), 1), optax.adam(1e-3), aggregation=rule, mesh=mesh)
    state = outer.init(model.init(jax.random.key(1), jnp.zeros((1, 1))))
    program = jax.jit(outer.update).lower(state, tasks).as_text()
    print(program.count("all_reduce"), hashlib.sha256(program.encode()).hexdigest())
"""


@pytest.mark.slow
def test_every_process_makes_the_same_program(environment):  # noqa: F811
    """Whatever Python's hashes of strings are: else processes would add up unlike arrays."""
    variables = {**environment, "JAX_NUM_CPU_DEVICES": "2"}
    running = [start([], {**variables, "PYTHONHASHSEED": str(n)}, _PROGRAMS) for n in range(4)]
    codes, outs, errs = zip(*map(finish, running), strict=True)
    assert (codes, errs) == ((0,) * 4, ("",) * 4)
    assert len(set(outs)) == 1, outs


@functools.cache
def drawn(step, meta_batch_size, num_devices=None, seed=3):
    """The tasks of a step as `run_outer_steps` draws them, on the host."""
    devices = jax.devices()[: num_devices or 1]
    if len(devices) < (num_devices or 1):
        pytest.skip(f"needs {num_devices} devices, has {len(devices)}")
    mesh = Mesh(np.array(devices), ("tasks",)) if num_devices else None
    sampler = checks.as_sampler(SAMPLER)

    @jax.jit
    def draw(key, step):
        return outer_loop._sampled(sampler, step, key, meta_batch_size, mesh)

    return jax.device_get(draw(jax.random.key(seed), step))


@pytest.mark.parametrize(("meta_batch_size", "num_devices"), [(2, None), (8, 1), (8, 2), (8, 4)])
def test_a_task_depends_on_seed_step_and_its_own_number_alone(meta_batch_size, num_devices):
    """Not on how many tasks there are nor on how many devices draw them: equal in every bit."""
    want = jax.tree.map(lambda leaf: leaf[:meta_batch_size], drawn(7, 8))
    assert bits(drawn(7, meta_batch_size, num_devices)) == bits(want)


def test_other_seeds_steps_and_numbers_give_other_tasks():
    """Also side by side: no input of one task is an input of another."""
    inputs = [drawn(7, 8), drawn(8, 8), drawn(7, 8, seed=4)]
    support = np.stack([tasks.support.inputs for tasks in inputs])
    assert len(np.unique(support)) == support.size


def test_what_tasks_are_seen_does_not_depend_on_how_they_run(tolerance):
    """Side by side, in turn or in chunks, a call sees the losses of the same tasks."""
    losses = []
    for axis in ("vmap", "scan", 3):
        outer = mj.make_outer_step(
            mj.losses.regression(lambda params, inputs, mask: inputs @ params),
            mj.maml(optax.sgd(1e-3), 1),
            optax.sgd(0.0),
            task_axis=axis,
        )
        _, metrics = mj.run_outer_steps(
            outer, SAMPLER, outer.init(jnp.ones((1, 1))), KEY, num_steps=2, meta_batch_size=4
        )
        losses.append(np.asarray(metrics["query_loss"]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=10 * tolerance)
    np.testing.assert_allclose(losses[2], losses[0], rtol=10 * tolerance)


def test_a_run_compiles_nothing_after_its_first_call(tmp_path, caplog):
    """Oracle: what JAX says it compiles, from the second call of three steps to the fourth."""
    found = []

    def compiled():
        texts = [record.getMessage() for record in caplog.records]
        found.append(sum(text.startswith("Finished XLA compilation") for text in texts))

    def report(step, metrics, evaluation):
        if evaluation is None:
            compiled()

    schedule = SCHEDULE.__class__(
        num_steps=14, meta_batch_size=3, steps_per_call=3, checkpoint_every=3
    )
    with jax.log_compiles(), caplog.at_level("WARNING"):
        train(tmp_path, outer=SKIPPING, schedule=schedule, validate=None, report=report)
    assert found[0] > 0
    assert found[1] == found[2] == found[3]
    assert found[4] > found[3]  # The last call makes two steps: another program.


def test_a_damaged_compiled_program_is_not_run(tmp_path, capsys):
    """20 flipped bits: JAX warns and compiles anew, and what comes out has the same bits.

    One bit in 700 of a compressed file changes nothing that it holds: there is no warning then.
    JAX would leave a file that is cut short as it is: the commands say what ends the warning.
    """
    before = jax.config.values["jax_compilation_cache_dir"]
    given = jnp.linspace(0.0, 1.0, 12).reshape(3, 4)

    def run():
        jax.clear_caches()
        compilation_cache.reset_cache()
        return np.asarray(jax.jit(lambda x: jnp.sin(x @ x.T).sum())(given)).tobytes()

    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        whole, rng = run(), random.Random(0)
        (kept,) = tmp_path.glob("jit__lambda*-cache")
        content = kept.read_bytes()
        warned = 0
        for _ in range(20):
            place = rng.randrange(8 * len(content))
            damaged = bytearray(content)
            damaged[place // 8] ^= 1 << place % 8
            kept.write_bytes(damaged)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert run() == whole, f"bit {place} of {len(content)} bytes"
            found = [str(warning.message) for warning in caught]
            assert all("reading persistent compilation cache" in text for text in found), found
            warned += len(found)
        assert warned >= 18
        kept.write_bytes(content[: len(content) // 2])
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show_warning
            assert run() == whole
        assert capsys.readouterr().err == (
            "warning: a kept compiled program is damaged, or another run is just writing it: "
            f"compiled anew; if this comes back, run: rm -r {tmp_path}\n"
        )
        assert len(kept.read_bytes()) == len(content) // 2
        kept.write_bytes(content)
        assert run() == whole  # Without a warning, which would be an error here.
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
