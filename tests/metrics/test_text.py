"""BLEU against sacrebleu, ROUGE against rouge-score."""

import math

import pytest
import sacrebleu
import torch
from rouge_score import rouge_scorer

from paceline.metrics import Bleu, Rouge
from tests.metrics.kit import same, summed, whole

G = torch.Generator().manual_seed(11)
WORDS = [f"w{i}" for i in range(9)]


def sentences(n=60, length=14):
    """True sentences of different lengths, and predictions that follow them with errors and other lengths."""
    y = torch.randint(0, 9, (n, length), generator=G)
    out = torch.where(torch.rand(n, length, generator=G) < 0.2, torch.randint(0, 9, (n, length), generator=G), y)
    out = torch.stack([row.roll(int(k)) for row, k in zip(out, torch.randint(0, 3, (n,), generator=G), strict=True)])
    place = torch.arange(length)
    for rows in (y, out):
        rows[place >= torch.randint(5, length + 1, (n, 1), generator=G)] = -1
    return out, y


OUT, Y = sentences()
SIZES = (7, 0, 53)


def text(rows):
    return [" ".join(WORDS[i] for i in row if i >= 0) for row in rows.tolist()]


@pytest.mark.parametrize("order", [1, 2, 4])
def test_bleu(order):
    theirs = sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order)
    metric = Bleu(order=order)
    assert summed(metric, OUT, Y, SIZES) == {"bleu": pytest.approx(theirs.corpus_score(text(OUT), [text(Y)]).score / 100, abs=1e-9)}
    longer = torch.where(Y >= 0, Y, 3)  # no brevity penalty
    assert whole(metric, longer, Y)["bleu"] == pytest.approx(theirs.corpus_score(text(longer), [text(Y)]).score / 100, abs=1e-9)


@pytest.mark.parametrize("kind", ["1", "2", "l"])
def test_rouge(kind):
    name = f"rouge{kind.upper()}"
    scorer = rouge_scorer.RougeScorer([name])
    found = [scorer.score(a, b)[name] for a, b in zip(text(Y), text(OUT), strict=True)]
    ours = summed(Rouge(kind=kind), OUT, Y, SIZES)
    want = {f"rouge{kind}{part}": sum(getattr(f, field) for f in found) / len(found)
            for part, field in (("", "fmeasure"), ("_precision", "precision"), ("_recall", "recall"))}  # fmt: skip
    assert ours == pytest.approx(want, abs=1e-9)


def test_scores_of_tokens_are_read_where_a_target_is_and_in_either_layout():
    scores = torch.randn(8, 9, 14, generator=G)
    y = torch.where(torch.arange(14) % 3 == 0, -100, Y[:8])  # places between tokens do not count
    rows = [[int(t) for t, k in zip(a, b, strict=True) if k >= 0] for a, b in zip(scores.argmax(1), y, strict=True)]
    out = torch.tensor([row + [-1] * (14 - len(row)) for row in rows])
    for metric in (Bleu(order=1), Rouge(kind="l")):
        want = whole(metric, out, y)
        assert same(whole(metric, scores, y), want)
        assert same(whole(metric, scores.transpose(1, 2), y), want)


def test_empty_and_short_predictions():
    nothing = torch.full_like(Y, -1)
    assert whole(Bleu(), nothing, Y) == {"bleu": 0.0}
    assert whole(Bleu(), OUT[:, :2], Y) == {"bleu": 0.0}
    assert whole(Rouge(kind="2"), OUT[:, :1], Y)["rouge2"] == 0.0
    assert math.isnan(whole(Bleu(), OUT, nothing)["bleu"])
    assert math.isnan(whole(Rouge(), OUT, nothing)["rougel"])
