"""What the TPU compiler made of our outer step, and that it still makes it.

python -m pytest tests/test_tpu_compiler.py                # the committed results
python benchmarks/tpu_compile.py --workloads               # makes the environment, 684 MB
python -m pytest -m nightly tests/test_tpu_compiler.py     # compiles, at a small size
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "tpu_compile.json").read_text())["results"]
ENVIRONMENT = ROOT / "benchmarks" / "environments" / "tpu" / "bin" / "python"

PARAMETERS = {"W1": 112_005, "W2": 32_773}  # Numbers in the networks' gradients.
REPORTED = 3  # Numbers a task reports with its gradient: losses before and after, accuracy.

SMALL = """
import json
import tpu_compile
from tpu_compile import Case

sizes = {"way": 2, "query_shot": 2}
cases = [
    Case(workload="W1", chips="v5e-1", tasks_per_chip=2),
    Case(workload="W1", chips="v5e-8", tasks_per_chip=2),
    Case(workload="W1", chips="v5e-8", tasks_per_chip=2, model=2),
]
print(json.dumps([tpu_compile.measure(case, **sizes) for case in cases]))
"""


def one(**settings):
    """The only row with some settings, of those that run all tasks of a chip side by side."""
    settings = {"task_axis": "vmap", "activations": "float32", "model": 1, **settings}
    (row,) = [r for r in RESULTS if all(r[name] == value for name, value in settings.items())]
    return row


@pytest.mark.parametrize("row", RESULTS, ids=lambda row: f"{row['workload']}-{row['chips']}")
def test_programs_fit(row):
    """Those too in which "auto" chose how many tasks run at once."""
    used = row["argument_bytes"] + row["output_bytes"] + row["temporary_bytes"]
    assert 0 < used < row["available_bytes"]


@pytest.mark.parametrize("workload", PARAMETERS)
@pytest.mark.parametrize("chips", ["v5e-8", "v6e-4"])
def test_chips_meet_once(workload, chips):
    """In one sum of the size of the gradient and of what tasks report; FLOPs as on one chip."""
    row, alone = one(workload=workload, chips=chips), one(workload=workload, chips="v5e-1")
    num_chips = int(chips[-1])
    (exchange,) = row["exchanges"]
    reported = REPORTED * num_chips * row["tasks_per_chip"]
    assert exchange["kind"] == "all-reduce"
    assert exchange["elements"] == PARAMETERS[workload] + reported
    assert exchange["devices"] == num_chips
    assert row["flops"] == pytest.approx(alone["flops"], rel=0.02)
    assert alone["exchanges"] == []


def python_with_libtpu():
    """An interpreter that has the TPU compiler, or a skip that says how to get one."""
    if importlib.util.find_spec("libtpu"):
        return sys.executable
    if ENVIRONMENT.exists():
        return str(ENVIRONMENT)
    pytest.skip("libtpu is not here: python benchmarks/tpu_compile.py installs it, 684 MB")


@pytest.mark.nightly
def test_the_compiler_still_does():
    """The same at a small size: one sum, the FLOPs of one chip, parameters in halves."""
    environment = {name: value for name, value in os.environ.items() if name[:4] not in ("JAX_",)}
    environment["PYTHONPATH"] = str(ROOT / "benchmarks")
    result = subprocess.run(
        [python_with_libtpu(), "-c", SMALL],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    alone, eight, halves = json.loads(result.stdout.splitlines()[-1])
    (exchange,) = eight["exchanges"]
    num_parameters = PARAMETERS["W1"] - 3 * (64 + 1)  # Two classes instead of five.
    assert exchange["elements"] == num_parameters + REPORTED * 16
    assert eight["flops"] == pytest.approx(alone["flops"], rel=0.02)
    assert halves["argument_bytes"] < 0.7 * eight["argument_bytes"]
    assert halves["flops"] < 0.6 * eight["flops"]
