"""Spectrograms against librosa's own calls, the noise against its definition, and every way a recording can be bad."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmlr.data.readers._audio import read_audio
from bmlr.data.transforms._noise import add_noise
from bmlr.data.transforms._spectrogram import Spectrogram

librosa = pytest.importorskip("librosa")
soundfile = pytest.importorskip("soundfile")


def tone(samples=8000, rate=8000, frequency=440.0):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(samples) / rate)).astype(np.float32)


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(), 8000)
    return path


class TestSpectrogram:
    def test_equals_librosa_mel(self):
        made = Spectrogram(seconds=1.0)(tone())
        power = librosa.feature.melspectrogram(y=tone(), sr=8000, n_fft=256, hop_length=128, n_mels=32, power=2.0)
        assert made.dtype == np.float32
        np.testing.assert_allclose(made[0], np.log(power + 1e-7), atol=1e-4)

    def test_equals_librosa_linear(self):
        made = Spectrogram(sample_rate=22050, n_fft=512, hop_length=353, n_mels=None, seconds=3.0)(tone(66150, 22050))
        magnitude = np.abs(librosa.stft(tone(66150, 22050), n_fft=512, hop_length=353))
        assert made.shape == (1, 257, 188)  # the size the audio-visual baselines train on
        np.testing.assert_allclose(made[0], np.log(magnitude + 1e-7), atol=1e-4)

    @settings(deadline=None, max_examples=30)
    @given(
        st.integers(1, 12000),
        st.sampled_from([(256, 128, 32), (512, 353, None), (64, 64, 8), (255, 7, None)]),
        st.floats(0.07, 1.2),
    )
    def test_shape_is_as_said(self, samples, sizes, seconds):
        n_fft, hop_length, n_mels = sizes
        spectrogram = Spectrogram(8000, n_fft, hop_length, n_mels, seconds)
        made = spectrogram(tone(samples))
        assert made.shape == spectrogram.shape
        assert np.isfinite(made).all()

    def test_short_clip_is_padded_and_long_clip_is_cut(self):
        spectrogram = Spectrogram(seconds=0.5)
        padded = np.concatenate([tone(1000), np.zeros(3000, np.float32)])
        np.testing.assert_array_equal(spectrogram(tone(1000)), spectrogram(padded))
        np.testing.assert_array_equal(spectrogram(tone(8000)), spectrogram(tone(4000)))

    def test_silence_is_finite(self):
        np.testing.assert_allclose(Spectrogram()(np.zeros(100)), np.log(1e-7), rtol=1e-6)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"sample_rate": 0},
            {"n_fft": 1},
            {"hop_length": 0},
            {"hop_length": 257},
            {"n_mels": 0},
            {"n_mels": 130},
            {"seconds": 0},
            {"seconds": float("nan")},
            {"seconds": 255 / 8000},
        ],
    )
    def test_parameters_out_of_range(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Spectrogram(**wrong)

    def test_empty_mel_bands_are_an_error(self):
        with pytest.raises(ValueError, match="n_mels"):
            Spectrogram(sample_rate=44100, n_mels=128)(tone())

    @pytest.mark.parametrize("waveform", [np.zeros(0), np.zeros((2, 100)), np.array([0.0, np.nan]), np.array([np.inf])])
    def test_wrong_waveform(self, waveform):
        with pytest.raises(ValueError, match="waveform"):
            Spectrogram()(waveform)


class TestReadAudio:
    def test_samples_come_back(self, wav):
        made = read_audio(wav, 8000)
        assert made.dtype == np.float32
        assert made.shape == (8000,)
        np.testing.assert_allclose(made, tone(), atol=1e-4)

    def test_channels_are_averaged(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", np.stack([tone(), np.zeros(8000)], 1), 8000, subtype="FLOAT")
        np.testing.assert_allclose(read_audio(tmp_path / "x.wav", 8000), tone() / 2, atol=1e-6)

    def test_resampling_keeps_the_tone(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", tone(16000, 16000), 16000)
        made = read_audio(tmp_path / "x.wav", 8000)
        assert made.shape == (8000,)
        np.testing.assert_allclose(made[200:-200], tone()[200:-200], atol=5e-3)

    def test_flac_and_aiff_are_read(self, tmp_path):
        for name in ("x.flac", "x.aiff"):
            soundfile.write(tmp_path / name, tone(), 8000)
            assert read_audio(tmp_path / name, 8000).shape == (8000,)

    @pytest.mark.parametrize("name", ["x.wav", "x.aiff", "x.flac"])
    @pytest.mark.parametrize("cut", [1, 2, 1000])
    def test_truncated(self, tmp_path, name, cut):
        path = tmp_path / name
        noise = np.random.default_rng(0).uniform(-1, 1, 8000)
        soundfile.write(path, noise, 8000)
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(ValueError, match=name):
            read_audio(path, 8000)

    @pytest.mark.parametrize("length", range(44))
    def test_truncated_in_the_header(self, wav, length):
        wav.write_bytes(wav.read_bytes()[:length])
        with pytest.raises(ValueError, match=r"tone\.wav"):
            read_audio(wav, 8000)

    def test_chunk_before_the_samples_is_skipped(self, wav):
        content = wav.read_bytes()
        extra = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # odd size: a padding byte follows
        wav.write_bytes(content[:12] + extra + content[12:])
        assert len(read_audio(wav, 8000)) == 8000
        wav.write_bytes(wav.read_bytes()[:-2])
        with pytest.raises(ValueError, match="truncated"):
            read_audio(wav, 8000)

    def test_rf64_is_read_and_checked(self, tmp_path):
        path = tmp_path / "long.wav"
        soundfile.write(path, tone(), 8000, format="RF64")
        assert path.read_bytes()[:4] == b"RF64"
        assert len(read_audio(path, 8000)) == 8000
        path.write_bytes(path.read_bytes()[:-2])
        with pytest.raises(ValueError, match="truncated"):
            read_audio(path, 8000)

    @pytest.mark.parametrize(
        "content", [b"", b"not a recording", b"\0" * 4096, b"RIFF\0\0\0\0WAVE", b"RIFF\4\0\0\0AVI "]
    )
    def test_not_a_recording(self, tmp_path, content):
        (tmp_path / "x.wav").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.wav"):
            read_audio(tmp_path / "x.wav", 8000)

    def test_no_samples(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", np.zeros(0), 8000)
        with pytest.raises(ValueError, match=r"x\.wav holds no samples"):
            read_audio(tmp_path / "x.wav", 8000)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_finite(self, tmp_path, value):
        samples = tone()
        samples[17] = value
        soundfile.write(tmp_path / "x.wav", samples, 8000, subtype="FLOAT")
        with pytest.raises(ValueError, match=r"x\.wav holds samples that are NaN"):
            read_audio(tmp_path / "x.wav", 8000)

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"x\.wav"):
            read_audio(tmp_path / "x.wav", 8000)
        with pytest.raises(ValueError, match="should be a file. It is a folder"):
            read_audio(tmp_path, 8000)


class TestAddNoise:
    @pytest.mark.parametrize("snr_db", [-20.0, 0.0, 15.0])
    def test_ratio_is_as_stated(self, snr_db):
        noise = add_noise(tone(), snr_db, np.random.default_rng(0)).astype(np.float64) - tone()
        ratio = 10 * np.log10(np.mean(tone().astype(np.float64) ** 2) / np.mean(noise**2))
        assert ratio == pytest.approx(snr_db, abs=1e-3)

    def test_noise_is_white_and_new_for_every_generator(self):
        first = add_noise(tone(), 0.0, np.random.default_rng(0)) - tone()
        second = add_noise(tone(), 0.0, np.random.default_rng(1)) - tone()
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
        assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.05
        np.testing.assert_array_equal(first, add_noise(tone(), 0.0, np.random.default_rng(0)) - tone())

    def test_silence_stays_silent(self):
        np.testing.assert_array_equal(add_noise(np.zeros(9, np.float32), 0.0, np.random.default_rng(0)), np.zeros(9))

    def test_ratio_must_be_finite(self):
        with pytest.raises(ValueError, match="snr_db"):
            add_noise(tone(), float("inf"), np.random.default_rng(0))
