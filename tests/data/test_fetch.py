"""Taking files out of packages: hashes, missing tools, failing clients."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import tarfile
import zipfile

import pytest

from paceline.core.errors import ChecksumError, DataError
from paceline.data import fetch
from paceline.data.fetch import Package, bring, digest, pick
from paceline.data.sources import find_source, source_names

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
    with pytest.raises(DataError, match=r"p 1 does not contain a/c\.txt"):
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
    with pytest.raises(DataError, match="exceeds the limit"):
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
    with pytest.raises(DataError, match="failed to download p: ERROR: no such version"):
        bring([Package("wheel", "p", "1", {"a": SHA})], tmp_path)


SETUP = """
import pathlib
pathlib.Path({mark!r}).write_text("run")
from setuptools import setup
setup(name="slyset", version="1", py_modules=[])
"""


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Make the only index pip knows a folder with one source package, whose set-up leaves a mark; return (archive, mark)."""
    mark, links = tmp_path / "mark", tmp_path / "links"
    links.mkdir()
    archive = links / "slyset-1.tar.gz"
    facts = "Metadata-Version: 1.0\nName: slyset\nVersion: 1\n"
    files = {"setup.py": SETUP.format(mark=str(mark)), "PKG-INFO": facts, "data.txt": CONTENT.decode()}
    with tarfile.open(archive, "w:gz") as made:
        for name, text in files.items():
            info = tarfile.TarInfo(f"slyset-1/{name}")
            info.size = len(text.encode())
            made.addfile(info, io.BytesIO(text.encode()))
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return archive, mark


def sly(registry, archive="", file=SHA):
    return Package(registry, "slyset", "1", {"slyset-1/data.txt": file}, archive)


@pytest.mark.parametrize("archive", ["0" * 64, ""])
def test_a_source_package_with_another_hash_runs_nothing(tmp_path, index, archive):
    with pytest.raises(DataError, match="the recorded SHA-256" if archive else "without a recorded SHA-256") as caught:
        bring([sly("sdist", archive)], tmp_path / "to")
    assert isinstance(caught.value, ChecksumError) == bool(archive)
    assert not index[1].exists()


def test_a_source_package_with_the_recorded_hash_is_read(tmp_path, index):
    archive, mark = index
    sha = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert bring([sly("sdist", sha)], tmp_path / "to") == {"slyset-1/data.txt": CONTENT}
    assert mark.exists()  # so the mark is a good one: pip ran the set-up of what it had checked


@pytest.mark.parametrize("setting", [{}, {"PIP_NO_BINARY": ":all:"}, {"PIP_PREFER_BINARY": "0"}])
def test_a_wheel_is_never_built_from_a_source_package(tmp_path, index, monkeypatch, setting):
    """Also where pip's own settings prefer source packages."""
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match="failed to download slyset"):
        bring([sly("wheel")], tmp_path / "to")
    assert not index[1].exists()


def test_every_source_package_has_the_hash_of_its_archive():
    packages = [p for s in map(find_source, source_names()) for p in s.packages(s.settle({}))]
    assert [p.name for p in packages if p.registry == "sdist"] == ["bigbench"]
    assert all(re.fullmatch("[0-9a-f]{64}", p.archive) for p in packages if p.registry == "sdist")


def test_npm_runs_no_scripts(tmp_path, monkeypatch):
    called = []

    def call(words, **options):
        called.append(words)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", call)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: name)
    with pytest.raises(DataError, match="cannot be read"):
        bring([Package("npm", "p", "1", {"a": SHA})], tmp_path)
    assert "--ignore-scripts" in called[0]
