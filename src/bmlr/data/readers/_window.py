"""Samples of audio within a time window, collected block by block."""

from __future__ import annotations

import math

import numpy as np

MAX_SECONDS = 4 * 3600  # of audio or video; a file of a megabyte can hold days of silence
MAX_SAMPLES = 1 << 28  # per channel, before and after resampling: a gigabyte in memory

_MARGIN = 0.5  # seconds read on both sides of a window, for the filter that resamples
_MAX_CHECKED = MAX_SECONDS  # seconds decoded beyond a window, to notice a truncated file


class SampleWindow:
    """Samples of one channel within a time window.

    Args:
        rate: Samples per second of the file.
        sample_rate: Samples per second of the result.
        start: Start of the window in seconds.
        stop: End of the window in seconds; None for that of the file.
    """

    def __init__(self, rate: float, sample_rate: int, start: float = 0.0, stop: float | None = None) -> None:
        self.rate, self.sample_rate, self.start, self.stop = rate, sample_rate, start, stop
        self.first = max(round((start - _MARGIN) * rate), 0)
        self.last = math.inf if stop is None else math.ceil((stop + _MARGIN) * rate)
        self.position = 0  # samples of the file so far
        self.blocks: list[np.ndarray] = []

    @property
    def complete(self) -> bool:
        """Whether all samples of the window have come."""
        return self.position >= self.last

    @property
    def exhausted(self) -> bool:
        """Whether decoding may stop.

        Beyond the window it goes on for hours of audio only to notice a truncated file.
        """
        return self.complete and self.position > self.last + _MAX_CHECKED * self.rate

    def add(self, block: np.ndarray) -> None:
        """Add the next samples (N,)."""
        start, stop = max(self.first - self.position, 0), min(self.last - self.position, len(block))
        if start < stop:
            self.blocks.append(block[start : int(stop)])
        self._advance(len(block))

    def add_silence(self, samples: int) -> None:
        """Add samples missing in the file."""
        silent = min(self.position + samples, self.last) - max(self.first, self.position)
        self._advance(samples)
        if silent > 0:
            self.blocks.append(np.zeros(int(silent), np.float32))

    def _advance(self, samples: int) -> None:
        check_length(min(self.position + samples, self.last) - self.first, self.rate, self.sample_rate)
        self.position += samples

    def waveform(self) -> np.ndarray:
        """Samples of the window at ``sample_rate``, shape (N,), float32."""
        joined = np.concatenate(self.blocks) if self.blocks else np.zeros(0, np.float32)
        if self.rate != self.sample_rate and len(joined):
            from bmlr.data.transforms._librosa import load_librosa

            joined = load_librosa().resample(joined, orig_sr=self.rate, target_sr=self.sample_rate)
        skipped = max(round((self.start - self.first / self.rate) * self.sample_rate), 0)
        length = None if self.stop is None else max(round((self.stop - self.start) * self.sample_rate), 0)
        return np.ascontiguousarray(joined[skipped:][:length], dtype=np.float32)


def check_length(samples: float, rate: float, sample_rate: int) -> None:
    """Raise a ValueError if audio would take too much memory.

    Args:
        samples: Samples per channel.
        rate: Samples per second.
        sample_rate: Samples per second after resampling.
    """
    seconds = samples / max(rate, 1e-9)
    if seconds > MAX_SECONDS or max(samples, seconds * sample_rate) > MAX_SAMPLES:
        raise ValueError(
            f"it is too long: {samples:.0f} samples per channel, {seconds:.0f} s; at most {MAX_SAMPLES} samples and "
            f"{MAX_SECONDS} s are read"
        )
