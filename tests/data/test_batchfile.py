"""The reader of CIFAR's batches: what its authors' tools write is read, and nothing that a file names is called."""

from __future__ import annotations

import os
import pickle
import pickletools
import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from paceline.core.errors import DataFormatError
from paceline.data import batchfile
from paceline.data.batchfile import parse_batch

PIXELS = np.random.default_rng(1).integers(0, 256, (3, 3072), dtype=np.uint8)


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def whole(number: int) -> bytes:
    return b"K" + bytes([number]) if number < 256 else b"M" + struct.pack("<H", number)


def array2(pixels: np.ndarray, core: bytes = b"core", kind: bytes = b"u1", fortran: bytes = b"\x89", shape: bytes = b"") -> bytes:
    """Return the instructions with which Python 2 and numpy 1 wrote an array."""
    raw = pixels.tobytes()
    sizes = shape or b"".join(whole(n) for n in pixels.shape) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\nq\x0e"
        + short(kind)
        + b"K\0K\x01\x87q\x0fRq\x10(K\x03U\x01|q\x11NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    made = b"cnumpy." + core + b".multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\0\x85U\x01bq\x09\x87Rq\x0a"
    return made + b"(K\x01" + sizes + b"q\x0d" + dtype + fortran + b"T" + struct.pack("<i", len(raw)) + raw + b"q\x12tb"


def python2(data: bytes = b"", extra: bytes = b"") -> bytes:
    """Return a file as the authors published it: pickle protocol 2 of Python 2."""
    names = b"".join(short(b"p_%d.png" % i) + b"r" + struct.pack("<I", 300 + i) for i in range(3))
    return (
        b"\x80\x02}q\x01(" + short(b"batch_label") + b"q\x02" + short(b"training batch 1 of 5") + b"q\x03"
        + short(b"labels") + b"q\x04]q\x05(K\x06K\x09K\x01e" + short(b"data") + b"q\x06" + (data or array2(PIXELS))
        + short(b"filenames") + b"q\x13]q\x14(" + names + b"e" + extra + b"u."
    )  # fmt: skip


def unframed(raw: bytes) -> bytes:
    """Return a pickle without its frames, which give lengths."""
    for at in [at for code, _, at in pickletools.genops(raw) if code.name == "FRAME"][::-1]:
        raw = raw[:at] + raw[at + 9 :]
    return raw


def dumped(protocol: int, core: bytes = b"") -> bytes:
    """Return the same as Python 3 writes it, with another name of numpy's core if wanted."""
    content = {
        b"batch_label": b"training batch 1 of 5",
        b"labels": [6, 9, 1],
        b"data": PIXELS,
        b"filenames": [b"p_%d.png" % i for i in range(3)],
        b"nothing": b"",
    }
    raw = unframed(pickle.dumps(content, protocol)) if core else pickle.dumps(content, protocol)
    for name in ("multiarray", "numeric") if core else ():
        here = b"numpy._core." + name.encode()
        there = b"numpy." + core + b"." + name.encode()
        raw = raw.replace(bytes([len(here)]) + here, bytes([len(there)]) + there).replace(here, there)
    return raw


@pytest.mark.parametrize("core", [b"core", b"_core"])
def test_what_python_2_wrote(core: bytes) -> None:
    raw = python2(array2(PIXELS, core))
    reported = parse_batch(raw, "f")
    assert {k: v for k, v in reported.items() if k != "data"} == {
        "batch_label": b"training batch 1 of 5",
        "labels": [6, 9, 1],
        "filenames": [b"p_0.png", b"p_1.png", b"p_2.png"],
    }
    assert np.array_equal(reported["data"], PIXELS)
    assert np.array_equal(pickle.loads(raw, encoding="bytes")[b"data"], PIXELS)  # so it is the real format


def test_the_published_meta_file() -> None:
    names = b"airplane automobile bird cat deer dog frog horse ship truck".split()
    listed = b"".join(short(name) + b"q" + bytes([5 + i]) for i, name in enumerate(names))
    head = b"\x80\x02}q\x01(" + short(b"num_cases_per_batch") + b"q\x02M\x10'" + short(b"label_names") + b"q\x03]q\x04("
    raw = head + listed + b"e" + short(b"num_vis") + b"q\x0fM\0\x0cu."
    assert len(raw) == 158  # as published
    assert parse_batch(raw, "f") == {"num_cases_per_batch": 10_000, "label_names": names, "num_vis": 3072}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", [b"", b"core"])
def test_what_python_3_writes(protocol: int, core: bytes) -> None:
    reported = parse_batch(dumped(protocol, core), "f")
    assert np.array_equal(reported["data"], PIXELS)
    assert reported["labels"] == [6, 9, 1]
    assert reported["nothing"] == b""
    assert reported["filenames"] == [b"p_0.png", b"p_1.png", b"p_2.png"]


@pytest.mark.parametrize("protocol", [2, 5])
def test_an_array_in_the_order_of_fortran(protocol: int) -> None:
    reported = parse_batch(pickle.dumps({"data": np.asfortranarray(PIXELS)}, protocol), "f")
    assert np.array_equal(reported["data"], PIXELS)


class Call:
    """What pickles as a call."""

    def __init__(self, function, *values):
        self.reported = function, values

    def __reduce__(self):
        return self.reported


class Objects(np.ndarray):
    """An array of another class."""


def pointers() -> bytes:
    """Return a batch whose array says that its bytes are pointers to objects."""
    return python2(array2(np.full(2, 0x41, dtype=np.uint64), kind=b"O8", shape=b"K\x02\x85"))


def flagged() -> bytes:
    """The same, hidden in the state of a dtype that begins as plain bytes."""
    return python2().replace(b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb", b"J\x08\0\0\0J\x08\0\0\0K\x3ftb")


def plain(value) -> bytes:
    return pickle.dumps({b"data": value}, 2)


EVIL = {
    "pointers": pointers,
    "flags of pointers": flagged,
    "objects": lambda: plain(np.array([{}, 1], dtype=object)),
    "objects in protocol 5": lambda: pickle.dumps({b"data": np.array([{}, 1], dtype=object)}, 5),
    "structured": lambda: plain(np.zeros(2, dtype=[("a", "O"), ("b", "u1")])),
    "floats": lambda: plain(np.zeros(2)),
    "floats in protocol 5": lambda: pickle.dumps({b"data": np.zeros(2)}, 5),
    "another class of array": lambda: plain(np.zeros(2, dtype=np.uint8).view(Objects)),
    "a numpy number": lambda: plain(np.int64(1)),
    "system": lambda: plain(Call(os.system, "touch ran")),
    "system in protocol 4": lambda: pickle.dumps({b"data": Call(os.system, "touch ran")}, 4),
    "eval": lambda: plain(Call(eval, "open('ran', 'w')")),
    "numpy's own loader": lambda: plain(Call(np.load, "ran")),
    "the allowed functions otherwise": lambda: b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nM\0\x10\x85U\x01b\x87R.",
    "an array of another type": lambda: b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\0\x85U\x01b\x87R.",
    "a dtype as array": lambda: b"\x80\x02cnumpy\nndarray\nM\0\x10\x85R.",
    "a name alone": lambda: b"\x80\x02}U\x01acnumpy\ndtype\ns.",
    "an inst": lambda: b"\x80\x02(S'touch ran'\nios\nsystem\n.",
    "an obj": lambda: b"\x80\x02(cos\nsystem\nU\x09touch rano.",
    "a newobj": lambda: b"\x80\x02cnumpy\nndarray\nK\x01\x85\x81.",
    "an extension": lambda: b"\x80\x02\x82\x01.",
    "a persistent id": lambda: b"\x80\x02Pfile\n.",
    "an out-of-band buffer": lambda: b"\x80\x05\x97.",
    "a state for a dict": lambda: b"\x80\x02}}b.",
    "an array that is never filled": lambda: python2(array2(PIXELS).partition(b"(K\x01")[0]),
    "an array that is filled twice": lambda: python2(array2(PIXELS) + array2(PIXELS).partition(b"Rq\x0a")[2]),
    "a shape that is larger": lambda: python2(array2(PIXELS, shape=b"M\xff\xffM\xff\xff\x86")),
    "a shape that overflows": lambda: python2(array2(PIXELS, shape=b"J\0\0\0\x40J\0\0\0\x40J\0\0\0\x40\x87")),
    "a shape of nothing": lambda: python2(array2(PIXELS[:0])),
    "a negative shape": lambda: python2(array2(PIXELS, shape=b"J\xff\xff\xff\xffJ\0\xdc\xff\xff\x86")),
    "a shape of many sizes": lambda: python2(array2(PIXELS, shape=b"(" + b"K\x01" * 100 + b"t")),
    "deep lists": lambda: b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep tuples": lambda: b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "deep dicts": lambda: b"\x80\x02" + b"}U\x01a" * 50_000 + b"}" + b"s" * 50_000 + b".",
    "many marks": lambda: b"\x80\x02" + b"(" * 100_000 + b"e.",
    "a list within itself": lambda: b"\x80\x02}U\x01a]q\0h\0as.",
    "laughs": lambda: b"\x80\x02]q\0" + b"".join(b"](" + b"h%c" % i * 100 + b"eq%c" % (i + 1) for i in range(9)) + b".",
    "many values": lambda: b"\x80\x02}U\x01a](" + b"K\0" * 10_001 + b"es.",
    "a huge text": lambda: b"\x80\x02T\xff\xff\xff\x7f.",
    "a text of negative length": lambda: b"\x80\x02T\xff\xff\xff\xff.",
    "huge bytes": lambda: b"\x80\x04\x8e" + b"\xff" * 8 + b".",
    "a huge frame": lambda: b"\x80\x04\x95" + b"\xff" * 8 + b".",
    "a huge number": lambda: b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a number of many bytes": lambda: b"\x80\x02\x8a\xff" + b"\x01" * 255 + b".",
    "a number as text": lambda: b"\x80\x02I" + b"9" * 100_000 + b"\n.",
    "one text made bytes many times": lambda: b"\x80\x03c_codecs\nencode\nq\0X\0\0\x10\0" + b"a" * (1 << 20) + b"X\x06\0\0\0latin1\x86q\1("
    + b"h\0h\1R" * 2000 + b"t.",
    "text that is no latin1": lambda: b"\x80\x03c_codecs\nencode\nX\x03\0\0\0\xe2\x82\xacX\x06\0\0\0latin1\x86R.",
    "another codec": lambda: b"\x80\x03c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0utf-7\x86R.",
    "a name without end": lambda: b"\x80\x02c" + b"a" * 1000,
    "a value that is not there": lambda: b"\x80\x02j\xff\xff\xff\xff.",
    "a key that cannot be hashed": lambda: b"\x80\x02}]Us.",
    "a number as key": lambda: b"\x80\x02}K\1K\1s.",
    "a key without a value": lambda: b"\x80\x02}(U\1au.",
    "two values": lambda: b"\x80\x02}}.",
    "no value": lambda: b"\x80\x02.",
    "bytes behind the end": lambda: python2() + b"x",
    "protocol 0": lambda: pickle.dumps({"a": 1}, 0),
    "protocol 6": lambda: b"\x80\x06}.",
    "nothing": lambda: b"",
}  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_what_no_batch_holds_is_refused_at_little_cost(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "many values":
        monkeypatch.setattr(batchfile, "MOST_STEPS", 10_000)
    content = EVIL[name]()
    tracemalloc.start()
    try:
        with pytest.raises(DataFormatError, match=r"^folder/file: ") as caught:
            parse_batch(content, "folder/file")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "ran").exists()
    assert len(str(caught.value)) < 500
    assert peak < 50 * len(content) + (1 << 20)  # a value of one byte is an object of 50


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("pointers", r"an array of dtype 'O8' \(before byte"),
        ("flags of pointers", "an array with a dtype other than uint8"),
        ("system", r"contains (posix|nt)\.system .*only byte arrays and plain values"),
        ("a shape that is larger", r"shape \(65535, 65535\) needs 4294836225 bytes, found 9216"),
        ("deep lists", "a list within a list"),
        ("a persistent id", "the instruction 0x50"),
        ("many values", "more than 10000 instructions"),
    ],
)
def test_the_message_says_what_is_wrong(name: str, reported: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "many values":
        monkeypatch.setattr(batchfile, "MOST_STEPS", 10_000)
    with pytest.raises(DataFormatError, match=reported):
        parse_batch(EVIL[name](), "f")


SMALL = [python2(array2(PIXELS[:1, :40])), *(pickle.dumps({b"d": PIXELS[:1, :9], b"l": [1, 2], "t": "x"}, p) for p in (2, 3, 4, 5))]


@pytest.mark.parametrize("content", SMALL)
def test_a_file_that_is_cut_short_anywhere(content: bytes) -> None:
    parse_batch(content, "f")
    for end in range(len(content)):
        with pytest.raises(DataFormatError, match=r"^f: "):
            parse_batch(content[:end], "f")


def test_damage_anywhere_has_no_other_error() -> None:
    """Bytes overwritten, inserted, removed and swapped between files: read as something plain, or refused by name."""
    rng, refused = random.Random(5), 0
    codes = [*(code[0] for code in batchfile._STEPS), *b".oi\x81\x82\x97PQ2"]
    for _ in range(20_000):
        data = bytearray(rng.choice(SMALL))
        for _ in range(rng.choice((1, 1, 2, 4))):
            at, other = rng.randrange(2, len(data)), rng.choice(SMALL)
            low = rng.randrange(len(other))
            change = rng.choice((bytes([rng.choice(codes)]), rng.randbytes(1), other[low : low + rng.randrange(1, 30)]))
            data[at : at + rng.choice((0, len(change)))] = change
        try:
            reported = parse_batch(bytes(data), "f")
        except DataFormatError:
            refused += 1
        else:
            assert all(type(key) is str for key in reported)
            assert all(isinstance(v, str | bytes | int | list | np.ndarray | None) for v in reported.values())
    assert 10_000 < refused < 20_000
