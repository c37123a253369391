import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.core.errors import CheckpointError, ConfigError, DiskFullError
from paceline.store import MemoryStore, load_checkpoint, save_checkpoint
from paceline.store import memory as module
from paceline.store.files import atomic_write
from tests.work import steps


class Killed(BaseException):
    """The process ends here."""


def play(store: MemoryStore, checkpoint: Path, first: int, last: int) -> None:
    """Rounds whose results depend on everything that was kept before."""
    for round in range(first, last + 1):
        for client in {round % 5, (round * 3) % 5, 7}:
            old = store[client]["control"] if client in store else torch.zeros(3)
            store.put(client, {"control": old * 1.5 + round, "seen": round})
        save_checkpoint(checkpoint, {"round": round, "memory": store.commit(round)}, durable=False)


def resume(folder: Path, checkpoint: Path, last: int, **options: Any) -> MemoryStore:
    store = MemoryStore(folder, durable=False, **options)
    first = 1
    if checkpoint.exists():
        saved = load_checkpoint(checkpoint)
        store.restore(saved["memory"])
        first = saved["round"] + 1
    play(store, checkpoint, first, last)
    return store


def content(store: MemoryStore) -> dict[int, Any]:
    return {c: (store[c]["control"].tolist(), store[c]["seen"]) for c in store}


def expected(tmp_path: Path, last: int) -> dict[int, Any]:
    return content(resume(tmp_path / "undisturbed", tmp_path / "undisturbed.checkpoint", last))


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*/*"))


def test_memories_come_back(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "m")
    store.put(3, {"a": torch.ones(2), "b": [1, "x"]})
    store.put(1500, {"a": None})
    manifest = store.commit(1)
    back = MemoryStore(tmp_path / "m").restore(manifest)
    assert list(back) == [3, 1500]
    assert len(back) == 2
    assert back[3]["b"] == [1, "x"]
    assert torch.equal(back[3]["a"], torch.ones(2))
    assert back[1500] == {"a": None}
    assert 4 not in back
    with pytest.raises(KeyError):
        back[4]
    assert dict(back.items()).keys() == {3, 1500}


def test_changing_what_was_read_changes_nothing(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    store.put(1, {"a": 1})
    store[1]["a"] = 2
    store.commit(1)
    store[1]["a"] = 3
    assert store[1] == {"a": 1}


def test_old_versions_stay_until_the_next_commit(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    manifests = []
    for round in range(1, 5):
        store.put(1, {"r": round})
        if round == 1:
            store.put(2, {"r": round})
        manifests.append(store.commit(round))
        assert files(tmp_path) == sorted({"2.1", f"1.{round}", f"1.{max(round - 1, 1)}"})
    assert MemoryStore(tmp_path).restore(manifests[2])[1] == {"r": 3}
    with pytest.raises(CheckpointError, match=r"the memories of 1 client\(s\) are missing, such as \[1\]"):
        MemoryStore(tmp_path).restore(manifests[0])


@pytest.mark.parametrize("folder", [True, False])
def test_rollback_forgets_what_was_not_committed(tmp_path: Path, folder: bool) -> None:
    store = MemoryStore(tmp_path if folder else None, max_in_memory=1 if folder else None)
    store.put(1, {"a": 1})
    store.commit(1)
    for client in (1, 2, 3):
        store.put(client, {"a": 9})
    store.rollback()
    assert {c: store[c] for c in store} == {1: {"a": 1}}
    store.put(2, {"a": 5})
    manifest = store.commit(2)
    back = MemoryStore(tmp_path if folder else None).restore(manifest)
    assert {c: back[c] for c in back} == {1: {"a": 1}, 2: {"a": 5}}


def test_without_a_folder_the_manifest_carries_everything(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put(1, {"a": torch.ones(2)})
    manifest = store.commit(1)
    store.put(1, {"a": torch.zeros(2)})
    store.commit(2)
    save_checkpoint(tmp_path / "c", manifest)
    back = MemoryStore().restore(load_checkpoint(tmp_path / "c"))
    assert torch.equal(back[1]["a"], torch.ones(2))
    with pytest.raises(CheckpointError, match="in another place"):
        MemoryStore(tmp_path).restore(manifest)
    with pytest.raises(CheckpointError, match="malformed manifest"):
        MemoryStore(tmp_path).restore({"version": 1})


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_bounded_store_gives_the_same(tmp_path: Path, limit: int) -> None:
    folder = tmp_path / "bounded"
    store = resume(folder, tmp_path / "c", 9, max_in_memory=limit)
    assert store.in_memory <= limit
    assert content(store) == expected(tmp_path, 9)
    assert store.in_memory <= limit
    with pytest.raises(ConfigError, match="requires a folder"):
        MemoryStore(max_in_memory=2)


def test_a_hundred_thousand_clients_have_a_small_manifest(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    store._versions = dict.fromkeys(range(100_000), 1)
    manifest = store.commit(5)
    steps(10_000, save_checkpoint, tmp_path / "c", manifest)  # fewer than one for each client
    assert (tmp_path / "c").stat().st_size < 1_700_000
    assert steps(10_000, load_checkpoint, tmp_path / "c")[0]["clients"].shape == (100_000,)


@pytest.mark.parametrize("limit", [None, 2])
def test_dying_between_any_two_steps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None) -> None:
    """Die before and after each change of a file, once for each of them, then resume."""
    want = expected(tmp_path, 6)
    real_replace, real_unlink = os.replace, Path.unlink

    for deadly in range(200):
        left = [deadly]

        def step(left: list[int] = left) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1

        def replace(a: Any, b: Any) -> None:
            step()
            real_replace(a, b)
            step()

        def unlink(path: Path, missing_ok: bool = False) -> None:
            if path.name.endswith(".tmp"):  # the clean-up of a living process
                return
            step()
            real_unlink(path, missing_ok)
            step()

        folder, checkpoint = tmp_path / f"m{deadly}", tmp_path / f"c{deadly}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            patch.setattr(Path, "unlink", unlink)
            try:
                resume(folder, checkpoint, 6, max_in_memory=limit)
                break
            except Killed:
                pass
        after = resume(folder, checkpoint, 6, max_in_memory=limit)
        assert content(after) == want
        back = MemoryStore(folder).restore(load_checkpoint(checkpoint)["memory"])
        assert content(back) == want
    assert 30 < deadly < 199


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_any_moment_changes_nothing(tmp_path: Path) -> None:
    folder, checkpoint = tmp_path / "m", tmp_path / "c"
    for attempt in range(8):
        pid = os.fork()
        if pid == 0:
            try:
                resume(folder, checkpoint, 10**6)
            finally:
                os._exit(1)
        until = time.monotonic() + 30
        while not checkpoint.exists() and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(0.013 * attempt)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    reached = load_checkpoint(checkpoint)["round"] + 5
    assert content(resume(folder, checkpoint, reached)) == expected(tmp_path, reached)
    assert len([f for f in files(folder) if not f.startswith(".")]) <= 2 * 6


def test_a_full_disk_commits_nothing_and_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(tmp_path / "m")
    store.put(1, {"a": 1})
    first = store.commit(1)
    store.put(1, {"a": 2})
    store.put(2, {"a": 2})

    def full(*args: Any, **options: Any) -> None:
        raise DiskFullError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(module, "save", full)
        with pytest.raises(DiskFullError):
            store.commit(2)
    assert MemoryStore(tmp_path / "m").restore(first)[1] == {"a": 1}
    second = store.commit(2)
    assert MemoryStore(tmp_path / "m").restore(second)[2] == {"a": 2}


def test_a_damaged_memory_is_found_when_it_is_read(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    store.put(1, {"a": 1})
    manifest = store.commit(1)
    back = MemoryStore(tmp_path).restore(manifest)
    path = next(tmp_path.glob("*/1.1"))
    atomic_write(path, path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="SHA-256"):
        back[1]
    save_checkpoint(path, [1])
    with pytest.raises(CheckpointError, match="not a client memory file"):
        back[1]


def test_a_store_is_true_if_any_client_has_a_memory(tmp_path):
    store = MemoryStore(tmp_path, max_in_memory=1)
    assert not store
    store.put(3, {"x": 1.0})
    assert store, "changed, in RAM"
    store.put(4, {"x": 2.0})
    store.rollback()
    assert not store
    store.put(3, {"x": 1.0})
    store.commit(1)
    assert store
