"""Instructions as tokens: templates, masks by hand, padding that changes nothing, categories."""

import dataclasses

import pytest
import torch

from paceline.core.errors import ConfigError, DataError, DataFormatError
from paceline.data import partition_task
from paceline.models.transformer import char_model
from paceline.tasks import load_task
from paceline.tasks.instructions import CATEGORIES, characters, generic, records
from paceline.tasks.texts import InstructionRecord, Tokens, encode, instruction_task, prompt, token_loss
from tests.conftest import fetched

LETTERS = Tokens(lambda text: [ord(c) - 96 for c in text if c.isalpha() and c.islower()], 0, 27)


def small(items, **options):
    values = {"model": lambda: char_model(shape=(64,), num_classes=97), "length": 64, "layout": "plain", "held": 2, **options}
    return instruction_task("words", items, characters(), **values)


def test_the_sections_of_the_template():
    asked = prompt(InstructionRecord("Reverse it.", "tac", "cat"))
    assert asked.index("### Instruction:\nReverse it.\n\n### Input:\ncat\n\n### Response:\n") > 10
    assert asked.endswith("### Response:\n")
    assert "### Input" not in prompt(InstructionRecord("Sing.", "la"))
    assert prompt(InstructionRecord("reverse", "tac", "cat"), "plain") == "reverse: cat\n"
    assert prompt(InstructionRecord("sing", "la"), "plain") == "sing\n"


def test_prompts_are_not_scored_and_responses_and_ends_are():
    """ab -> cd, and a -> b: targets are the next tokens, padded on the left to a multiple of eight."""
    x, y, kept = encode([InstructionRecord("ab", "cd"), InstructionRecord("a", "b")], LETTERS, 16, "plain")
    assert x.tolist() == [[-1] * 4 + [1, 2, 3, 4], [-1] * 6 + [1, 2]]
    assert y.tolist() == [[-100] * 4 + [-100, 3, 4, 0], [-100] * 6 + [2, 0]]
    assert kept.tolist() == [0, 1]
    _, whole, _ = encode([InstructionRecord("ab", "cd")], LETTERS, 16, "plain", train_on_inputs=True)
    assert whole.tolist() == [[-100] * 4 + [2, 3, 4, 0]]


def test_long_texts_are_cut_and_left_out_where_nothing_is_scored():
    x, y, kept = encode(
        [InstructionRecord("abc", "defg"), InstructionRecord("abcdef", "g"), InstructionRecord("abcd", "ef")], LETTERS, 5, "plain"
    )
    assert kept.tolist() == [0, 2]
    assert x.tolist()[0][-4:] == [1, 2, 3, 4]
    assert y.tolist() == [[-100] * 6 + [4, 5], [-100] * 7 + [5]]  # no room for the end symbol
    with pytest.raises(DataFormatError, match="length=3"):
        encode([InstructionRecord("abcdef", "g")], LETTERS, 3, "plain")


def test_the_loss_is_the_mean_over_scored_targets():
    scores, y = torch.randn(2, 5, 3), torch.tensor([[-100, 2, 4], [-100, -100, 0]])
    logs = scores.double().log_softmax(1)
    expected = -(logs[0, 2, 1] + logs[0, 4, 2] + logs[1, 0, 2]) / 3
    assert float(token_loss(scores, y)) == pytest.approx(float(expected), rel=1e-5)


def test_padding_changes_nothing_and_the_future_is_not_seen():
    torch.manual_seed(0)
    module = char_model(shape=(16,), num_classes=9, dim=8, heads=2).eval()
    x = torch.randint(0, 9, (1, 6))
    out = module(x)
    padded = module(torch.cat([torch.full((1, 5), -1), x], 1))
    torch.testing.assert_close(padded[:, :, 5:], out, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(padded).all()
    changed = x.clone()
    changed[0, 4] = (x[0, 4] + 1) % 9
    other = module(changed)
    torch.testing.assert_close(other[:, :, :4], out[:, :, :4], rtol=1e-6, atol=1e-7)
    assert not other[:, :, 4].equal(out[:, :, 4])


@pytest.mark.parametrize(
    ("kind", "answer"),
    {
        "reverse": "ohce", "upper-case": "ECHO", "count letters": "4", "first letter": "e",
        "last letter": "o", "double": "echoecho", "sort letters": "ceho", "spell": "e c h o",
    }.items(),
)  # fmt: skip
def test_categories(kind, answer):
    assert CATEGORIES[kind]("echo") == answer


def test_records_are_always_the_same_and_every_symbol_is_known():
    assert records(3) == records(3)
    assert records(3) != records(3, seed=1)
    assert [r.kind for r in records(2)] == [kind for kind in CATEGORIES for _ in range(2)]
    assert characters().encode("é~ \n") == [characters().encode("?")[0], *characters().encode("~ \n")]
    assert max(c for r in generic(50) for c in characters().encode(r.response)) < characters().end


def test_kinds_are_held_out_and_partitions_go_by_them():
    task = small(records(9))
    assert (len(task.train), len(task.test), task.train.x.shape[1] % 8) == (56, 16, 0)
    assert torch.bincount(task.train.owner).tolist() == [7] * 8
    assert [len(rows) for rows, _ in task.parts()] == [2] * 8
    texts = {tuple(row) for row in task.train.x.tolist()}
    again = small(records(9))
    assert again.train.x.equal(task.train.x)
    split = partition_task(task, "shards:2", 4, seed=0)
    kinds = [set(task.train.owner[split[k]].tolist()) for k in range(4)]
    assert set().union(*kinds) == set(range(8))
    assert max(map(len, kinds)) <= 3
    assert split.table(task).sum() == 56
    assert partition_task(task, "natural").num_clients == 8
    assert partition_task(task, "dirichlet:0.5", 4, seed=0).num_clients == 4
    assert len(texts) > 40
    assert len(small(records(9), limit=3).train) == 24


def test_sequences_without_kinds_cannot_be_shared_out_by_class():
    task = small(records(4))
    without = dataclasses.replace(task, train=dataclasses.replace(task.train, owner=None, owners=()))
    with pytest.raises(DataError, match="class label"):
        partition_task(without, "dirichlet:1", 4)


def test_wrong_options_are_named():
    with pytest.raises(DataFormatError, match=r"'count letters' has 3 records .* held=3"):
        small(records(3), held=3)
    with pytest.raises(ConfigError, match="length=1"):
        small(records(3), length=1)
    with pytest.raises(ConfigError, match="use char_model"):
        load_task("instructions", model="mlp")


def test_questions_and_answers_are_a_task_of_characters_too(monkeypatch, tmp_path):
    fetched("chatterbot")
    monkeypatch.setattr("paceline.tasks.instructions._small", lambda *_: lambda: char_model(shape=(96,), num_classes=97))
    task = load_task("chatterbot", model="char_model", topics=3, limit=20)
    assert (len(task.train), len(task.test), len(task.train.owners)) == (60, 15, 3)
    assert "tech_support" in task.train.owners
