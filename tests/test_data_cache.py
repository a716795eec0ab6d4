"""The cache of arrays: whatever happens to its file, the arrays are right."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from maml_jax.data._cache import cached_arrays, fingerprint
from maml_jax.data._folders import cache_folder, data_folder

ARRAYS = {"images": np.arange(6000, dtype=np.uint8).reshape(20, 300), "names": np.array(["a", "b"])}


def make(folder, calls):
    def build():
        calls.append(1)
        return dict(ARRAYS)

    return cached_arrays("set", build, folder)


def check(arrays):
    assert set(arrays) == set(ARRAYS)
    for name, expected in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], expected)


def test_kept_and_read_back(tmp_path):
    calls = []
    check(make(tmp_path / "new", calls))
    check(make(tmp_path / "new", calls))
    assert len(calls) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set.npz"]


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    return data[:3000] + bytes([data[3000] ^ 1]) + data[3001:]


def empty(data):
    return b""


def text(data):
    return b"not an archive"


@pytest.mark.parametrize("damage", [cut, flip, empty, text])
def test_damaged_file_is_built_again(tmp_path, damage, caplog):
    calls = []
    make(tmp_path, calls)
    path = tmp_path / "set.npz"
    path.write_bytes(damage(path.read_bytes()))
    check(make(tmp_path, calls))
    assert len(calls) == 2
    assert "is damaged" in caplog.text
    check(make(tmp_path, calls))
    assert len(calls) == 2


def test_changed_content_with_a_valid_archive_is_built_again(tmp_path, caplog):
    """A checksum of the archive alone would accept this file."""
    calls = []
    make(tmp_path, calls)
    with np.load(tmp_path / "set.npz") as file:
        arrays = dict(file)
    arrays["images"][3, 7] += 1
    np.savez(tmp_path / "set.npz", **arrays)
    check(make(tmp_path, calls))
    assert len(calls) == 2
    assert "SHA-256 does not match" in caplog.text


def test_pickles_are_never_read(tmp_path, caplog):
    np.savez(tmp_path / "set.npz", images=np.array([{"a": 1}], dtype=object), sha256="0")
    calls = []
    check(make(tmp_path, calls))
    assert len(calls) == 1
    assert "allow_pickle" in caplog.text


def test_folder_that_cannot_be_written_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    calls = []
    check(make(tmp_path / "file" / "folder", calls))
    assert "Not keeping" in caplog.text


def test_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", refuse)
    check(make(tmp_path, []))
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_depends_on_every_part():
    assert (
        len({fingerprint(1, "a"), fingerprint(1, "b"), fingerprint(2, "a"), fingerprint("1a")}) == 4
    )
    assert fingerprint(1, "a") == fingerprint(1, "a")


def test_folders_come_from_argument_then_environment_then_home(monkeypatch):
    home = pathlib.Path.home()
    for name in ("MAML_JAX_DATA_DIR", "TFDS_DATA_DIR", "MAML_JAX_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert data_folder() == home / "tensorflow_datasets"
    assert cache_folder() == home / ".cache" / "maml_jax"
    monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
    assert data_folder() == pathlib.Path("/somewhere")
    monkeypatch.setenv("MAML_JAX_DATA_DIR", "/elsewhere")
    monkeypatch.setenv("MAML_JAX_CACHE_DIR", "/kept")
    assert data_folder() == pathlib.Path("/elsewhere")
    assert data_folder("~/mine") == home / "mine"
    assert cache_folder() == pathlib.Path("/kept")


def test_import_is_light():
    """Importing maml_jax.data imports none of the libraries that only readers need."""
    program = (
        "import sys\n"
        "import maml_jax.data\n"
        "heavy = {'tensorflow_datasets', 'matplotlib', 'PIL', 'array_record', 'tensorflow'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    root = pathlib.Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
