"""`spoken-digits`: the digits 0 to 9 in five languages, one speaker each, as log-mel pictures.

There is one recording of each digit and speaker. Samples are renderings of these 50 recordings at another speed, loudness, place
and noise, drawn with a fixed seed; the test part has other renderings of the same recordings, not other speakers.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from paceline.core.random import numpy_rng
from paceline.data.audio import log_mel, read_wav
from paceline.data.fetch import Package
from paceline.data.raw import Array, Part, RawData
from paceline.data.schema import Picture, Schema, Target
from paceline.data.sources.source import Source

__all__ = ["SPOKEN_DIGITS", "rendered"]

_RATE = 8000
_SPEAKERS = {
    "en": ("en_US_f_Allison", "English", "f04d4dab40c61fa8a6d4088d635acf1c16136ed1674318b5013bc605d3afda41"),
    "es": ("es_MX_f_Allison", "Spanish", "6522d91de9c174fd4aa123963bc2923d173aa7718e6a449be97c64368105f442"),
    "fr": ("fr_CA_f_June", "French", "261825eefc4af54b15b1b10881578129737222e093e5e5234ebd83728ccf0eef"),
    "it": ("it_IT_m_Carlo", "Italian", "30a6e37b35ca952aa1492cd7ea1c33b03a882a053957bf12fea411d3b4f7e4b3"),
    "ru": ("ru_RU_f_IvrvoiceRU", "Russian", "a16fae141a312ac181377a90436727470c9272724436d5549374fcd5a8101f56"),
}
_DIGITS = tuple("0123456789")


def _folder(speaker: str) -> str:
    return f"usr/share/asterisk/sounds/{speaker}/digits/"


def _decode(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    names = [f"{_folder(speaker)}{digit}.wav" for speaker, *_ in _SPEAKERS.values() for digit in _DIGITS]
    sounds = [read_wav(files[name], name)[0] for name in names]
    return {"sound": np.concatenate(sounds), "offsets": np.cumsum([0, *map(len, sounds)]).astype(np.int64)}


def rendered(sound: Array, rng: np.random.Generator) -> Array:
    """Return one second of a recording at another speed, loudness and place, with noise; float64 [8000].

    Args:
        sound: the recording; silence at both ends is cut.
        rng: random generator.
    """
    loud = np.flatnonzero(np.abs(sound) > 0.05 * np.abs(sound).max())
    clip = sound[loud[0] : loud[-1] + 1]
    length = min(int(len(clip) / rng.uniform(0.8, 1.25)), _RATE)
    clip = np.interp(np.linspace(0, len(clip) - 1, length), np.arange(len(clip)), clip)
    out = rng.normal(0, rng.uniform(0.002, 0.03), _RATE)
    start = rng.integers(0, _RATE - length + 1)
    out[start : start + length] += clip / np.abs(clip).max() * rng.uniform(0.3, 1)
    return np.asarray(out)


def _read(arrays: Mapping[str, Array], options: Mapping[str, int]) -> RawData:
    sound, offsets, each = arrays["sound"], arrays["offsets"], options["renderings"]
    recordings = [sound[a:b] for a, b in pairwise(offsets)]
    rows = [(k, v) for k in range(len(recordings)) for v in range(each + max(each // 4, 1))]
    x = np.stack([log_mel(rendered(recordings[k], numpy_rng(0, "render", k, v)), _RATE) for k, v in rows])
    recording, number = np.array(rows).T
    whole = Part(x, recording % 10, recording // 10)
    languages = tuple(language for _, language, _ in _SPEAKERS.values())
    picture = Picture(height=x.shape[1], width=x.shape[2], channels=1, top=1.0)
    schema = Schema(content="image", picture=picture, target=Target(classes=_DIGITS))
    train, test = np.flatnonzero(number < each), np.flatnonzero(number >= each)
    return RawData(whole.take(train), whole.take(test), _DIGITS, languages, schema=schema)


SPOKEN_DIGITS = Source(
    "spoken-digits",
    "spoken digits in 5 languages as log-mel pictures: renderings of 50 recordings, one speaker a language; client = speaker",
    "CC-BY-SA-3.0; Russian CC-BY-3.0",
    98,
    lambda options: tuple(
        Package("debian", f"asterisk-core-sounds-{code}-wav", "1.6.1", {f"{_folder(speaker)}[0-9].wav*": digest})
        for code, (speaker, _, digest) in _SPEAKERS.items()
    ),
    _decode,
    _read,
    chosen={"renderings": 20},
)
