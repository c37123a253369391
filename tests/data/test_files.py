"""A user's own files: every format, and what is said of malformed ones."""

from __future__ import annotations

import gzip
import json
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from paceline.core.errors import ConfigError, DataError, DataFormatError, UnknownNameError
from paceline.data.files import file_kinds, read_files


def idx_bytes(array):
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def idx_folder(folder, zipped=False):
    rng = np.random.default_rng(0)
    for kind, count in (("train", 20), ("t10k", 10)):
        images, labels = rng.integers(0, 256, (count, 5, 4)), np.arange(count) % 2
        for name, array in ((f"{kind}-images-idx3-ubyte", images), (f"{kind}-labels-idx1-ubyte", labels)):
            content = idx_bytes(array)
            path = folder / (name + (".gz" if zipped else ""))
            path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(tmp_path, zipped):
    _, data = read_files(f"idx:{idx_folder(tmp_path, zipped)}")
    assert (data.train.x.shape, data.test.x.shape) == ((20, 5, 4), (10, 5, 4))
    assert data.train.y.tolist() == [0, 1] * 10


@pytest.mark.parametrize(
    ("name", "content", "reported"),
    [
        ("train-images-idx3-ubyte", b"", "not an idx file"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03\0\0", "the file has 6 bytes"),
        ("train-images-idx3-ubyte", idx_bytes(np.zeros((20, 5, 4)))[:-1], "found 399"),
        ("train-labels-idx1-ubyte", idx_bytes(np.zeros(19)), "one per image"),
        ("train-labels-idx1-ubyte", b"\x1f\x8b broken", "damaged gzip data"),
    ],
)
def test_malformed_idx(tmp_path, name, content, reported):
    idx_folder(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataFormatError, match=reported) as caught:
        read_files(f"idx:{tmp_path}")
    assert name in str(caught.value)


def test_idx_without_labels(tmp_path):
    (idx_folder(tmp_path) / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataFormatError, match="file is missing"):
        read_files(f"idx:{tmp_path}")


def batch(count=10, **changes):
    data = np.random.default_rng(1).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {b"data": data, b"labels": [i % 10 for i in range(count)]} | changes


def cifar_folder(folder, protocol=2):
    for name, content in (
        ("data_batch_1", batch()),
        ("test_batch", batch()),
        ("batches.meta", {b"label_names": [b"c%d" % i for i in range(10)]}),
    ):
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return folder


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_cifar(tmp_path, protocol):
    _, data = read_files(f"cifar-10-batches-py:{cifar_folder(tmp_path, protocol)}")
    assert data.train.x.shape == data.test.x.shape == (10, 32, 32, 3)
    assert data.train.x[0, 0, 1, 2] == batch()[b"data"][0, 2 * 1024 + 1]
    assert data.classes[3] == "c3"


@pytest.mark.parametrize(
    ("name", "content", "reported"),
    [
        ("data_batch_1", b"not a pickle", "not a pickle"),
        ("data_batch_1", pickle.dumps([1]), "expected a dict"),
        ("data_batch_1", pickle.dumps(batch() | {b"data": [1]}), "'data' must be"),
        ("data_batch_1", pickle.dumps({b"labels": [1]}), "'data' must be .* found: missing"),
        ("data_batch_1", pickle.dumps(batch() | {b"data": batch()[b"data"].reshape(-1)}), r"found: bytes of shape \(30720,\)"),
        ("data_batch_1", pickle.dumps(batch() | {b"labels": [0]}), "'labels' must be"),
        ("data_batch_1", pickle.dumps(batch() | {b"labels": [b"0"] * 10}), "'labels' must be"),
        ("data_batch_1", pickle.dumps(batch() | {b"labels": [-1] * 10}), "'labels' must be"),
        ("data_batch_1", pickle.dumps(batch() | {b"labels": [11] * 10}), "label 11"),
        ("data_batch_1", pickle.dumps(batch() | {b"labels": [2**63 - 1] * 10}), "label 9223372036854775807"),
        ("batches.meta", pickle.dumps({}), "'label_names' must be a list"),
        ("batches.meta", pickle.dumps({b"label_names": [1]}), "'label_names' must be a list of texts"),
        ("batches.meta", pickle.dumps({b"label_names": [b"\xff"] * 10}), "not UTF-8"),
    ],
)
def test_malformed_cifar(tmp_path, name, content, reported):
    (cifar_folder(tmp_path) / name).write_bytes(content)
    with pytest.raises(DataFormatError, match=reported) as caught:
        read_files(f"cifar-10-batches-py:{tmp_path}")
    assert str(tmp_path) in str(caught.value)


def leaf(users, **changes):
    reported = {"users": list(users), "num_samples": [len(u["y"]) for u in users.values()], "user_data": users}
    return json.dumps(reported | changes)


WRITERS = {"w0": {"x": [[1.0] * 784] * 5, "y": [0, 1, 0, 1, 61]}, "w1": {"x": [[0.0] * 784] * 5, "y": [0, 1, 0, 1, 61]}}
ROLES = {"HAMLET": {"x": ["a" * 80] * 10, "y": ["b"] * 10}}


def test_leaf_femnist(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "all.json").write_text(leaf(WRITERS))
    _, data = read_files(f"leaf-femnist:{tmp_path}")
    assert data.train.x.shape == data.test.x.shape == (10, 28, 28)
    assert data.train.owner.tolist() == [0] * 5 + [1] * 5
    assert data.owners == ("w0", "w1")
    assert (data.train.x[0].max(), data.train.x[5].min()) == (0, 255)


def test_leaf_shakespeare_in_one_file(tmp_path):
    """Windows overlap by 79 characters, so that the last fifth is the test part, and the 80 windows before it are in neither."""
    text = ("to be or not to be " * 12)[:200]
    windows = {"x": [text[k : k + 80] for k in range(120)], "y": [text[k + 80] for k in range(120)]}
    (tmp_path / "all.json").write_text(leaf({"HAMLET": windows}))
    _, data = read_files(f"leaf-shakespeare:{tmp_path / 'all.json'}")
    assert data.train.x.shape == (16, 80)
    assert data.test.x.shape == (24, 80)
    assert data.owners == ("HAMLET",)


def test_leaf_shakespeare_too_short_for_a_test_part(tmp_path):
    (tmp_path / "all.json").write_text(leaf(ROLES))
    with pytest.raises(DataFormatError, match="share text with them; provide test samples"):
        read_files(f"leaf-shakespeare:{tmp_path / 'all.json'}")


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("{", "not a JSON file"),
        ("[]", "users, .* missing"),
        (leaf(WRITERS, num_samples=[5]), "equal length"),
        (leaf(WRITERS, num_samples=[5, 4]), "user 'w1': num_samples is 4"),
        (leaf(WRITERS, user_data={}), "user 'w0'"),
        (leaf({"w": {"x": [[1.0] * 783], "y": [0]}}), "user 'w': an image must be 784"),
        (leaf({"w": {"x": [[2.0] * 784], "y": [0]}}), "from 0 to 1"),
        (leaf({"w": {"x": [[1.0] * 784], "y": [62]}}), "from 0 to 61"),
    ],
)
def test_malformed_leaf(tmp_path, text, reported):
    (tmp_path / "all.json").write_text(text)
    with pytest.raises(DataFormatError, match=reported) as caught:
        read_files(f"leaf-femnist:{tmp_path / 'all.json'}")
    assert "all.json" in str(caught.value)


def test_leaf_sequence_of_another_length(tmp_path):
    (tmp_path / "all.json").write_text(leaf({"A": {"x": ["short"], "y": ["b"]}}))
    with pytest.raises(DataFormatError, match=r"user 'A': .*80 characters"):
        read_files(f"leaf-shakespeare:{tmp_path}")


def test_image_folder(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for name, level in (("dark", 10), ("light", 240)):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (7 + i, 9), (level,) * 3).save(tmp_path / part / name / f"{i}.png")
    _, data = read_files(f"imagefolder:{tmp_path}?size=16")
    assert (data.train.x.shape, data.test.x.shape) == ((6, 16, 16, 3), (4, 16, 16, 3))
    assert data.classes == ("dark", "light")
    assert [int(x.mean()) for x in data.test.x] == [10, 10, 240, 240]
    assert read_files(f"imagefolder:{tmp_path}", grey=True, size=8)[1].train.x.shape == (6, 8, 8)
    (tmp_path / "train" / "dark" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataFormatError, match=r"bad\.png"):
        read_files(f"imagefolder:{tmp_path}")


def test_image_folder_without_classes(tmp_path):
    with pytest.raises(DataFormatError, match="create one per class"):
        read_files(f"imagefolder:{tmp_path}")


def csv_file(folder, text=None):
    rows = "".join(f"{i},{'red' if i % 3 else 'blue'},s{i % 2},{'yes' if i % 2 else 'no'}\n" for i in range(20))
    path = folder / "t.csv"
    path.write_text(text if text is not None else "age,colour,site,sick\n" + rows)
    return path


def test_csv(tmp_path):
    _, data = read_files(f"csv:{csv_file(tmp_path)}?client=site&target=sick")
    assert (data.train.x.shape, data.test.x.shape) == ((16, 3), (4, 3))
    assert data.classes == ("no", "yes")
    assert data.owners == ("s0", "s1")
    assert np.array_equal(data.train.owner, data.train.y)
    assert abs(float(data.train.x[:, 0].mean())) < 1e-6


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("", "a header and at least one row"),
        ("a,b\n1,2\n3\n", "line 3: 1 values for 2 columns"),
        ("a,a\n1,2\n", "duplicate column name 'a'"),
        ("a,b\n1,2\n1,\n", "line 3: the target column 'b' has no value"),
        ("b\n" + "1\n0\n" * 10, "no feature column remains"),
    ],
)
def test_malformed_csv(tmp_path, text, reported):
    with pytest.raises(DataFormatError, match=reported):
        read_files(f"csv:{csv_file(tmp_path, text)}")


def test_what_does_not_exist(tmp_path):
    with pytest.raises(UnknownNameError, match="imagefolder"):
        read_files(f"imagefolders:{tmp_path}")
    with pytest.raises(DataError, match="does not exist"):
        read_files(f"idx:{tmp_path / 'nowhere'}")
    with pytest.raises(UnknownNameError, match="target"):
        read_files(f"csv:{csv_file(tmp_path)}", tarjet="sick")
    with pytest.raises(UnknownNameError, match="sick"):
        read_files(f"csv:{csv_file(tmp_path)}", target="sik")
    with pytest.raises(ConfigError, match="size"):
        read_files(f"imagefolder:{tmp_path}", size="large")
    assert set(file_kinds()) >= {"idx", "csv", "imagefolder", "leaf-femnist", "leaf-shakespeare", "cifar-10-batches-py"}
