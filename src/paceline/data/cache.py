"""Cache of decoded data sets: one npz file each, in one folder, written atomically."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from paceline.core.errors import DataError, DataFormatError
from paceline.data.raw import Array

__all__ = ["cache_folder", "load_arrays", "save_arrays"]


def cache_folder() -> Path:
    """Return the folder of decoded data sets: ``$PACELINE_CACHE``, else the platform's cache folder."""
    chosen = os.environ.get("PACELINE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "paceline"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "paceline"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline"


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write named arrays as the compressed npz file `path` atomically.

    Raises:
        DataError: the folder cannot be written.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror or error}); set PACELINE_CACHE to a writable folder") from error
    finally:
        with contextlib.suppress(OSError):
            if temporary:
                os.unlink(temporary)


def load_arrays(path: Path) -> dict[str, Array]:
    """Read an npz file without unpickling.

    Raises:
        DataFormatError: the file is not a complete npz file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, OSError, AttributeError) as error:
        raise DataFormatError(f"{path} is not a complete npz file ({error}); delete it and fetch it again") from error
