"""A language model from a folder: one copy of the frozen weights in a process, padding that changes nothing."""

import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from paceline.core.errors import (
    ChecksumError,
    DataError,
    DataFormatError,
    MissingDataError,
    MissingExtraError,
)
from paceline.core.generators import nested
from paceline.core.layout import Layout
from paceline.core.params import Resident
from paceline.core.samples import ClientData
from paceline.core.training import Job, train
from paceline.data.sources.chatterbot import pairs
from paceline.data.sources.weights import SMOLLM2, Weights
from paceline.engines.stacking import Solver
from paceline.models.language import language_model
from paceline.models.tuning import Tuning, tuned
from paceline.tasks import load_task
from tests.conftest import fetched


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a tiny model of the Llama kind that was never trained."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=50, max_position_embeddings=64, tie_word_embeddings=True, **sizes)
    place = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    return place


def test_modules_share_the_frozen_weights_and_have_factors_of_their_own(folder):
    build = pickle.loads(pickle.dumps(language_model(folder)))
    tuning = Tuning("lora", rank=2, targets=("q_proj", "v_proj"))
    torch.manual_seed(1)
    one, other = tuned(build, tuning), tuned(build, tuning)
    a, b = dict(one.named_parameters()), dict(other.named_parameters())
    names = set(tuning.names(one))
    assert len(names) == 2 * 2 * 2
    assert sum(a[n].numel() for n in names) == 2 * 2 * ((16 + 16) + (16 + 8))
    assert all((a[n].data_ptr() == b[n].data_ptr()) == (n not in names) for n in a)
    model = Resident(one, Layout.of(one, sorted(names)))
    with torch.no_grad():
        model.params.vector.add_(1.0)
    assert not [n for n in names if b[n].equal(a[n])]
    x = torch.randint(0, 50, (2, 8))
    assert not one(x).equal(other(x))
    assert build()(x).equal(tuned(build, tuning)(x))


def test_all_of_it_can_be_tuned_without_touching_the_shared_copy(folder):
    build = language_model(folder)
    before = {n: p.clone() for n, p in build().named_parameters()}
    model = Resident(build(), Layout.of(build(), lambda name: True, "local"))
    with torch.no_grad():
        model.params.vector.mul_(2.0)
    assert all(p.equal(before[n]) for n, p in build().named_parameters())


def test_padding_changes_nothing_and_is_not_computed(folder):
    module = language_model(folder)().eval()
    x = torch.randint(0, 50, (3, 6))
    with torch.no_grad():
        out = module(x)
        padded = module(torch.cat([torch.full((3, 18), -1), x], 1))
    assert out.shape == (3, 50, 6)
    assert padded.shape == (3, 50, 24)
    torch.testing.assert_close(padded[:, :, 18:], out, rtol=1e-5, atol=1e-6)
    assert float(padded[:, :, :16].abs().max()) == 0.0


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    with pytest.raises(MissingDataError, match=r"paceline data fetch smollm2-135m \(93 MB\)"):
        SMOLLM2.cached()
    with pytest.raises(MissingDataError, match="paceline data fetch chatterbot"):
        load_task("chatterbot")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    for attempt in (SMOLLM2.fetch, lambda: language_model(tmp_path)):
        with pytest.raises(MissingExtraError, match=r"transformers.*'paceline\[peft\]'"):
            attempt()
    assert not list(tmp_path.iterdir())


def test_a_model_is_converted_once_and_whole_or_not_at_all(monkeypatch, tmp_path):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    monkeypatch.setattr("paceline.data.sources.weights.bring", lambda *rest: {"a": b"weights"})
    calls = []

    def convert(files, folder):
        calls.append(1)
        (folder / "model").write_bytes(files["a"])
        if len(calls) == 3:
            raise ChecksumError("damaged")

    source = Weights("tiny", "", "", 1, convert=convert)
    assert not source.ready()
    assert (source.fetch() / "model").read_bytes() == b"weights"
    source.fetch()
    assert len(calls) == 1
    source.fetch(force=True)
    with pytest.raises(ChecksumError):
        source.fetch(force=True)
    assert source.ready()
    assert source.cached() == source.fetch()
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["tiny-v1"]
    with pytest.raises(DataError, match="a model, not a data set"):
        source.load()


def test_conversations_become_pairs():
    text = "categories:\n- a\nconversations:\n- - What?\n  - 'That. '\n  - More.\n- - Alone\n- nothing\n"
    assert pairs(text) == [("What?", "That.")]
    for wrong in ("- a\n", "conversations: 3\n"):
        with pytest.raises(DataFormatError):
            pairs(wrong)


def test_the_real_questions():
    data = fetched("chatterbot").load()
    assert data.train.x.shape == (2025, 2)
    assert len(data.owners) == 21


def test_clients_with_padded_texts_tune_it_stacked_as_alone(folder):
    module = tuned(language_model(folder), tuning := Tuning("lora", rank=2, dropout=0.2))
    model = Resident(module, Layout.of(module, tuning.names(module)))
    x, y = torch.randint(0, 50, (40, 20)), torch.randint(0, 50, (40, 20))
    x[::3, :13] = -1
    y[::3, :14] = -100
    start, sizes = model.snapshot(), (10, 10, 13, 7)
    solver = Solver()

    def jobs():
        rows = torch.split(torch.arange(40), sizes)
        return [
            Job(model, ClientData(x, y, r), start, F.cross_entropy, 0.5, 3, 8, partial(torch.Generator().manual_seed, k))
            for k, r in enumerate(rows)
        ]

    with nested(0):
        alone, together = [train(job) for job in jobs()], solver(jobs())
    assert solver.notes == {}
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other.params.vector, one.params.vector, rtol=1e-5, atol=1e-6)
        assert float((one.params.vector - start.vector).norm()) > 1e-3
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
