"""Strict settings for the whole suite: 64-bit, no silent broadcasting, no reused key.

The CPU counts as four devices, or `MAML_JAX_TEST_DEVICES`, of which tests use one unless they make
a mesh.
`MAML_JAX_TEST_X64=0` runs the same suite in JAX's default 32-bit mode, which is what
users run; tolerances that depend on the precision come from the `tolerance` fixture.
`MAML_JAX_TEST_CASES=3` takes a third of the cases of each test that has several: the first, and
those whose names say so, alike in all tests, so that a rule is either compiled or not.
Nearly all of the time is spent compiling programs that run once, so they are compiled with
little optimisation; `MAML_JAX_TEST_OPTIMIZED=1` compiles them as users do.
"""

import importlib.metadata
import os
import pathlib
import signal
import zlib

X64 = os.environ.get("MAML_JAX_TEST_X64", "1") == "1"

if os.environ.get("MAML_JAX_TEST_OPTIMIZED", "0") != "1":
    # In the environment, for JAX reads it when it starts, here and in child processes.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 12):
        quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ.setdefault("XLA_FLAGS", quick)  # Half of the time; unknown to newer ones.

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts in the background so, and children would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", int(os.environ.get("MAML_JAX_TEST_DEVICES", "4")))
jax.config.update("jax_enable_x64", X64)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


def pytest_collection_modifyitems(config, items):
    """Leaves out cases where only one in so many is asked for."""
    one_in = int(os.environ.get("MAML_JAX_TEST_CASES", "1"))
    seen, kept, left_out = set(), [], []
    for item in items:
        case = getattr(item, "callspec", None)
        test = item.nodeid.split("[")[0]
        chosen = case is None or test not in seen or zlib.crc32(case.id.encode()) % one_in == 0
        seen.add(test)
        (kept if chosen else left_out).append(item)
    items[:] = kept
    if left_out:
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def tolerance():
    """Relative tolerance for two programs that compute the same thing."""
    return 1e-12 if X64 else 2e-5


@pytest.fixture
def data_dir():
    """Folder of the real data sets beside the checkout, or a skip that says why."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("MAML_JAX_DATA_DIR", folder / "tensorflow_datasets"))
    if not folder.is_dir():
        pytest.skip("real data sets are not here: set MAML_JAX_DATA_DIR to a TFDS data folder")
    return folder


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Frees what a module compiled: the whole suite would hold gigabytes."""
    yield
    jax.clear_caches()
