"""Taking files out of packages: hashes, missing tools, failing clients."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile

import pytest

from paceline.data import fetch
from paceline.data.fetch import Package, bring, digest, pick
from paceline.errors import ChecksumError, DataError

CONTENT = b"some data"
SHA = hashlib.sha256(CONTENT).hexdigest()


def archive_of(kind, folder):
    if kind == "folder":
        (folder / "content" / "a").mkdir(parents=True)
        (folder / "content" / "a" / "b.txt").write_bytes(CONTENT)
        return folder / "content"
    if kind == "zip":
        with zipfile.ZipFile(folder / "p.whl", "w") as made:
            made.writestr("a/b.txt", CONTENT)
        return folder / "p.whl"
    with tarfile.open(folder / "p.tgz", "w:gz") as made:
        info = tarfile.TarInfo("a/b.txt")
        info.size = len(CONTENT)
        made.addfile(info, io.BytesIO(CONTENT))
    return folder / "p.tgz"


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_pick_checks_what_it_takes(tmp_path, kind):
    archive = archive_of(kind, tmp_path)
    assert pick(archive, Package("wheel", "p", "1", {"a/b.txt": SHA})) == {"a/b.txt": CONTENT}
    with pytest.raises(ChecksumError, match=r"a/b\.txt of p 1 .*fetch it again"):
        pick(archive, Package("wheel", "p", "1", {"a/b.txt": "0" * 64}))
    with pytest.raises(DataError, match=r"p 1 holds no file a/c\.txt"):
        pick(archive, Package("wheel", "p", "1", {"a/c.txt": SHA}))


def test_a_pattern_has_one_hash_for_all():
    both = {"b": b"2", "a": b"1"}
    assert digest(both) == digest(dict(sorted(both.items())))
    assert digest(both) != digest({**both, "c": b"3"})
    assert digest({"a": CONTENT}) == SHA


def test_damaged_archive(tmp_path):
    (tmp_path / "p.tgz").write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(DataError, match=r"p\.tgz of p cannot be read"):
        pick(tmp_path / "p.tgz", Package("npm", "p", "1", {"a": SHA}))


def test_too_large_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_BYTES", 3)
    with pytest.raises(DataError, match="larger than the limit"):
        pick(archive_of("zip", tmp_path), Package("wheel", "p", "1", {"a/b.txt": SHA}))


@pytest.mark.parametrize(("registry", "tool"), [("debian", "apt-get"), ("npm", "npm")])
def test_missing_tool_is_named(tmp_path, monkeypatch, registry, tool):
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match=f"{tool} was not found"):
        bring([Package(registry, "p", "1", {"a": SHA})], tmp_path)


def test_failing_client_is_quoted(tmp_path, monkeypatch):
    def fail(words, **options):
        return subprocess.CompletedProcess(words, 1, "", "ERROR: no such version\n")

    monkeypatch.setattr(fetch.subprocess, "run", fail)
    with pytest.raises(DataError, match="could not bring p: ERROR: no such version"):
        bring([Package("wheel", "p", "1", {"a": SHA})], tmp_path)
