"""Rules by text: every one can be made, and a wrong text says what is right."""

import dataclasses

import pytest

from maml_jax import aggregation
from maml_jax.aggregation import named
from maml_jax.network import assemble_network, assemble_outer_step
from maml_jax.recipes import PRESETS

SINUSOID = PRESETS["sinusoid-10shot-finn2017"]


@pytest.mark.parametrize("name", list(named._PLAIN))
def test_every_plain_name_makes_the_rule_of_that_name(name):
    rule = named.from_text(name)
    assert rule.name.startswith(name)
    assert rule.level == getattr(aggregation, name)().level


@pytest.mark.parametrize("name", list(named._NUMBERED))
def test_every_numbered_name_takes_its_number(name):
    number = named._NUMBERED[name][2]
    rule = named.from_text(f"{name}:{number}")
    assert rule.name.startswith(name)
    assert str(number) in rule.name


def test_rules_without_a_text_need_more_than_a_number():
    """What is left out takes weights, a pool of tasks, sizes or a function."""
    left_out = set(aggregation.__all__) - set(named._PLAIN) - set(named._NUMBERED)
    tools = {"Aggregation", "Evidence", "Level", "aggregate", "resolve"}
    assert left_out - tools == {"weighted", "by_size", "importance", "worst_case", "gradvac"}


def test_a_configuration_trains_with_its_rule_and_gain():
    config = dataclasses.replace(SINUSOID, aggregation="tilted:0.5", gain="adascale")
    outer = assemble_outer_step(config, assemble_network(config))
    state = outer.init(assemble_network(config).params)
    assert float(state.gain_state.progress) == 0.0


ERRORS = {
    "unknown": ("upgrd", "got 'upgrd'; did you mean 'upgrad'"),
    "no number": ("tilted", "'tilted' needs a number, such as tilted:1.0"),
    "unwanted": ("mean:2", "'mean' takes no number, got 'mean:2'"),
    "not a number": ("tilted:much", "takes a number, got 'much'"),
    "not whole": ("trimmed_mean:1.5", "takes a whole number, got '1.5'"),
    "refused": ("cvar:2", r"alpha must be in \(0, 1\], got 2.0"),
}


@pytest.mark.parametrize(("text", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(text, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SINUSOID, aggregation=text)


def test_groups_are_for_images():
    from maml_jax.assembly import assemble

    with pytest.raises(ValueError, match=r"tasks_per_group is for images.*got 4"):
        assemble(dataclasses.replace(SINUSOID, tasks_per_group=4))


def test_an_aggregation_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match="aggregation must be a text, got 3"):
        dataclasses.replace(SINUSOID, aggregation=3)
