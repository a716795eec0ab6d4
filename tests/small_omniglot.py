"""A folder as TensorFlow Datasets prepares it, with 60 drawings of noise for all of Omniglot."""

import io
import json

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from maml_jax.data import _published

SIZES = {"train": 40, "test": 20}
_FEATURES = "tensorflow_datasets.core.features"


def prepare(folder, seed=0):
    """Writes what `tfds.builder("omniglot").download_and_prepare` leaves, but for the content."""
    split = _published.published_split("omniglot_vinyals")
    names = [f"{a}_{i}" for part in split.values() for a, numbers in part.items() for i in numbers]
    alphabets = sorted({name.rpartition("_")[0] for name in names})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "label.labels.txt").write_text("\n".join(names) + "\n")
    (folder / "alphabet.labels.txt").write_text("\n".join(alphabets) + "\n")
    (folder / "features.json").write_text(json.dumps(_features(len(names), len(alphabets))))
    rng = np.random.default_rng(seed)
    for part, size in SIZES.items():
        path = folder / f"omniglot-{part}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for _ in range(size):
            writer.write(_record(rng, len(names), len(alphabets)))
        writer.close()
    (folder / "dataset_info.json").write_text(json.dumps(_info()))


def _record(rng, num_names, num_alphabets):
    drawing = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (105, 105), dtype=np.uint8)).convert("1").save(
        drawing, "PNG"
    )
    numbers = {
        "label": rng.integers(num_names),
        "alphabet": rng.integers(num_alphabets),
        "alphabet_char_id": 1,
    }
    feature = {
        name: tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[int(number)]))
        for name, number in numbers.items()
    }
    image = tf_feature_pb2.BytesList(value=[drawing.getvalue()])
    feature["image"] = tf_feature_pb2.Feature(bytes_list=image)
    features = tf_feature_pb2.Features(feature=feature)
    return tf_example_pb2.Example(features=features).SerializeToString()


def _features(num_names, num_alphabets):
    def label(count):
        name = f"{_FEATURES}.class_label_feature.ClassLabel"
        return {"classLabel": {"numClasses": str(count)}, "pythonClassName": name}

    image = {
        "dtype": "uint8",
        "encodingFormat": "png",
        "shape": {"dimensions": ["105", "105", "3"]},
    }
    number = {"dtype": "int64", "encoding": "none", "shape": {}}
    features = {
        "alphabet": label(num_alphabets),
        "alphabet_char_id": {
            "pythonClassName": f"{_FEATURES}.tensor_feature.Tensor",
            "tensor": number,
        },
        "image": {"image": image, "pythonClassName": f"{_FEATURES}.image_feature.Image"},
        "label": label(num_names),
    }
    name = f"{_FEATURES}.features_dict.FeaturesDict"
    return {"featuresDict": {"features": features}, "pythonClassName": name}


def _info():
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits = [
        {
            "filepathTemplate": template,
            "name": part,
            "numBytes": "1",
            "shardLengths": [str(size)],
        }
        for part, size in SIZES.items()
    ]
    return {
        "fileFormat": "array_record",
        "moduleName": "tensorflow_datasets.image_classification.omniglot",
        "name": "omniglot",
        "version": "3.0.0",
        "splits": splits,
    }
