"""Speech-like audio, made of numbers alone: what a voice detector takes for a voice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BANDS = ((300, 800), (900, 2200), (2300, 3000))
"""Where the first three formants of vowels lie, in Hz."""


def speech(seconds: int, rate: int = 16_000, seed: int = 0) -> npt.NDArray[np.float32]:
    """Phrases of voiced syllables with hiss before each, and pauses of faint noise between; mono, in -1 to 1."""
    rng = np.random.default_rng(seed)
    parts: list[npt.NDArray[np.float64]] = []
    while sum(map(len, parts)) < seconds * rate:
        pitch = rng.uniform(100, 200)
        for _ in range(rng.integers(5, 10)):
            parts += [np.diff(rng.normal(size=int(rng.uniform(0.02, 0.06) * rate)), prepend=0) * 0.03]
            parts += [_syllable(rng, pitch, rate)]
        parts += [np.zeros(int(rng.uniform(0.8, 1.4) * rate))]
    audio = np.concatenate(parts)[: seconds * rate]
    return (audio + rng.normal(size=audio.size) * 1e-3).astype(np.float32)


def _syllable(rng: np.random.Generator, pitch: float, rate: int) -> npt.NDArray[np.float64]:
    """The harmonics of a gliding pitch, as loud as they are near one of three moving formants."""
    t = np.linspace(0, 1, int(rng.uniform(0.14, 0.26) * rate))
    f0 = pitch * (1 + rng.uniform(-0.12, 0.12) * t)
    phase = 2 * np.pi * np.cumsum(f0) / rate
    starts, ends = ([rng.uniform(*band) for band in BANDS] for _ in range(2))
    tone = np.zeros_like(t)
    for k in range(1, 30):
        formants = zip(starts, ends, (70, 90, 130), (1, 0.6, 0.35), strict=True)
        level = sum(gain / (1 + ((k * f0 - (a + (b - a) * t)) / width) ** 2) for a, b, width, gain in formants)
        tone += np.where(k * f0 < 0.45 * rate, level, 0) * np.sin(k * phase)
    loudness: npt.NDArray[np.float64] = 0.3 / np.abs(tone).max() * np.sqrt(np.minimum(1, 8 * np.minimum(t, 1 - t)))
    return tone * loudness
