"""White noise for waveforms."""

from __future__ import annotations

import math

import numpy as np


def add_noise(waveform: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    r"""Mix white Gaussian noise into a waveform.

    .. math::
        x + \varepsilon\,\sqrt{\frac{\overline{x^2}}{\overline{\varepsilon^2}\;10^{\mathrm{SNR}/10}}},
        \qquad \varepsilon_i \sim \mathcal{N}(0, 1)

    The drawn noise is scaled, so that the ratio is exact rather than expected.

    Args:
        waveform: Samples, shape (N,).
        snr_db: Ratio of the waveform's power to that of the noise, in dB.
        rng: Random generator of the noise.

    Returns:
        Shape (N,), float32. A silent waveform has no such ratio and is returned unchanged.

    Raises:
        ValueError: If ``snr_db`` is not finite.

    Example:
        >>> import numpy as np
        >>> wave = np.ones(1000, dtype=np.float32)
        >>> noise = add_noise(wave, 10.0, np.random.default_rng(0)) - wave
        >>> round(float(10 * np.log10(1 / np.mean(noise**2))), 3)
        10.0
    """
    if not math.isfinite(snr_db):
        raise ValueError(f"Parameter `snr_db` should be finite. Found `snr_db = {snr_db}`.")
    signal = np.asarray(waveform, dtype=np.float64)
    noise = rng.standard_normal(signal.shape)
    power = float(np.mean(signal**2)) if signal.size else 0.0
    if power == 0:
        return signal.astype(np.float32)
    scale = math.sqrt(power / (float(np.mean(noise**2)) * 10 ** (snr_db / 10)))
    return (signal + scale * noise).astype(np.float32)
