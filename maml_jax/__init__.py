"""Gradient-based meta-learning in JAX: adapt, reduce, update, in one compiled step."""

from typing import TYPE_CHECKING

from maml_jax import aggregation, data, gains, losses
from maml_jax.diagnosis import Diagnosis, diagnose
from maml_jax.evaluation import Evaluation, evaluate
from maml_jax.inner_loop import InnerLoop
from maml_jax.learned_rates import lslr, meta_sgd
from maml_jax.maml_family import anil, boil, fomaml, maml, reptile
from maml_jax.nonfinite import NonFiniteTaskError
from maml_jax.outer_loop import run_outer_steps
from maml_jax.outer_state import OuterState, OuterStep
from maml_jax.outer_step import make_outer_step
from maml_jax.reduction_report import ReductionReport, reduction_report
from maml_jax.tasks import Examples, Grouped, Task, meta_batch

if TYPE_CHECKING:
    from maml_jax import models

__version__ = "0.1.0"

__all__ = [
    "Diagnosis",
    "Evaluation",
    "Examples",
    "Grouped",
    "InnerLoop",
    "NonFiniteTaskError",
    "OuterState",
    "OuterStep",
    "ReductionReport",
    "Task",
    "aggregation",
    "anil",
    "boil",
    "data",
    "diagnose",
    "evaluate",
    "fomaml",
    "gains",
    "losses",
    "lslr",
    "make_outer_step",
    "maml",
    "meta_batch",
    "meta_sgd",
    "models",
    "reduction_report",
    "reptile",
    "run_outer_steps",
]


def __getattr__(name: str):
    """Imports `models` at first use: the core does not need flax."""
    if name == "models":
        import importlib

        return importlib.import_module("maml_jax.models")
    raise AttributeError(f"module 'maml_jax' has no attribute {name!r}")
