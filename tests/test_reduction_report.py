"""The report on an optimizer, against what its formula says, and against its own advice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import maml_jax as mj
from maml_jax.optimizer_probe import make_probe
from maml_jax.reduction_report import degree_of

pytestmark = pytest.mark.slow

BATCH = 32


@functools.cache
def report(name):
    return mj.reduction_report(OPTIMIZERS[name], BATCH)


def said(name):
    return " ".join(report(name).reasons)


def l2(optimizer, rate=1e-4):
    return optax.chain(optax.add_decayed_weights(rate), optimizer)


def clipped(clip, optimizer):
    return optax.chain(clip, optimizer)


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "schedule_free_sgd": contrib.schedule_free_sgd(0.1),
    "accumulated mean": optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation(),
    "accumulated sum": optax.chain(optax.apply_every(4), optax.sgd(0.1)),
    "adam": optax.adam(1e-3),
    "adamw": optax.adamw(1e-3, weight_decay=0.1),
    "lion": optax.lion(1e-3),
    "muon": contrib.muon(1e-2),
    "adopt": contrib.adopt(1e-2),
    "normalised": optax.chain(optax.normalize_by_update_norm(), optax.scale(-0.1)),
    "lamb": optax.lamb(1e-2, weight_decay=0.01),
    "adam, large eps": optax.adam(1e-3, eps=1e-3),
    "rmsprop": optax.rmsprop(1e-3, eps=1e-6),
    "adagrad": optax.adagrad(0.1),
    "clip, adam, large eps": clipped(optax.clip_by_global_norm(1.0), optax.adam(1e-3, eps=1e-3)),
    "adamw, huge eps": optax.adamw(1e-3, eps=1.0, weight_decay=0.1),
    "radam": optax.radam(1e-3),
    "lars": optax.lars(0.1),
    "madgrad": contrib.madgrad(0.01),
    "yogi": optax.yogi(1e-2),
    "polyak": optax.polyak_sgd(),
    "noisy": optax.chain(optax.add_noise(0.01, 0.55, key=0), optax.sgd(0.1)),
    "sgd + l2": l2(optax.sgd(0.1)),
    "slow sgd + weak l2": l2(optax.sgd(1e-4), rate=1e-6),
    "adam + l2": l2(optax.adam(1e-3)),
    "clip, sgd": clipped(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "clip, adam": clipped(optax.clip_by_global_norm(3.0), optax.adam(1e-3)),
    "clip + l2": clipped(optax.clip_by_global_norm(0.3), l2(optax.sgd(0.1))),
    "l2 + clip": l2(clipped(optax.clip_by_global_norm(0.3), optax.sgd(0.1)), rate=0.1),
    "clip of entries": clipped(optax.clip(0.2), optax.sgd(0.1, momentum=0.9)),
    "clip of leaves": clipped(optax.clip_by_block_rms(0.3), optax.sgd(0.1)),
    "clip by units": clipped(optax.adaptive_grad_clip(0.05), optax.sgd(0.1)),
    "clip of averages": optax.chain(optax.ema(0.5), optax.clip(0.1), optax.scale(-0.1)),
    "grows": optax.stateless(lambda grads, _: jax.tree.map(lambda g: -g * jnp.log1p(g * g), grads)),
    "two kinds": optax.partition(
        {"one": optax.sgd(0.1), "zero": optax.adam(0.1)},
        {"matrix": "one", "square": "zero", "vector": "zero"},
    ),
}
ONE = ["sgd", "momentum", "schedule_free_sgd", "accumulated mean", "accumulated sum"]
ZERO = ["adam", "adamw", "lion", "muon", "adopt", "normalised", "lamb"]
MIXED = [name for name in OPTIMIZERS if name not in ONE + ZERO]


@pytest.mark.parametrize("name", ONE)
def test_degree_one_has_one_setting(name):
    """Linear in the gradient: exponent 1 at every size."""
    found = report(name)
    assert found.degree == "1"
    assert found.settings == {"learning_rate": 1 / BATCH}
    np.testing.assert_allclose(list(found.exponents.values()), 1.0, atol=1e-3)
    assert found.effect < 1e-4
    assert str(found).startswith(f"Degree 1. The sum at learning rate η/{BATCH} is the mean at η")


@pytest.mark.parametrize("name", ZERO)
def test_degree_zero_has_nothing_to_set(name):
    """The gradient over a norm of its own: exponent 0 from norm 0.01 up."""
    found = report(name)
    assert found.degree == "0"
    assert found.settings == {}
    exponents = [found.exponents[norm] for norm in (1e-2, 1.0, 1e3)]
    np.testing.assert_allclose(exponents, 0.0, atol=1e-3)
    assert found.effect < 1e-4
    assert "the divisor does nothing" in str(found)


@pytest.mark.parametrize("name", MIXED)
def test_mixed_says_why(name):
    found = report(name)
    assert found.degree == "mixed"
    assert found.reasons
    assert ("no cause was found" in said(name)) == (name == "grows")
    advice = "To go from mean to sum" if found.settings else "No setting makes them the same"
    assert advice in str(found)


CLIPS = {
    "clip, sgd": ("the global norm", 1.0, 1),
    "clip, adam": ("the global norm", 3.0, 0),
    "clip, adam, large eps": ("the global norm", 1.0, 0),
    "l2 + clip": ("the global norm", 0.3, 1),
    "clip + l2": ("the global norm", 0.3, 1),
    "clip of entries": ("each entry", 0.2, 1),
    "clip of leaves": ("the root mean square of each leaf", 0.3, 1),
    "clip of averages": ("what is made of the gradient, for entries all alike,", 0.1, 1),
    "clip by units": ("the norm of each unit over that of its parameters", 0.05, 1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_clip_is_told_by_what_it_bounds_and_where(name):
    """The thresholds are those that the optimizer was made with; no other has one."""
    if name not in CLIPS:
        assert "clip" not in said(name)
        assert "clip" not in report(name).settings
        return
    what, threshold, base = CLIPS[name]
    start = f"A clip of {what} binds above "
    (sentence,) = [reason for reason in report(name).reasons if reason.startswith(start)]
    assert float(sentence[len(start) :].split(";")[0]) == pytest.approx(threshold, rel=0.01)
    assert report(name).base_degree == base
    assert report(name).settings["clip"] == BATCH
    assert ("learning_rate" in report(name).settings) == (base == 1)


def test_epsilon_beside_a_root_and_under_it():
    """Half of the plateau s/(s + ε) is at s = ε; under a root the factor is squared."""
    assert "ε takes over where the entries of the gradient are below about 0.001" in said(
        "adam, large eps"
    )
    assert report("adam, large eps").settings == {"eps": BATCH}
    assert "below about 1e-08" in said("adam")
    assert "under a root" in said("rmsprop")
    assert "under a root" not in said("adopt")  # g/max(√v, 1e-6)
    assert "below about 5e-07" in said("adopt")
    assert report("rmsprop").settings == {"eps_under_root": BATCH**2}
    assert report("adagrad").settings == {"eps_under_root": BATCH**2}


def test_terms_of_the_parameters_alone():
    """λθ beside the gradient weighs λ/B against the sum; added after Adam it does not."""
    both = {"learning_rate": 1 / BATCH, "weight_decay": BATCH}
    assert report("sgd + l2").settings == both
    assert report("slow sgd + weak l2").settings == both
    assert report("clip + l2").settings == report("l2 + clip").settings == both | {"clip": BATCH}
    assert report("adam + l2").settings == {"weight_decay": BATCH}
    assert "coupled L2" in said("adam + l2")
    assert "decoupled" in said("adamw")
    assert "decoupled" in said("lamb")
    assert "decoupled" in said("adamw, huge eps")
    assert report("adamw, huge eps").settings == {"eps": BATCH}
    assert "parameters alone" not in said("schedule_free_sgd")


def test_first_steps_of_another_degree():
    """RAdam leaves out its denominator while ρ is at most 5: five steps at β₂ = 0.999."""
    assert "The first 5 steps are of degree 1, later ones of degree 0" in said("radam")
    assert report("radam").settings == {"learning_rate in the first 5 steps": 1 / BATCH}


def test_the_loss_value():
    """Polyak's step is (value/‖g‖²)·g: of degree -1, and 0 if the value is multiplied too."""
    assert report("polyak").exponents[1.0] == pytest.approx(-1.0, abs=1e-3)
    assert report("polyak").settings == {"value": BATCH}
    assert "loss value" in said("polyak")


def test_what_moves_the_parameters_without_a_gradient():
    assert "noise" in said("noisy")
    assert report("noisy").settings == {"learning_rate": 1 / BATCH, "noise": BATCH}
    assert "does not start at zero" in said("yogi")  # its first moment starts at 1e-6
    assert report("yogi").settings == {}


def test_parameters_of_zero_and_leaves_of_two_kinds():
    """LARS takes a trust ratio of 1 where the norm of the parameters is 0."""
    assert "Where parameters are zero, as new biases are, it is of degree 1" in said("lars")
    assert "leaves differ; of degree 1: matrix" in said("two kinds")
    assert report("two kinds").settings == {"learning_rate of matrix": 1 / BATCH}


def test_a_degree_between():
    """MADGRAD divides a sum of gradients by the cube root of one of squares: 1 - 2/3."""
    assert "degree 0.33" in said("madgrad")
    found = report("madgrad")
    assert found.exponents[1.0] == pytest.approx(1 / 3, abs=0.01)
    assert found.settings["update"] == pytest.approx(BATCH ** (-1 / 3), rel=0.01)


def test_accumulation_is_a_mean_or_a_sum():
    sentence = "an update comes every 4 steps, of the {} of their gradients"
    assert sentence.format("mean") in said("accumulated mean")
    assert sentence.format("sum") in said("accumulated sum")
    summing = optax.MultiSteps(optax.adam(0.1), 3, use_grad_mean=False).gradient_transformation()
    found = mj.reduction_report(summing, BATCH)
    assert found.degree == "0"
    assert "every 3 steps, of the sum" in " ".join(found.reasons)
    # After one step of two the state is the same for both.
    twice = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    assert "of the mean or the sum" in mj.reduction_report(twice, BATCH).reasons[-1]


CONVERTED = {
    "sgd": (lambda s: optax.sgd(s["learning_rate"]), {"learning_rate": 0.1}),
    "momentum": (
        lambda s: optax.sgd(s["learning_rate"], momentum=0.9, nesterov=True),
        {"learning_rate": 0.1},
    ),
    "clip, sgd": (
        lambda s: clipped(optax.clip_by_global_norm(s["clip"]), optax.sgd(s["learning_rate"])),
        {"clip": 1.0, "learning_rate": 0.1},
    ),
    "clip, adam": (
        lambda s: clipped(optax.clip_by_global_norm(s["clip"]), optax.adam(1e-3)),
        {"clip": 3.0},
    ),
    "clip by units": (
        lambda s: clipped(optax.adaptive_grad_clip(s["clip"]), optax.sgd(s["learning_rate"])),
        {"clip": 0.05, "learning_rate": 0.1},
    ),
    "sgd + l2": (
        lambda s: l2(optax.sgd(s["learning_rate"]), s["weight_decay"]),
        {"learning_rate": 0.1, "weight_decay": 1e-4},
    ),
    "adam + l2": (lambda s: l2(optax.adam(1e-2), s["weight_decay"]), {"weight_decay": 1e-3}),
    "adam, large eps": (lambda s: optax.adam(1e-3, eps=s["eps"]), {"eps": 1e-3}),
    "rmsprop": (lambda s: optax.rmsprop(1e-2, eps=s["eps_under_root"]), {"eps_under_root": 1e-6}),
    "adagrad": (
        lambda s: optax.adagrad(0.1, s["eps_under_root"], s["eps_under_root"] * 1e-6),
        {"eps_under_root": 0.1},
    ),
    "radam": (
        lambda s: optax.radam(
            lambda step: jnp.where(step < 5, s["learning_rate in the first 5 steps"], 1e-3)
        ),
        {"learning_rate in the first 5 steps": 1e-3},
    ),
}


def train(optimizer, factor, num_steps=20):
    """Parameters after each step, on gradients of changing size, `factor` times as long."""
    key = jax.random.key(0)
    params = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "b": jnp.linspace(0.2, 0.6, 3)}

    def loss(params, target):
        return 0.5 * sum(jnp.sum((leaf - target) ** 2) for leaf in jax.tree.leaves(params))

    def step(carry, key):
        params, state = carry
        target_key, size_key = jax.random.split(key)
        grads = jax.grad(loss)(params, 2 * jax.random.normal(target_key))
        size = 10 ** jax.random.uniform(size_key, minval=-3.0, maxval=-0.5)
        grads = jax.tree.map(lambda g: factor * size * g, grads)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(params)])

    carry = (params, optimizer.init(params))
    return jax.jit(lambda: jax.lax.scan(step, carry, jax.random.split(key, num_steps))[1])()


@pytest.mark.parametrize("name", CONVERTED)
def test_the_settings_make_the_sum_do_what_the_mean_does(name):
    """Two trainings, mean at given settings and sum at converted ones; unconverted they part."""
    make, settings = CONVERTED[name]
    factors = report(name).settings
    assert set(factors) == set(settings)
    converted = make({key: value * factors[key] for key, value in settings.items()})
    mean = train(make(settings), 1.0)
    np.testing.assert_allclose(train(converted, BATCH), mean, rtol=0, atol=1e-6)
    assert np.abs(train(make(settings), BATCH) - mean).max() > 1e-5


def test_degree_of_looks_past_what_is_weak_or_early():
    assert degree_of(OPTIMIZERS["momentum"]) == 1.0
    assert degree_of(OPTIMIZERS["sgd + l2"]) == 1.0
    assert degree_of(OPTIMIZERS["adam"]) == 0.0
    assert degree_of(OPTIMIZERS["radam"]) == 0.0
    assert degree_of(OPTIMIZERS["clip, adam"]) == 0.0
    assert degree_of(OPTIMIZERS["clip, sgd"]) is None
    assert degree_of(OPTIMIZERS["madgrad"]) is None


def test_own_parameters_are_used():
    """Labels name the caller's leaves; a leaf of zeros shows LARS's degree 1 by itself."""
    own = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    frozen = optax.partition(
        {"one": optax.sgd(0.1), "none": optax.set_to_zero()}, {"kernel": "one", "bias": "none"}
    )
    waiting = optax.MultiSteps(frozen, 4).gradient_transformation()
    found = mj.reduction_report(waiting, BATCH, params=own)
    assert found.degree == "1"
    assert "every 4 steps, of the mean" in found.reasons[-1]
    lars = optax.masked(optax.lars(0.1), {"kernel": True, "bias": True})
    assert mj.reduction_report(lars, BATCH, params=own).degree == "mixed"
    own["bias"] = jnp.ones(2)
    assert mj.reduction_report(lars, BATCH, params=own).degree == "0"


def test_one_task_has_nothing_to_convert():
    found = mj.reduction_report(OPTIMIZERS["clip, sgd"], 1)
    assert (found.settings, found.effect) == ({}, 0.0)
    assert str(found).startswith("Degree mixed. The sum over 1 task is its mean.")


def test_the_probe_is_deterministic_and_follows_a_path():
    """SGD on a path that it does not choose: the update is -η g wherever the parameters are."""
    probe = make_probe(optax.sgd(0.5))
    path = np.ones_like(probe.stream)
    run = probe.run(probe.stream, path=path)
    np.testing.assert_allclose(run.updates, -0.5 * probe.stream, rtol=1e-6)
    np.testing.assert_array_equal(run.path, path)
    again = make_probe(optax.sgd(0.5))
    np.testing.assert_array_equal(again.stream, probe.stream)
    norms = np.linalg.norm(probe.stream, axis=1)
    assert norms.min() == pytest.approx(0.5)
    assert norms.max() == pytest.approx(2.0)


def test_what_is_refused():
    def ask(optimizer=OPTIMIZERS["sgd"], meta_batch_size=4, **options):
        return mj.reduction_report(optimizer, meta_batch_size, **options)

    with pytest.raises(TypeError, match=r"optax transformation such as .* got MultiSteps"):
        ask(optax.MultiSteps(optax.sgd(0.1), 2))
    with pytest.raises(TypeError, match="optax transformation"):
        degree_of("adam")
    with pytest.raises(ValueError, match="meta_batch_size must be at least 1, got 0"):
        ask(meta_batch_size=0)
    with pytest.raises(TypeError, match="meta_batch_size must be an integer"):
        ask(meta_batch_size=4.0)
    with pytest.raises(ValueError, match="num_steps must be at least 4, got 2"):
        ask(num_steps=2)
    with pytest.raises(ValueError, match=r"must run on \(grads, .*value_fn.*pass params="):
        ask(optax.lbfgs())
    with pytest.raises(ValueError, match="must move the parameters, got 24 updates of zero"):
        ask(optax.set_to_zero())
    with pytest.raises(ValueError, match="must make finite updates, got nan or inf"):
        ask(optax.scale(float("nan")))
