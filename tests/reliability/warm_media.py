"""Has what reads media loaded and compiled, for the processes that are forked from the one that imports this."""

import av  # noqa: F401
import librosa
import numpy as np
import PIL.Image  # noqa: F401
import soundfile  # noqa: F401

librosa.resample(np.zeros(2048, np.float32), orig_sr=16000, target_sr=22050)
librosa.stft(np.zeros(2048, np.float32), n_fft=512)
