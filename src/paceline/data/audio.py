"""Sound as pictures: a short-time Fourier transform, a mel filter bank, and logarithms."""

from __future__ import annotations

import io
import wave

import numpy as np

from paceline.core.errors import DataFormatError
from paceline.data.raw import Array

__all__ = ["log_mel", "mel_filters", "read_wav"]


def read_wav(content: bytes, where: str) -> tuple[Array, int]:
    """Return the samples of a mono WAV file of 16 bits, float32 from -1 to 1, and its rate in Hz.

    Raises:
        DataFormatError: the file has another form.
    """
    try:
        with wave.open(io.BytesIO(content)) as opened:
            form, rate = (opened.getnchannels(), opened.getsampwidth()), opened.getframerate()
            data = opened.readframes(opened.getnframes())
    except (wave.Error, EOFError) as error:
        raise DataFormatError(f"{where}: not a WAV file ({error})") from None
    if form != (1, 2):
        raise DataFormatError(f"{where}: {form[0]} channels of {8 * form[1]} bits; convert it to mono of 16 bits")
    return np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768, rate


def mel_filters(rate: int, size: int, count: int) -> Array:
    """Return triangular filters with peaks evenly spaced on the mel scale from 0 to half the rate, shape [count, size // 2 + 1].

    Args:
        rate: sampling rate in Hz.
        size: samples of a frame.
        count: number of filters.

    Example:
        >>> mel_filters(8000, 256, 32).shape
        (32, 129)
    """
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, count + 2) / 2595) - 1)
    frequency = np.arange(size // 2 + 1) * rate / size
    rising = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.clip(np.minimum(rising, falling), 0, None))


def log_mel(sound: Array, rate: int, count: int = 32, size: int = 256, step: int = 200) -> Array:
    """Return logarithms of the energy in mel bands, float32 [count, frames].

    Args:
        sound: samples from -1 to 1, shape [T].
        rate: sampling rate in Hz.
        count: number of bands.
        size: samples of a frame, under a Hann window.
        step: samples between frames.
    """
    starts = np.arange(0, len(sound) - size + 1, step)
    frames = sound[starts[:, None] + np.arange(size)] * np.hanning(size)
    energy = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    return np.log(energy @ mel_filters(rate, size, count).T + 1e-4).T.astype(np.float32)
