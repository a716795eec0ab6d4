"""Nothing that is read is run, nothing secret is written, nobody else can write where we read.

    python -m pytest tests/test_security.py

Downloads are those of TensorFlow Datasets, with its pinned sizes and digests, and no archive is
unpacked by this library but the NumPy files of its own cache (test_data_cache.py): the first test
holds both. The port of several processes is in test_distributed.py.
"""

import ast
import json
import os
import pathlib
import pickle
import re
import shlex
import tomllib

import jax
import numpy as np
import pytest

import maml_jax
from children import SMALL, environment, finish, start  # noqa: F401
from maml_jax import checkpoints
from maml_jax.command_tools import use_compilation_cache
from maml_jax.recipes import PRESETS, Config
from maml_jax.run_folder import read_config, resume_command, write_config

ROOT = pathlib.Path(maml_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
RUNS_CODE = {
    "pickle",
    "yaml",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "subprocess",
    "ctypes",
}
UNPACKS = {"tarfile", "zipfile", "gzip", "lzma", "bz2", "zlib"}
NETWORK = {"urllib", "http", "requests", "httpx", "ftplib", "ssl", "asyncio"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "runpy.run_path"),
    *("yaml.load", "torch.load", "tempfile.mktemp", "importlib.import_module"),
}
# Where something that needs a look is used all the same, and why.
ALLOWED = {
    "socket": {"run_lock.py"},  # The name of this host.
    "importlib.import_module": {"__init__.py", "data/prepare.py"},  # Names in the source.
    "os.environ": {"data/_folders.py", "devices.py"},  # Two folders; the number of devices.
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def dotted(node):
    """The name of an expression such as `os.path.join`; of another one, `?` and the last part."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def expressions(path, kind):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kind)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_module_runs_what_it_reads(path):
    """No pickle, no eval, no shell, no archive, no connection; and the three exceptions."""
    modules, called = set(imported(path)), [dotted(c.func) for c in expressions(path, ast.Call)]
    named = {dotted(node) for node in expressions(path, ast.Attribute)}
    assert not {name.split(".")[0] for name in modules} & (RUNS_CODE | UNPACKS | NETWORK)
    assert not set(called) & BUILT_IN
    assert not {name.split(".")[-1] for name in called} & {"extractall", "unpack_archive"}
    for name in (modules | named) & (CALLS | set(ALLOWED)):
        assert name_of(path) in ALLOWED.get(name, ()), name
    for call in expressions(path, ast.Call):
        if dotted(call.func) in ("np.load", "np.save", "np.savez"):
            (pickles,) = [word.value for word in call.keywords if word.arg == "allow_pickle"]
            assert ast.unparse(pickles) == "False"


class Bomb:
    """What says so when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_a_checkpoint_is_read_and_written_without_pickle(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("pickle was used")

    state = {"w": np.arange(6.0).reshape(2, 3), "step": 3}
    # Orbax first imports what it needs.
    checkpoints.save(tmp_path / "first", 1, state, config={})
    for name in ("loads", "load", "Unpickler", "dumps", "dump", "Pickler", "_loads", "_load"):
        monkeypatch.setattr(pickle, name, refuse)
    checkpoints.save(tmp_path, 1, state, config={})
    restored = checkpoints.restore(tmp_path, state)
    np.testing.assert_array_equal(restored.state["w"], state["w"])
    with pytest.raises(ValueError, match="must be an array or a number, got dtype object"):
        checkpoints.save(tmp_path, 2, {"w": np.array([Bomb()], dtype=object)}, config={})


def test_a_file_that_somebody_adds_to_a_checkpoint_is_noticed_and_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = checkpoints.save(tmp_path / "run", 1, {"w": np.ones(3)}, config={})
    (path / "state" / "extra.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(checkpoints.CheckpointCorruptError, match=r"extra.pkl was no file and is"):
        checkpoints.restore(tmp_path / "run", {"w": np.ones(3)})
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    "content",
    [
        "!!python/object/apply:os.mkdir ['unpickled']",
        "config: !!python/object/apply:os.mkdir ['unpickled']",
        '{"config": {"_target_": "os.mkdir", "path": "unpickled"}}',
        '{"config": {"__reduce__": ["os.mkdir", ["unpickled"]]}}',
        '{"config": "os.mkdir(\'unpickled\')"}',
        pickle.dumps(Bomb()),
    ],
)
def test_a_configuration_that_asks_for_code_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"config.json is not as it was written"):
        read_config(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "__import__('os')",
        "maml_jax.cli:main",
        "aggregate",
        "rule",
        "__class__",
        "../x",
    ],
)
@pytest.mark.parametrize("field", ["dataset", "model", "inner", "aggregation", "gain"])
def test_names_are_looked_up_in_a_list_of_ours(tmp_path, field, name):
    """Public names of our modules that are no choice are refused like any other."""
    with pytest.raises(ValueError, match=f"{field} must be one of"):
        Config(**{field: name})
    write_config(tmp_path, PRESETS["sinusoid-10shot-finn2017"])
    content = json.loads((tmp_path / "config.json").read_text())
    content["config"][field] = name
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{field} must be one of"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["a; rm -rf ~", "$(id)", "`id`", "a'b", '"', "-rf", "a\nb", "é *"])
def test_a_command_that_is_shown_can_be_pasted(name):
    assert shlex.split(resume_command(name)) == ["maml-jax", "resume", name]


def test_a_checkpoint_is_for_this_user_alone_while_it_is_written_and_after(tmp_path, monkeypatch):
    modes, publish = [], checkpoints.publish

    def watched(temporary, final):
        modes.append(temporary.stat().st_mode & 0o777)
        publish(temporary, final)

    monkeypatch.setattr(checkpoints, "publish", watched)
    before = os.umask(0)
    try:
        path = checkpoints.save(tmp_path, 1, {"w": np.ones(3)}, config={})
    finally:
        os.umask(before)
    assert [*modes, path.stat().st_mode & 0o777] == [0o700, 0o700]


def test_compiled_programs_are_not_kept_where_others_can_write(tmp_path, monkeypatch):
    """The folder, and the one it is in, as who can write there can put another in its place."""
    name = "jax_compilation_cache_dir"
    before = jax.config.values[name]
    monkeypatch.setenv("MAML_JAX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache" / "compiled").mkdir(parents=True)
    jax.config.update(name, None)
    try:
        for folder in (tmp_path / "cache", tmp_path / "cache" / "compiled"):
            folder.chmod(0o777)
            message = f"not kept for the next run: others can write to {folder};.*chmod go-w"
            with pytest.warns(UserWarning, match=message):
                use_compilation_cache()
            assert jax.config.values[name] is None
            folder.chmod(0o755)
        use_compilation_cache()
        assert jax.config.values[name] == str(tmp_path / "cache" / "compiled")
    finally:
        jax.config.update(name, before)


@pytest.mark.slow
def test_nothing_of_the_environment_is_written(tmp_path, environment):  # noqa: F811
    """A whole small run with secrets around it: on the terminal, and in every file it leaves."""
    secrets = {
        "WANDB_API_KEY": "a-secret-0123456789",
        "AWS_SECRET_ACCESS_KEY": "b-secret-0123456789",
        "HF_TOKEN": "c-secret-0123456789",
        "MAML_JAX_PASSWORD": "d-secret-0123456789",
    }
    words = [*SMALL, "--outer-steps", "20", "--checkpoint-every", "10", "--run-dir", "run"]
    inside = {**environment, **secrets, "MAML_JAX_CACHE_DIR": str(tmp_path / "cache")}
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        code, out, err = finish(start(words, inside))
    finally:
        os.chdir(before)
    assert (code, err) == (0, "")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    found = {path.name for path in files}
    assert {"config.json", "metrics.jsonl", "result.json", "manifest.json"} <= found
    for text in [out.encode(), *(path.read_bytes() for path in files)]:
        assert b"-secret-" not in text
        for name in secrets:
            assert name.encode() not in text


def test_what_we_build_on_is_bounded():
    """JAX promises nothing across minor versions; and a new dependency is a decision."""
    path = pathlib.Path(__file__).resolve().parents[1] / "pyproject.toml"
    project = tomllib.loads(path.read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    ours = {re.split(r"[\[<>=]", line)[0]: line for line in project["dependencies"]}
    assert set(ours) == {
        *("jax", "flax", "optax", "orbax-checkpoint", "numpy", "tyro", "rich", "matplotlib"),
        *("Pillow", "tensorflow-datasets", "array_record"),
    }
    for line in [*ours.values(), *extras]:
        assert ">=" in line, line
        if re.split(r"[\[<>=]", line)[0] == "jax":
            assert re.search(r",<0\.\d+$", line), line
