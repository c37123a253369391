"""Store of the clients' memories, on disk such that a checkpoint names exactly the versions it needs.

Each changed client gets a new file at a commit; the files of the previous commit remain until the next one. Whichever
checkpoint is on disk when the process dies, the last or the one before, all files that it names exist.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from paceline.core.errors import CheckpointError, ConfigError
from paceline.core.tree import Tree
from paceline.core.wire import wire_size
from paceline.store.checkpoint import load, save

__all__ = ["MemoryStore"]

Memory = dict[str, Tree]


class MemoryStore(Mapping[int, Memory]):
    """Client memories by client id: a mapping to dicts of named trees.

    `put` changes one; `commit` makes all changes permanent and returns a manifest for the checkpoint; `restore` returns to
    a manifest. Write the manifest to a checkpoint before the next commit.

    Args:
        folder: folder of the files; None stores everything in RAM and in the manifest itself.
        max_in_memory: maximum number of clients in RAM, others are read on access; None means all.
        durable: sync files, so that a power failure loses nothing (a killed process never does).
        max_bytes: maximum bytes of memories in RAM, others are read on access; at least one client is always in RAM.

    Raises:
        ConfigError: a limit without a folder, or below 1.

    Example:
        >>> store = MemoryStore()
        >>> store.put(3, {"steps": 7})
        >>> store[3]
        {'steps': 7}
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        max_in_memory: int | None = None,
        durable: bool = True,
        max_bytes: int | None = None,
    ) -> None:
        if max_in_memory is not None and (max_in_memory < 1 or folder is None):
            raise ConfigError(f"max_in_memory={max_in_memory} must be at least 1, and requires a folder")
        if max_bytes is not None and (max_bytes < 1 or folder is None):
            raise ConfigError(f"max_bytes={max_bytes} must be at least 1, and requires a folder")
        self.max_bytes = max_bytes
        self._bytes: dict[int, int] = {}  # of the clients that are in RAM
        self._total = 0
        self.folder = None if folder is None else Path(folder)
        self.max_in_memory, self.durable = max_in_memory, durable
        self._version = 0
        self._versions: dict[int, int] = {}  # committed version of each client
        self._clean: OrderedDict[int, Memory] = OrderedDict()  # committed and in RAM, in LRU order
        self._dirty: OrderedDict[int, Memory] = OrderedDict()  # changed since the last commit
        self._spilled: set[int] = set()  # changed since the last commit, only in their next version's file
        self._stale: set[tuple[int, int]] = set()  # (client, version) to remove after the next commit

    # -- as a mapping --------------------------------------------------------------------------
    def __getitem__(self, client: int) -> Memory:
        for held in (self._dirty, self._clean):
            if client in held:
                held.move_to_end(client)
                return dict(held[client])
        if client in self._spilled:
            return self._load(client, self._version + 1)
        if client not in self._versions:
            raise KeyError(client)
        memory = self._load(client, self._versions[client])
        self._clean[client] = memory
        self._count(client, memory)
        self._shrink()
        return dict(memory)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted({*self._versions, *self._dirty, *self._spilled}))

    def __len__(self) -> int:
        return len({*self._versions, *self._dirty, *self._spilled})

    def __bool__(self) -> bool:
        return bool(self._versions or self._dirty or self._spilled)

    def __contains__(self, client: object) -> bool:
        return client in self._versions or client in self._dirty or client in self._spilled

    @property
    def in_memory(self) -> int:
        """Number of clients currently in RAM."""
        return len(self._dirty) + len(self._clean)

    # -- changes -------------------------------------------------------------------------------
    def put(self, client: int, memory: Mapping[str, Tree]) -> None:
        """Replace the memory of `client`, effective with the next commit."""
        if self.folder is not None:
            self._clean.pop(client, None)
        self._dirty.pop(client, None)
        self._spilled.discard(client)
        self._dirty[client] = dict(memory)
        self._count(client, memory)
        self._shrink()

    def rollback(self) -> None:
        """Discard all changes since the last commit."""
        for client in self._dirty:
            self._total -= self._bytes.pop(client, 0)
        self._dirty.clear()
        self._spilled.clear()

    def commit(self, round: int) -> dict[str, Any]:
        """Make all changes permanent; return the manifest, a tree for `restore`.

        Args:
            round: round of the commit.

        Raises:
            DiskFullError: no space is left; nothing is committed.
            StoreError: a file cannot be written; nothing is committed.
        """
        version = self._version + 1
        for client, memory in self._dirty.items():
            self._save(client, version, memory)
        changed = {*self._dirty, *self._spilled}
        outdated = self._stale
        self._stale = {(c, self._versions[c]) for c in changed if c in self._versions}
        self._versions.update(dict.fromkeys(changed, version))
        self._version = version
        self._clean.update(self._dirty)
        self._dirty.clear()
        self._spilled.clear()
        self._remove(outdated)
        return self._manifest(round)

    def restore(self, manifest: Mapping[str, Any]) -> MemoryStore:
        """Return to the commit that returned `manifest`; return this store.

        Raises:
            CheckpointError: the manifest belongs to another store, or a file it names is missing.
        """
        try:
            version, inline = int(manifest["version"]), "memories" in manifest
            if inline != (self.folder is None):
                raise CheckpointError(
                    "the checkpoint stores client memories in another place; resume with the memory_mib of the original run"
                )
            if inline:
                versions = dict.fromkeys(manifest["memories"], version)
            else:
                clients, each = manifest["clients"].tolist(), manifest["versions"].tolist()
                versions = dict(zip(clients, each, strict=True))
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint has a malformed manifest of client memories: {error}") from error
        present = self._present()
        missing = [] if inline else [c for c, v in versions.items() if (c, v) not in present]
        if missing:
            raise CheckpointError(
                f"{self.folder}: the memories of {len(missing)} client(s) are missing, such as {missing[:5]}; restore the "
                f"folder that belongs to this checkpoint, or start the run again"
            )
        self._version, self._versions = version, versions
        self._clean = OrderedDict({c: dict(m) for c, m in manifest["memories"].items()} if inline else {})
        self._dirty.clear()
        self._spilled.clear()
        self._bytes, self._total = {}, 0
        self._stale = {key for key in present if versions.get(key[0]) != key[1]}
        return self

    # -- files ---------------------------------------------------------------------------------
    def _manifest(self, round: int) -> dict[str, Any]:
        if self.folder is None:
            return {
                "round": round,
                "version": self._version,
                "memories": {c: dict(self._clean[c]) for c in self},
            }
        clients = sorted(self._versions)
        return {
            "round": round,
            "version": self._version,
            "clients": torch.tensor(clients, dtype=torch.int64),
            "versions": torch.tensor([self._versions[c] for c in clients], dtype=torch.int64),
        }

    def _shrink(self) -> None:
        """Evict the least recently used clients; changed ones are first written to their next version."""
        while self._too_many():
            if self._clean:
                client, _ = self._clean.popitem(last=False)
            else:
                client = next(iter(self._dirty))
                self._save(client, self._version + 1, self._dirty[client])
                del self._dirty[client]
                self._spilled.add(client)
            self._total -= self._bytes.pop(client, 0)

    def _too_many(self) -> bool:
        if self.max_in_memory is not None and self.in_memory > self.max_in_memory:
            return True
        return self.max_bytes is not None and self._total > self.max_bytes and self.in_memory > 1

    def _count(self, client: int, memory: Mapping[str, Tree]) -> None:
        """Record the size of a memory in RAM."""
        if self.max_bytes is not None:
            size = wire_size(dict(memory))
            self._total += size - self._bytes.get(client, 0)
            self._bytes[client] = size

    def _path(self, client: int, version: int) -> Path:
        assert self.folder is not None
        return self.folder / str(client // 1000) / f"{client}.{version}"

    def _save(self, client: int, version: int, memory: Memory) -> None:
        if self.folder is not None:
            save(self._path(client, version), memory, durable=self.durable)

    def _load(self, client: int, version: int) -> Memory:
        memory = load(self._path(client, version))
        if not isinstance(memory, dict):
            raise CheckpointError(f"{self._path(client, version)} is not a client memory file")
        return memory

    def _present(self) -> set[tuple[int, int]]:
        """Return (client, version) of all existing files."""
        found = set()
        for path in self.folder.glob("*/*") if self.folder is not None else ():
            client, _, version = path.name.partition(".")
            if client.isdecimal() and version.isdecimal():
                found.add((int(client), int(version)))
        return found

    def _remove(self, outdated: set[tuple[int, int]]) -> None:
        for client, version in outdated:
            if self.folder is not None and self._versions.get(client) != version:
                self._path(client, version).unlink(missing_ok=True)
