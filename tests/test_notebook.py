"""The Colab notebook is what its source says, and its cells run from the first to the last.

    python -m pytest tests/test_notebook.py

Set MAML_JAX_NOTEBOOK_PICTURES to a folder to keep what the cells show.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import matplotlib.image
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "cloud"))

import make_notebook  # noqa: E402

SOURCE = make_notebook.SOURCE.read_text()
OURS = "https://github.com/someone/maml_jax"

# Runs the code cells of a notebook in one namespace. As Colab does, it shows figures after the
# cell that made them: `plt.show` saves them. Drawing all writing systems would take ten seconds,
# and no cell may use the network.
RUNNER = """
import functools, json, pathlib, runpy, socket, sys
import matplotlib
import maml_jax.data.glyphs

matplotlib.use("agg")
from matplotlib import pyplot

def no_network(*arguments, **options):
    raise OSError("a cell used the network")

socket.getaddrinfo = no_network
socket.socket.connect = no_network
drawing = sys.modules["maml_jax.data.glyphs"]
systems = ("Hebrew", "Ogham", "Greek")
drawing.draw_glyphs = functools.partial(drawing.draw_glyphs, systems=systems)
shown = []

def show():
    for number in pyplot.get_fignums():
        shown.append(f"shown-{len(shown)}.png")
        pyplot.figure(number).savefig(shown[-1])
        pyplot.close(number)

pyplot.show = show
namespace = {"__name__": "__main__"}
for cell in json.loads(pathlib.Path(sys.argv[1]).read_text())["cells"]:
    if cell["cell_type"] == "code":
        print(f"# {cell['id']}", flush=True)
        source = "".join(cell["source"]).replace("SMALL = False", "SMALL = True")
        exec(compile(source, cell["id"], "exec"), namespace)
"""


def run(folder, *python):
    """Runs the notebook in an empty folder, as a user does: in 32 bits, on one device."""
    environment = {
        **os.environ,
        "MAML_JAX_CACHE_DIR": str(folder / "cache"),
        "JAX_NUM_CPU_DEVICES": "2",
    }
    return subprocess.run(
        [sys.executable, *python, str(make_notebook.NOTEBOOK)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which the notebook ran, and what each cell printed."""
    folder = tmp_path_factory.mktemp("notebook")
    result = run(folder, "-W", "error", "-c", RUNNER)
    assert result.returncode == 0, result.stderr[-3000:]
    kept = os.environ.get("MAML_JAX_NOTEBOOK_PICTURES")
    for path in folder.glob("shown-*.png") if kept else ():
        (pathlib.Path(kept) / path.name).write_bytes(path.read_bytes())
    parts = re.split(r"^# (code-\d\d)\n", result.stdout, flags=re.MULTILINE)
    return folder, dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.slow
def test_cells_run_from_first_to_last(ran):
    """What they print is what the library says of a run of that size."""
    folder, said = ran
    out = "".join(said.values())
    assert "maml_jax 0.1.0" in out
    assert re.search(r"jax [\d.]+, 2 x cpu", out)
    assert re.findall(r"^step +(\d+)", out, re.MULTILINE)[:2] == ["3", "6"]
    assert re.search(r"accuracy \d+\.\d+% ± \d+\.\d+% after 3 inner steps \(20 tasks, 5 s", out)
    assert "Gradients of 16 tasks in 4 meta-batches of 4, after 6 outer steps:" in out
    assert re.search(r"Done in \d+ s; result.json and pictures are in runs/colab", out)
    assert "glyphs-5way-1shot" in said[max(said)]  # The table of `maml-jax bench`.
    result = json.loads((folder / "runs" / "colab" / "result.json").read_text())
    assert result["test"]["num_tasks"] == 4


@pytest.mark.slow
def test_cells_show_their_pictures(ran):
    """Five of them: two of training, the diagnosis, and two of the run."""
    folder, _ = ran
    shown = sorted(folder.glob("shown-*.png"))
    assert len(shown) == 5
    for path in shown:
        image = matplotlib.image.imread(path)
        assert min(image.shape[:2]) > 200
        assert image[..., :3].std() > 0.05  # Not an empty sheet.


def test_notebook_is_made_from_its_source():
    want = make_notebook.notebook(SOURCE, make_notebook.repository())
    assert make_notebook.NOTEBOOK.read_text() == want, "run python cloud/make_notebook.py"


def test_notebook_has_the_form_of_nbformat():
    """Oracle: what the JSON schema of nbformat 4.5 asks for."""
    book = json.loads(make_notebook.notebook(SOURCE))
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert {"name", "display_name"} <= set(book["metadata"]["kernelspec"])
    names = [cell["id"] for cell in book["cells"]]
    assert len(set(names)) == len(names)
    for cell in book["cells"]:
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        asked = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            asked |= {"execution_count", "outputs"}
            assert (cell["execution_count"], cell["outputs"]) == (None, [])
        assert set(cell) == asked
        assert all(line.endswith("\n") for line in cell["source"][:-1])


def test_cells_hold_the_source_and_nothing_else():
    """Put together again with their markers, they are the source."""
    text = ""
    for cell in make_notebook.cells(SOURCE):
        is_text = cell["cell_type"] == "markdown"
        lines = "".join(cell["source"]).splitlines()
        lines = [f"# {line}".rstrip() for line in lines] if is_text else lines
        marker = "# %% [markdown]" if is_text else "# %%"
        text += "\n".join([marker, *lines, "", ""])
    blank = re.compile(r"\n{2,}")
    assert blank.sub("\n\n", text).strip() == blank.sub("\n\n", SOURCE).strip()


def test_an_empty_cell_and_text_in_front():
    assert make_notebook.cells("# %%\n")[0]["source"] == []
    with pytest.raises(ValueError, match=r"a cell must begin with '# %%', got 'x = 1' first"):
        make_notebook.cells("x = 1\n# %%\n")
    with pytest.raises(ValueError, match=r"a cell is '# %%' or '# %% \[markdown\]', got '# %% \[r"):
        make_notebook.cells("# %% [raw]\nx\n")


def test_a_known_repository_is_installed_and_opened():
    """The badge and the first cell name it; an unknown one is named by neither."""
    code = json.loads(make_notebook.notebook(SOURCE, OURS))["cells"][1]["source"]
    assert any(line.startswith(f'REPOSITORY = "{OURS}"') for line in code)
    address = (
        "https://colab.research.google.com/github/someone/maml_jax/blob/main/cloud/colab.ipynb"
    )
    assert make_notebook.badge(OURS).endswith(f"({address})")
    assert make_notebook.badge(OURS + ".git") == make_notebook.badge(OURS)
    for unknown in (None, "https://git.example.org/someone/maml_jax"):
        assert make_notebook.badge(unknown).endswith("/) and upload `cloud/colab.ipynb`.")


def test_readme_has_the_badge():
    assert make_notebook.badge(make_notebook.repository()) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (OURS, f"git+{OURS}"),
        ("maml_jax.zip", "maml_jax.zip"),
        ("https://example.org/maml_jax-0.1.0-py3-none-any.whl",) * 2,
        ("", str(ROOT)),
    ],
)
def test_installation_asks_pip_for(given, asked, tmp_path):
    """Where the library is not installed: JAX for this machine, and the library from there."""
    printed = install(given, ROOT if not given else tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.splitlines()[-1].startswith(f"pip install -q {asked} jax[")


def test_installation_without_an_address_says_what_to_do(tmp_path):
    printed = install("", tmp_path)
    assert printed.returncode == 1
    assert "Say in REPOSITORY, in the first cell, where the library is" in printed.stderr


def install(repository, folder):
    """Runs the cell of the installation where nothing is installed, with a pip that only prints."""
    cells = [cell for cell in make_notebook.cells(SOURCE) if cell["cell_type"] == "code"]
    cell = "".join(cells[1]["source"])
    lines = [
        "import importlib.metadata, subprocess",
        "def version(name): raise importlib.metadata.PackageNotFoundError(name)",
        "importlib.metadata.version = version",
        "def only_print(command, **options):",
        "    if command[1:3] != ['-m', 'pip']: raise OSError",
        "    print(*command[2:])",
        "subprocess.run = only_print",
        f"REPOSITORY = {repository!r}",
        cell,
    ]
    code = "\n".join(lines)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
