"""A training loop that takes a second: a polynomial for sinusoids, and what to compare.

`compiled_once` is for tests that build the same functions again and again.

A new number of steps in a call, a new sampler or a new outer step is a new program to
compile, which is most of the time of these tests: reuse them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import maml_jax as mj
from maml_jax import training
from maml_jax.metrics_log import read_metrics
from maml_jax.training import Schedule

KEY = jax.random.key(3)
CONFIG = {"inner_steps": 1}
SCHEDULE = Schedule(
    num_steps=14, meta_batch_size=2, steps_per_call=3, validate_every=5, checkpoint_every=4
)
CALL_ENDS = [3, 6, 9, 12, 14]


def polynomial(params, inputs, mask):
    del mask
    return jnp.concatenate([inputs**power for power in range(3)], axis=-1) @ params


def sometimes_broken(key, *, probability):
    """A sinusoid task; with some probability its query inputs are NaN."""
    task = mj.data.sinusoid(query_shot=4)(key)
    broken = jax.random.bernoulli(jax.random.fold_in(key, 1), probability)
    inputs = jnp.where(broken, jnp.nan, task.query.inputs)
    return dataclasses.replace(task, query=dataclasses.replace(task.query, inputs=inputs))


def broken(probability):
    """A sampler, whose probability is an argument of the compiled call."""
    return jax.tree_util.Partial(sometimes_broken, probability=jnp.float32(probability))


LOSS = mj.losses.regression(polynomial)
INNER = mj.maml(optax.sgd(1e-4), 1)
OUTER = mj.make_outer_step(LOSS, INNER, optax.adam(1e-2))
SKIPPING = mj.make_outer_step(LOSS, INNER, optax.adam(1e-2), on_nonfinite="skip")
SAMPLER = mj.data.sinusoid(query_shot=4)


def fresh(outer=OUTER):
    return training.start(outer, jnp.zeros((3, 1)))


def evaluation_of(value, metric="loss"):
    return mj.Evaluation(
        means={metric: (9.0, value)},
        half_widths={metric: (0.0, 0.1)},
        inner_steps=(0, 1),
        num_tasks=2,
        num_support=1,
        num_query=1,
        transductive=True,
        seed="0",
    )


def validate(params):
    """A number that goes up and down as training goes on."""
    return evaluation_of(float(jnp.sin(30 * params.sum())))


def train(run_dir, progress=None, *, outer=OUTER, sampler=SAMPLER, schedule=SCHEDULE, **options):
    options = {"validate": validate, "config": CONFIG, **options}
    progress = fresh(outer) if progress is None else progress
    return training.train(
        outer, sampler, progress, KEY, run_dir=run_dir, schedule=schedule, **options
    )


def resumed(run_dir, outer=OUTER, **options):
    return train(run_dir, training.resume(run_dir, fresh(outer), CONFIG), outer=outer, **options)


def bits(tree):
    """Dtype, shape and bytes of each leaf: equal only if every bit is."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [(leaf.dtype.name, leaf.shape, leaf.tobytes()) for leaf in leaves]


def rows(run_dir):
    """The log without the clock."""
    logged = read_metrics(run_dir / "metrics.jsonl")
    return [{name: row[name] for name in row if name != "seconds"} for row in logged]


def at_step(step, action):
    """A `Report` that does something after the call that ends at a step."""

    def report(now, metrics, evaluation):
        if now == step and evaluation is None:
            action()

    return report


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(tmp_path_factory):
    """Compiles no program twice.

    Each run builds its functions anew; the cache lets JAX find what it has compiled before.
    """
    wanted = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
