"""The rooms: who may import whom, how long a file may be, and what must stay out."""

import ast
import pathlib
import subprocess
import sys

import pytest

import maml_jax

ROOT = pathlib.Path(maml_jax.__file__).parent

# Each module imports only from its left; a leaf imports nothing of the chain but these.
CHAIN = [
    "host",
    "exit_codes",
    "processes",
    "chunks",
    "tasks",
    "losses",
    "inner_checks",
    "checks",
    "gradients",
    "varying",
    "shared_sum",
    "inner_loop",
    "maml_family",
    "learned_rates",
    "aggregation",
    "spread",
    "optimizer_probe",
    "optimizer_clips",
    "optimizer_degree",
    "optimizer_causes",
    "reduction_reasons",
    "reduction_report",
    "gains",
    "stand_ins",
    "devices",
    "placement",
    "residuals",
    "layout",
    "task_axis",
    "nonfinite",
    "query_halves",
    "reduction",
    "outer_state",
    "outer_programs",
    "outer_step",
    "outer_loop",
    "gram_moments",
    "estimates",
    "advice",
    "diagnosis",
    "evaluation",
    "file_errors",
    "atomic_files",
    "metrics_log",
    "stop_signals",
    "run_lock",
    "checkpoint_leaves",
    "checkpoint_files",
    "checkpoint_reading",
    "checkpoints",
    "schedule",
    "progress",
    "training",
    "recipes",
    "memory_errors",
    "run_folder",
    "network",
    "assembly",
    "bench",
    "pictures",
    "diagnosing",
    "reporting",
    "runs",
    "streams",
    "command_tools",
    "training_commands",
    "cli",
]
LEAVES = {
    "benchmarking": {"host"},
    "convolution_products": set(),
    "convolution_cpu": {"chunks", "convolution_products", "host"},
    "bilinear": {"convolution_products", "convolution_cpu", "varying"},
    "convolution": {"bilinear"},
    "dense": {"bilinear"},
    "model_inputs": set(),
    "pooling": set(),
    "normalisation": set(),
    "by_examples": set(),
    "patch_statistics": {
        "by_examples",
        "convolution_cpu",
        "convolution_products",
        "normalisation",
    },
    "convolution_block": {
        "by_examples",
        "convolution",
        "convolution_cpu",
        "normalisation",
        "patch_statistics",
    },
    "models": {
        "convolution",
        "convolution_block",
        "dense",
        "model_inputs",
        "normalisation",
        "pooling",
    },
    "data": {"tasks", "atomic_files"},
    "plots": set(),
}
CORE = CHAIN[: CHAIN.index("evaluation") + 1]
JOINERS = CHAIN[CHAIN.index("recipes") :]


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield parts[0], path


def imported(path):
    """Names of the modules of this package and of others that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "maml_jax":
                yield from (f"maml_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module


FILES = [(room, path) for room, path in modules() if room != "__init__"]
IDS = [str(path.relative_to(ROOT)) for _, path in FILES]


@pytest.mark.parametrize(("room", "path"), FILES, ids=IDS)
def test_a_module_imports_only_from_below(room, path):
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("maml_jax.")}
    ours.discard(room)
    if room in LEAVES:
        assert ours <= LEAVES[room]
        return
    below = set(CHAIN[: CHAIN.index(room)])
    if room in JOINERS:
        below |= set(LEAVES)
    assert ours <= below


@pytest.mark.parametrize(("room", "path"), FILES, ids=IDS)
def test_a_file_holds_one_idea(room, path):
    assert len(path.read_text().splitlines()) <= 300


def test_the_core_needs_no_flax_and_no_data_library():
    code = (
        "import sys, maml_jax; "
        f"[__import__('maml_jax.' + name) for name in {CORE}]; "
        "print([m for m in ('flax', 'tensorflow_datasets', 'matplotlib', 'PIL', 'orbax', 'tyro',"
        " 'rich') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "[]"
