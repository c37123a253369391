"""Persistent memory of a client, synchronised with the server's rounds across crashes of either side.

::

    12.memory     memory after round 12
    data          digest of the client's data
    pending       memory after the current round, and values before staged ones; written before the reply is sent

A commit renames `pending`, without what was staged in operations that did not count this client (`Memory.stage`). If the
server resumes from an older round, the client reverts as well: versions are retained until the server confirms that its
own checkpoint of a later round is safe. Each file includes its SHA-256.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from paceline.core.errors import CheckpointError
from paceline.core.memory import Priors, undo
from paceline.core.tree import Tree
from paceline.store import atomic_write, load_checkpoint, save_checkpoint

__all__ = ["ClientMemory"]


class ClientMemory:
    """Versions of one client's memory in one run.

    Args:
        folder: folder of this run; created on the first write.
        durable: sync files, so that a power failure loses nothing.
    """

    def __init__(self, folder: str | os.PathLike[str], durable: bool = True) -> None:
        self.folder, self.durable = Path(folder), durable
        self._written = 0
        """Round of `pending`, if this object has written it last; else 0."""

    def belong(self, data: str) -> bool:
        """Bind this memory to the client's data; return whether it is new.

        Args:
            data: digest of the data.

        Raises:
            CheckpointError: the memory belongs to other data.
        """
        note = self.folder / "data"
        if not note.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(note, data.encode(), durable=self.durable)
            return True
        if note.read_bytes() != data.encode():
            raise CheckpointError(
                f"this client's data have changed since it joined this run: restore them, or leave the run, "
                f"or delete {self.folder} to continue without the state stored for it"
            )
        return False

    def write_pending(
        self, round: int, memory: Mapping[str, Tree], priors: Priors | None = None, attempt: Sequence[int] = ()
    ) -> None:
        """Write the memory that becomes permanent when the round is committed, and `Memory.priors`.

        Args:
            round: the current round.
            memory: all values.
            priors: values before staged ones.
            attempt: identifies this attempt at the round: incarnation and take of the server.
        """
        tree = {"round": round, "memory": dict(memory), "priors": [list(prior) for prior in priors or []]}
        tree["attempt"] = list(attempt)
        self._written = 0
        save_checkpoint(self._pending, tree, durable=self.durable)
        self._written = round

    def commit(self, round: int, saved: int, lost: Collection[int] = ()) -> bool:
        """Make `pending` permanent if it belongs to `round`, and delete versions that no server can resume from.

        Args:
            round: the completed round.
            saved: round of the server's last safe checkpoint.
            lost: operations of the round that did not count this client.

        Returns:
            whether `pending` became permanent.
        """
        done, written, self._written = False, self._written, 0
        if written == round > 0 and not lost and self._pending.exists():
            os.replace(self._pending, self._version(round))
            done = True
        elif self._pending.exists():
            at, memory, priors, _ = self._read(self._pending)
            done = at == round
            if done:
                if lost:
                    undo(memory, priors, set(lost))
                    self.write_pending(round, memory)
                os.replace(self._pending, self._version(round))
            else:
                self.rollback()
        self._collect(saved)
        return done

    def rollback(self) -> None:
        """Delete `pending`."""
        self._written = 0
        self._pending.unlink(missing_ok=True)

    def restore(
        self, round: int, kept: int, saved: int, lost: Collection[int] = (), attempt: Sequence[int] = ()
    ) -> dict[str, Tree]:
        """Return the memory after `round`, the server's last completed round, and delete later versions.

        Work of the next round remains pending if the server still makes the same attempt at it.

        Args:
            round: the server's last completed round.
            kept: the last round whose result includes this client's work, so that a pending version of it is valid; 0 for none.
            saved: see `commit`.
            lost: operations of the round `kept` that did not count this client.
            attempt: incarnation and take of the server.

        Raises:
            CheckpointError: a file is damaged.
        """
        if self._awaits(round + 1, attempt):
            self._collect(saved)
        else:
            if kept > round:
                self.rollback()
            self.commit(min(kept, round), saved, lost)
        for later in [r for r in self._rounds() if r > round]:
            self._version(later).unlink(missing_ok=True)
        return self.latest()

    def latest(self) -> dict[str, Tree]:
        """Return the memory after the last committed round; empty if there is none."""
        rounds = self._rounds()
        return self._read(self._version(rounds[-1]))[1] if rounds else {}

    @property
    def waits(self) -> bool:
        """Whether work awaits the end of its round; whether its replies arrived is not known."""
        return self._pending.exists()

    def _awaits(self, round: int, attempt: Sequence[int]) -> bool:
        """Return whether `pending` belongs to this attempt at a round."""
        if not attempt or not self._pending.exists():
            return False
        at, _, _, made = self._read(self._pending)
        return (at, made) == (round, list(attempt))

    @property
    def _pending(self) -> Path:
        return self.folder / "pending"

    def _version(self, round: int) -> Path:
        return self.folder / f"{round}.memory"

    def _rounds(self) -> list[int]:
        names = os.listdir(self.folder) if self.folder.exists() else []
        return sorted(int(name[:-7]) for name in names if name.endswith(".memory") and name[:-7].isdecimal())

    def _collect(self, saved: int) -> None:
        old = [r for r in self._rounds() if r <= saved]
        for round in old[:-1]:
            self._version(round).unlink(missing_ok=True)

    def _read(self, path: Path) -> tuple[int, dict[str, Any], Priors, list[int]]:
        match stored := load_checkpoint(path):
            case {"round": int(round), "memory": dict(memory)}:  # earlier versions wrote no more
                priors = [(operation, key, before) for operation, key, before in stored.get("priors", [])]
                return round, memory, priors, stored.get("attempt", [])
        raise CheckpointError(f"{path} is not a client memory file")
