"""Every public name has a docstring and an example, and the examples run."""

import doctest
import importlib
import inspect
import pkgutil
import types

import jax
import pytest

import maml_jax
from maml_jax import aggregation, data, losses, models, plots


def all_modules():
    for info in pkgutil.walk_packages(maml_jax.__path__, "maml_jax."):
        yield info.name


def public():
    for package in (maml_jax, aggregation, data, plots):
        for name in package.__all__:
            thing = getattr(package, name)
            if not isinstance(thing, types.ModuleType):
                yield f"{package.__name__}.{name}", thing
    for module in (losses, models):
        for name, thing in vars(module).items():
            own = getattr(thing, "__module__", "") == module.__name__
            if own and callable(thing) and not name.startswith("_"):
                yield f"{module.__name__}.{name}", thing


@pytest.mark.parametrize("name", list(all_modules()))
def test_examples_run(name):
    """In the default 32-bit mode, in which users paste them."""
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize(("name", "thing"), list(public()), ids=[name for name, _ in public()])
def test_public_names_are_documented(name, thing):
    assert ">>> " in (inspect.getdoc(thing) or ""), f"{name} has no example"
