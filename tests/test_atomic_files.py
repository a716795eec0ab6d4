"""Files that are whole or not there: what is written with them, at every way to fail.

    python -m pytest tests/test_atomic_files.py

The oracle is the content before and after.
"""

import errno
import json
import os

import numpy as np
import pytest

from maml_jax.atomic_files import written_whole
from maml_jax.data._cache import cached_arrays
from maml_jax.metrics_log import append_metrics, read_metrics, truncate_metrics
from maml_jax.run_folder import write_json


def json_file(folder, value):
    write_json(folder / "result.json", {"value": value})
    return folder / "result.json"


def log_file(folder, value):
    path = folder / "metrics.jsonl"
    path.write_text("")
    for step in (value, value + 1):
        append_metrics(path, {"step": step})
    truncate_metrics(path, value)
    assert read_metrics(path) == [{"step": value}]
    return path


def cache_file(folder, value):
    cached_arrays(f"set{value}", lambda: {"a": np.arange(value)}, folder)
    return folder / f"set{value}.npz"


@pytest.mark.parametrize("write", [json_file, log_file, cache_file])
def test_who_may_read_it_is_as_the_umask_says(tmp_path, monkeypatch, write):
    """Also while it is written, in the folder of its name."""
    seen, replace = [], os.replace

    def watched(source, target):
        seen.append((os.path.dirname(source), os.stat(source).st_mode & 0o777))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    before = os.umask(0o027)
    try:
        path = write(tmp_path, 5)
    finally:
        os.umask(before)
    assert seen == [(str(tmp_path), 0o640)]
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_alone_and_names_it(tmp_path, monkeypatch, name):
    path = json_file(tmp_path, 1)

    def full(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, name, full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        json_file(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [path]
    assert json.loads(path.read_text()) == {"value": 1}


def test_an_error_in_the_block_is_passed_on(tmp_path):
    def half():
        with written_whole(tmp_path / "new") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        written_whole(tmp_path / "no_such_folder" / "new").__enter__()
