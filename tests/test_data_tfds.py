"""Omniglot, CIFAR-FS and FC100 as prepared by TensorFlow Datasets, and `prepare`."""

import collections
import json
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import small_omniglot

from maml_jax.data import _published, cifar, cifar_fs, fc100, omniglot, prepare
from maml_jax.data._tfds import decode_image, label_names, prepared_builder, read_records

READERS = {"omniglot": omniglot, "cifar_fs": cifar_fs, "fc100": fc100}
SIZES = {"train": 19_280, "test": 13_180}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", READERS)
def test_unprepared_data_is_refused_at_once(name, tmp_path, no_network):
    started = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=r"run: maml-jax prepare \w+ --data-dir"):
        READERS[name](data_dir=tmp_path)
    assert time.perf_counter() - started < 2.0


def test_data_dir_comes_from_the_environment(tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("MAML_JAX_DATA_DIR", str(tmp_path / "mine"))
    with pytest.raises(FileNotFoundError, match="mine"):
        omniglot()


def test_incomplete_folder_of_a_killed_preparation_is_refused(tmp_path, no_network):
    """TFDS writes to `incomplete.XXXXXX_3.0.0`, then renames; it may be all but whole."""
    folder = tmp_path / "omniglot" / "incomplete.ABC123_3.0.0"
    folder.mkdir(parents=True)
    for name in ("omniglot-train.array_record-00000-of-00001", "dataset_info.json"):
        (folder / name).write_bytes(b"half")
        with pytest.raises(FileNotFoundError, match="omniglot must be prepared once"):
            omniglot(data_dir=tmp_path)


def test_another_version_is_refused(tmp_path, no_network):
    folder = tmp_path / "omniglot" / "2.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"prepared at version 3\.0\.0, got 2\.0\.0"):
        omniglot(data_dir=tmp_path)


def copy_without(data_dir, tmp_path, left_out):
    folder = tmp_path / "omniglot" / "3.0.0"
    folder.mkdir(parents=True)
    for path in (pathlib.Path(data_dir) / "omniglot" / "3.0.0").iterdir():
        if path.name != left_out:
            if path.suffix == ".json":
                shutil.copy(path, folder / path.name)
            else:
                (folder / path.name).symlink_to(path)
    return folder


def test_missing_shard_is_refused(data_dir, tmp_path, no_network):
    copy_without(data_dir, tmp_path, "omniglot-test.array_record-00000-of-00001")
    with pytest.raises(FileNotFoundError, match=r"must have all its files.*omniglot-test"):
        omniglot(data_dir=tmp_path)


def test_other_counts_are_refused(data_dir, tmp_path, no_network):
    folder = copy_without(data_dir, tmp_path, "nothing")
    info = json.loads((folder / "dataset_info.json").read_text())
    for split in info["splits"]:
        if split["name"] == "train":
            split["shardLengths"] = ["19279"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="'train': 19279"):
        omniglot(data_dir=tmp_path)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A prepared folder of 60 drawings, and a function that reads it anew, past the cache."""
    monkeypatch.setattr(sys.modules["maml_jax.data.omniglot"], "_SIZES", small_omniglot.SIZES)
    monkeypatch.setenv("MAML_JAX_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "omniglot" / "3.0.0"
    small_omniglot.prepare(folder)

    def read():
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        splits = omniglot(data_dir=tmp_path, image_size=4)
        return b"".join(
            classes.images.tobytes() + "".join(classes.class_names).encode()
            for classes in (splits.meta_train, splits.meta_validation, splits.meta_test)
        )

    return folder, read


def test_100_damaged_files_give_an_error_that_says_what_to_do_or_change_nothing(small):
    """Oracle: what is read from the whole files. Bits, cuts and emptied files, in turn.

    A record may have padding, and some descriptions are not used: these flips change nothing.
    """
    folder, read = small
    whole, rng, found = read(), random.Random(1), collections.Counter()
    files = sorted(folder.iterdir())
    assert len(files) == 6
    advice = f"remove {folder} and run: maml-jax prepare omniglot --data-dir {folder.parents[1]}"
    for trial in range(102):
        file = files[trial % 6]
        content = file.read_bytes()
        damaged, place = bytearray(content), rng.randrange(8 * len(content))
        damaged[place // 8] ^= 1 << place % 8
        kind = ("bit", "bit", "bit", "cut", "emptied")[trial % 5]
        file.write_bytes({"bit": damaged, "cut": content[: place // 8], "emptied": b""}[kind])
        try:
            said = "" if read() == whole else "something else was read"
        except (ValueError, FileNotFoundError) as error:
            said = str(error)
        assert re.fullmatch(rf"|(omniglot |{folder}/).*{advice}", said)
        found[file.name, "refused" if said else "same"] += 1
        file.write_bytes(content)
    assert read() == whole
    assert found["label.labels.txt", "refused"] == 17
    assert found["omniglot-train.array_record-00000-of-00001", "refused"] >= 7
    assert found["dataset_info.json", "refused"] >= 10


@pytest.mark.parametrize("feature", ["label", "coarse_label"])
def test_names_that_are_not_the_published_ones_are_refused(tmp_path, feature):
    """A superclass of another name would silently leave its classes out of FC100."""
    split = _published.published_split({"label": "cifar_fs", "coarse_label": "fc100"}[feature])
    names = sorted(name for part in split.values() for name in part)

    def builder(names):
        features = {feature: types.SimpleNamespace(names=names)}
        path = tmp_path / "cifar100" / "3.0.2"
        info = types.SimpleNamespace(features=features)
        return types.SimpleNamespace(name="cifar100", data_path=path, info=info)

    assert label_names(builder(names), feature, split) == names
    changed = [*names[:-1], names[-1][:-1] + "z"]
    twice = [*names[:-1], names[0]]
    for wrong in (names[:-1], changed, twice, [*names, names[0]], []):
        with pytest.raises(
            ValueError,
            match=rf"/{feature}.labels.txt must hold the {len(names)} published names once each, "
            rf"got {len(wrong)} that differ at .*; remove .*3\.0\.2 and run: .*prepare cifar100",
        ):
            label_names(builder(wrong), feature, split)


KILLED_FIVE_TIMES = """
import os, pathlib, random, shutil, signal, sys, time
from tensorflow_datasets.core.utils import incomplete_dir
from maml_jax.data import omniglot

source, data_dir, rng = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), random.Random(0)
sys.modules["maml_jax.data.omniglot"]._SIZES = {"train": 40, "test": 20}

def prepare(pause):
    with incomplete_dir(data_dir / "omniglot" / "3.0.0") as folder:
        for path in sorted(source.iterdir()):
            shutil.copy(path, folder)
            time.sleep(pause)

for trial in range(6):
    if trial < 5:
        child = os.fork()
        if child == 0:
            prepare(0.05)
            time.sleep(600)
        time.sleep(rng.uniform(0.0, 0.28))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    else:
        prepare(0)
    try:
        print(omniglot(data_dir=data_dir, image_size=4).meta_train.num_classes)
    except FileNotFoundError as error:
        print(str(error).split(",")[0])
print(len(list((data_dir / "omniglot").glob("incomplete.*"))))
"""


def test_kill_while_it_is_prepared_leaves_nothing_that_is_read(small, tmp_path):
    """Five kills in what TFDS prepares in, file by file, then one preparation to the end."""
    command = [sys.executable, "-c", KILLED_FIVE_TIMES, str(small[0]), str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    *lines, litter = done.stdout.splitlines()
    assert lines == ["omniglot must be prepared once"] * 5 + ["1028"]
    assert 3 <= int(litter) <= 5


def test_drawings_equal_an_independent_reduction(data_dir):
    """Oracle: omniglot_28x28.npz, made by another program, where it lies beside the data."""
    builder = prepared_builder("omniglot", data_dir, required=SIZES)
    path = pathlib.Path(data_dir).parent / "omniglot_28x28.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    with np.load(path) as file:
        expected = file["image"]
    for i, record in zip(range(60), read_records(builder, "train[:60]"), strict=True):
        image = decode_image(record["image"], "L", (28, 28))
        assert image.dtype == np.uint8
        assert any(np.array_equal(image, other) for other in expected[record["label"]]), i


def test_published_split_sizes_and_names(data_dir):
    """Oracle: 1028/172/423 (Vinyals et al.), 64/16/20 (Bertinetto et al.), 60/20/20."""
    builder = prepared_builder("omniglot", data_dir, required=SIZES)
    split = _published.published_split("omniglot_vinyals")
    names = [{f"{a}_{i}" for a, ns in part.items() for i in ns} for part in split.values()]
    assert list(split) == ["meta_train", "meta_validation", "meta_test"]
    assert [len(part) for part in names] == [1028, 172, 423]
    assert set.union(*names) == set(builder.info.features["label"].names)
    cifar100 = prepared_builder("cifar100", data_dir, required=cifar._SIZES)
    classes = _published.published_split("cifar_fs")
    assert [len(part) for part in classes.values()] == [64, 16, 20]
    assert set.union(*map(set, classes.values())) == set(cifar100.info.features["label"].names)
    groups = _published.published_split("fc100")
    assert [len(part) for part in groups.values()] == [12, 4, 4]
    assert set.union(*map(set, groups.values())) == set(
        cifar100.info.features["coarse_label"].names
    )


@pytest.mark.slow
def test_omniglot(data_dir, tmp_path, monkeypatch):
    """Oracle: the npz beside the data: the same 20 drawings of each character."""
    monkeypatch.setenv("MAML_JAX_CACHE_DIR", str(tmp_path))
    splits = omniglot(data_dir=data_dir)
    parts = (splits.meta_train, splits.meta_validation, splits.meta_test)
    assert [c.num_classes for c in parts] == [1028, 172, 423]
    assert splits.meta_train.images.shape == (1028, 20, 28, 28, 1)
    assert (splits.meta_test.mean, splits.meta_test.std) == ((1.0,), (-1.0,))
    with np.load(pathlib.Path(data_dir).parent / "omniglot_28x28.npz") as file:
        expected = dict(zip(file["label_name"], file["image"], strict=True))
    for classes in parts:
        for name, group, images in zip(
            classes.class_names, classes.groups, classes.images, strict=True
        ):
            assert name.startswith(f"{group}_")
            assert sorted(i.tobytes() for i in images) == sorted(
                i.tobytes() for i in expected[name]
            )
    again = omniglot(data_dir=data_dir).meta_test
    np.testing.assert_array_equal(again.images, splits.meta_test.images)


@pytest.mark.slow
def test_cifar(data_dir, tmp_path, monkeypatch):
    """Oracle: published counts, and CIFAR-100's well-known mean of the training images."""
    monkeypatch.setenv("MAML_JAX_CACHE_DIR", str(tmp_path))
    fs, fc = cifar_fs(data_dir=data_dir), fc100(data_dir=data_dir)
    for splits, sizes in ((fs, [64, 16, 20]), (fc, [60, 20, 20])):
        parts = (splits.meta_train, splits.meta_validation, splits.meta_test)
        assert [c.num_classes for c in parts] == sizes
        assert splits.meta_test.images.shape == (20, 600, 32, 32, 3)
    assert [len(set(c.groups)) for c in (fc.meta_train, fc.meta_validation, fc.meta_test)] == [
        12,
        4,
        4,
    ]
    assert "fish" in fc.meta_train.groups
    parts = (fs.meta_train, fs.meta_validation, fs.meta_test)
    # TFDS's train split comes first: 500 of each class.
    pixels = np.concatenate([c.images[:, :500].reshape(-1, 3) for c in parts])
    levels = np.arange(256) / 255.0
    shares = [np.bincount(channel, minlength=256) / len(pixels) for channel in pixels.T]
    mean = [share @ levels for share in shares]
    std = [np.sqrt(share @ (levels - m) ** 2) for share, m in zip(shares, mean, strict=True)]
    np.testing.assert_allclose(mean, cifar._MEAN, rtol=1e-12)
    np.testing.assert_allclose(std, cifar._STD, rtol=1e-6)


def test_prepare_needs_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "maml-jax\[prepare\]"'):
        prepare("omniglot", data_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    monkeypatch.setitem(sys.modules, "importlib_resources", None)
    with pytest.raises(ModuleNotFoundError, match="importlib_resources"):
        prepare("cifar100", data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_prepare_asks_tfds_for_array_record(monkeypatch, tmp_path):
    """A stand-in for TFDS records what it is asked; the real one needs a download."""
    asked = {}

    class Builder:
        data_path = tmp_path / "omniglot" / "3.0.0"

        def download_and_prepare(self, **settings):
            asked["settings"] = settings

    def builder(name, **settings):
        asked.update(name=name, **settings)
        return Builder()

    for name in ("tensorflow", "importlib_resources"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    stand_in = types.ModuleType("tensorflow_datasets")
    stand_in.builder = builder
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", stand_in)
    assert prepare("omniglot", data_dir=tmp_path) == Builder.data_path
    assert asked == {
        "name": "omniglot",
        "data_dir": str(tmp_path),
        "file_format": "array_record",
        "settings": {"file_format": "array_record"},
    }


def test_prepare_knows_two_sets():
    with pytest.raises(ValueError, match="name must be one of omniglot, cifar100, got 'mnist'"):
        prepare("mnist")
