"""SemAug: which class is pasted, with which crops, what a client stores, and FedAvg where nothing is pasted."""

import pytest
import torch

from paceline.blocks.pasting import Crop, similarity
from paceline.core.client import Client
from paceline.core.errors import ConfigError
from paceline.core.random import torch_rng
from paceline.methods.augmentation.semaug import SemAug
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import RunConfig, prepare
from paceline.tasks import load_task
from paceline.tasks.scenes import SceneTask
from tests.conftest import fetched, make_task
from tests.methods.forms import scenes
from tests.methods.masked import assert_masks_change_nothing

BOAT, PERSON, CAR, SEA = range(4)
VECTORS = torch.tensor([[0.9, 0.3, 0.1], [0.5, 0.6, 0.5], [0.1, 1.0, 0.2], [1.0, 0.2, 0.0]])
CROP = Crop(torch.ones(3, 4, 4), torch.ones(4, 4, dtype=torch.bool))
BANK = {label: [CROP] for label in (BOAT, PERSON, CAR)}


def batch(labels=(-1, -1, -1), stuff=(SEA,), boxes=None):
    slots = len(labels)
    y = {
        "boxes": torch.zeros(1, slots, 4) if boxes is None else boxes,
        "labels": torch.tensor([labels]),
        "masks": torch.zeros(1, slots, 20, 20, dtype=torch.long),
        "stuff": torch.tensor([stuff]),
        "stuff_boxes": torch.tensor([[[0.0, 8.0, 20.0, 20.0]]]).expand(1, len(stuff), 4).clone(),
    }
    return torch.zeros(1, 3, 20, 20), y


def added(method, x, y, track, bank=BANK):
    method.add(x, y, 0, similarity(VECTORS), bank, track, torch_rng(0, "test"))


def test_the_same_scene_gets_the_candidates_in_turn():
    track, found = torch.zeros(3, dtype=torch.long), []
    for _ in range(3):
        x, y = batch()
        added(SemAug(), x, y, track)
        found.append(int(y["labels"][0, 0]))
    assert found == [BOAT, PERSON, CAR]
    assert track.tolist() == [1, 1, 1]
    x, y = batch()
    added(SemAug(top=1), x, y, torch.tensor([9, 0, 0]))
    assert int(y["labels"][0, 0]) == BOAT


def test_the_object_lies_at_the_centre_of_its_place_with_its_annotation():
    x, y = batch()
    added(SemAug(), x, y, torch.zeros(3, dtype=torch.long))
    assert y["boxes"][0, 0].tolist() == [8, 12, 12, 16]
    assert (x[0, :, 12:16, 8:12] == 1).all()
    assert int(x.sum()) == 48
    assert torch.equal(y["masks"][0, 0].bool(), x[0, 0] == 1)


def test_present_classes_are_not_pasted_and_a_full_list_leaves_the_scene():
    x, y = batch(labels=(BOAT, -1, -1))
    added(SemAug(top=1), x, y, torch.zeros(3, dtype=torch.long))
    assert y["labels"][0].tolist() == [BOAT, PERSON, -1]
    x, y = batch(labels=(BOAT, BOAT, BOAT))
    track = torch.zeros(3, dtype=torch.long)
    added(SemAug(), x, y, track)
    assert not x.any()
    assert track.sum() == 0
    x, y = batch(stuff=(-1,))
    added(SemAug(), x, y, track)
    assert not x.any(), "a scene without any label stays as it is"


def test_a_covered_object_gives_way():
    boxes = torch.tensor([[[9.0, 13.0, 11.0, 15.0], [10.0, 14.0, 16.0, 16.0], [0.0, 0.0, 0.0, 0.0]]])
    x, y = batch((BOAT, BOAT, -1), boxes=boxes)
    y["masks"][0, 0, 13:15, 9:11] = 1
    y["masks"][0, 1, 14:16, 10:16] = 1
    added(SemAug(top=1), x, y, torch.zeros(3, dtype=torch.long))
    assert y["labels"][0].tolist() == [-1, BOAT, PERSON]
    assert y["boxes"][0, 1:].tolist() == [[12, 14, 16, 16], [8, 12, 12, 16]]


def test_a_training_that_begins_again_counts_once(monkeypatch):
    seen, sgd = [], Client.sgd
    monkeypatch.setattr(
        Client, "sgd", lambda self, *args, **values: seen.append((self, values["hooks"])) or sgd(self, *args, **values)
    )
    run = finished(SemAug(share=1.0), rounds=1)
    client, hooks = seen[0]
    used = run.fed.engine.memories[client.id]["track"].clone()
    batches = [client.train.rows(torch.arange(10)), client.train.rows(torch.arange(10, 20))]
    ends = []
    for _ in range(2):
        for step, (x, y) in enumerate(batches):
            hooks.augmented(x, y, step, step)
        track = next(
            c.cell_contents
            for c in hooks.augment.__closure__
            if isinstance(c.cell_contents, torch.Tensor) and c.cell_contents.dim() == 1 and c.cell_contents.any()
        )
        ends.append(track.tolist())
    assert ends[0] == ends[1]
    assert used.sum() > 0


def test_a_class_without_crops_is_passed_over():
    x, y = batch()
    track = torch.zeros(3, dtype=torch.long)
    added(SemAug(), x, y, track, {CAR: [CROP]})
    assert track.tolist() == [0, 0, 1]
    added(SemAug(top=1), x, y, track, {CAR: [CROP]})
    assert track.tolist() == [0, 0, 1]


def test_which_annotation_is_the_anchor():
    boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [6.0, 6.0, 16.0, 16.0], [16.0, 0.0, 20.0, 4.0]]])
    _, y = batch((BOAT, BOAT, BOAT), (-1,), boxes)
    near = similarity(VECTORS)[PERSON]
    places = {where: SemAug(where=where).anchor(near, y, 0, torch_rng(0)) for where in ("last", "largest")}
    assert places == {"last": (18, 2), "largest": (11, 11)}
    drawn = {SemAug(where="random").anchor(near, y, 0, torch_rng(seed)) for seed in range(20)}
    assert drawn == {(2, 2), (11, 11), (18, 2)}
    across, down = SemAug(where="anywhere").anchor(near, y, 0, torch_rng(0))
    assert 0 <= across < 20
    assert 0 <= down < 20


def test_scores_are_of_the_first_label_of_all_or_of_any():
    near, track, stream = similarity(VECTORS), torch.zeros(3, dtype=torch.long), torch_rng(0)
    assert SemAug(top=1).choose(near, [PERSON, SEA], BANK, track, stream) == CAR
    assert SemAug(top=1, what="mean").choose(near, [PERSON, SEA], BANK, track, stream) == BOAT
    both = {SemAug(top=1, what="random_label").choose(near, [PERSON, SEA], BANK, track, torch_rng(s)) for s in range(20)}
    assert both == {BOAT, CAR}
    every = {SemAug(what="any").choose(near, [BOAT], BANK, track, torch_rng(s)) for s in range(30)}
    assert every == {BOAT, PERSON, CAR}


def test_crops_that_are_too_small_are_not_drawn():
    small = Crop(torch.ones(3, 2, 2), torch.tensor([[True, False], [False, False]]))
    assert SemAug().draw([small], 64 * 64, torch_rng(0)) is None  # 300 of 480 x 640 pixels are 4 of 64 x 64
    assert SemAug().draw([small, CROP], 64 * 64, torch_rng(0)) is CROP


def finished(method, **values):
    common = {"task": "own", "clients": 4, "cohort": 4, "rounds": 2, "vectorize": "off"} | values
    run = prepare(RunConfig.build(common), task=scenes(make_task()), method=method)
    run.go()
    return run


def test_without_pasting_it_is_fedavg_bit_for_bit():
    plain, none, some = (finished(method).state.params.vector for method in (FedAvg(), SemAug(share=0.0), SemAug(share=0.5)))
    assert torch.equal(none, plain)
    assert not torch.allclose(some, plain)


def test_a_local_bank_holds_the_clients_own_objects(monkeypatch):
    seen, sgd = {}, Client.sgd
    made = SemAug.crops

    def watched(self, client):
        found = made(self, client)
        seen[client.id] = (sorted(found), sorted(set(client.train.y["labels"][client.train.index, 0].tolist())))
        return found

    monkeypatch.setattr(SemAug, "crops", watched)
    run = finished(SemAug(share=1.0), partition="dirichlet:0.1", allow_empty=True)
    assert all(bank == own for bank, own in seen.values())
    assert any(len(bank) < 4 for bank, _ in seen.values())
    track = torch.stack([run.fed.engine.memories[client]["track"] for client in seen if seen[client][0]])
    assert (track.sum(1) > 0).any()
    assert sgd is Client.sgd


def test_uses_are_counted_over_rounds():
    one, two = (finished(SemAug(share=1.0), rounds=rounds).fed.engine.memories[0]["track"] for rounds in (1, 2))
    assert (two >= one).all()
    assert two.sum() > one.sum()


def test_a_task_without_scenes_or_bank_is_refused():
    with pytest.raises(ConfigError, match="semaug pastes objects into scenes"):
        prepare(RunConfig.build({"task": "own"}), task=make_task(), method=SemAug())
    with pytest.raises(ConfigError, match="bank=public needs a bank"):
        finished(SemAug(bank="public"))


def test_the_emoji_scenes():
    fetched("emoji")
    task = load_task("emoji-scenes", samples=30, tests=12)
    assert isinstance(task, SceneTask)
    assert task.train.x.shape == (30, 3, 64, 64)
    y = task.train.y
    places = y["stuff"][:, :1] - 6
    assert torch.equal(torch.where(y["labels"] >= 0, y["labels"] // 2, places), places.expand(30, 3)), (
        "objects are where they belong"
    )
    method = SemAug(bank="public", share=1.0, top=1)
    run = prepare(RunConfig.build({"task": "own", "clients": 2, "cohort": 2, "rounds": 1}), task=task, method=method)
    assert 0 <= run.go().history[-1]["map"] <= 1
    crops = method.crops(Client(0, 1, int, run.fed.engine.here.model, task, lambda _: None, {}))
    assert sorted(crops) == list(range(6))
    assert {max(crop.mask.shape) for own in crops.values() for crop in own} == {15, 19, 24}
    assert all(crop.mask[-1].any() and crop.mask[:, -1].any() for own in crops.values() for crop in own)


def test_under_real_masks_with_a_lost_client_the_bits_are_those_of_the_arithmetic():
    assert_masks_change_nothing(scenes(make_task()), "semaug")
