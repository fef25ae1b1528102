from unittest import mock

import av
import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from media_fixtures import tone, truncate, write_clip, write_flv, write_mp4, write_video, write_wav
from PIL import Image

from bmlr.data.readers._arrays import ArrayReader
from bmlr.data.readers._audio import AudioReader, read_audio
from bmlr.data.readers._container import check_installed
from bmlr.data.readers._images import ImageReader, read_rgb_image
from bmlr.data.readers._registry import reader_of
from bmlr.data.readers._video import VideoReader, _Converter, _Sampler, read_frames
from bmlr.data.sets._media import audio_reader
from bmlr.data.transforms._spectrogram import Spectrogram

GREY_STEP = 4  # what lossy compression may do to a grey level


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("media")


def reference_spectrogram(path):
    """The published code of the audio-visual baselines on CREMA-D, by librosa alone."""
    samples, _ = librosa.load(path, sr=22050)
    samples = np.tile(samples, 3)[: 22050 * 3]
    samples[samples > 1.0] = 1.0
    samples[samples < -1.0] = -1.0
    return np.log(np.abs(librosa.stft(samples, n_fft=512, hop_length=353)) + 1e-7)


@pytest.mark.filterwarnings("ignore:.*slated for removal:DeprecationWarning")  # what librosa.load imports
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (48000, 1), (22050, 2)])
@pytest.mark.parametrize("seconds", [1.7, 3.6])
def test_spectrogram_is_librosas(tmp_path, rate, channels, seconds):
    noise = 0.9 * np.random.default_rng(0).uniform(-1, 1, (round(rate * seconds), channels))
    soundfile.write(tmp_path / "x.wav", noise, rate, subtype="PCM_16")
    values = audio_reader(3.0, "float32")(tmp_path / "x.wav").values
    expected = reference_spectrogram(tmp_path / "x.wav")
    assert values.shape == (1, 257, 188)
    np.testing.assert_allclose(values[0], expected, atol=1e-4)
    half = audio_reader(3.0)(tmp_path / "x.wav").values
    assert half.dtype == np.float16
    np.testing.assert_allclose(half[0], expected, atol=8e-3)


def test_samples_beyond_full_scale_are_limited(tmp_path):
    loud = 1.8 * tone(1, 22050)[:, 0] / 0.3
    soundfile.write(tmp_path / "x.wav", loud, 22050, subtype="FLOAT")
    spectrogram = Spectrogram(22050, 512, 353, None, 3.0, "repeat")
    values = AudioReader(spectrogram, "float32")(tmp_path / "x.wav").values
    np.testing.assert_array_equal(values, spectrogram(np.clip(loud, -1, 1)))
    assert not np.allclose(values, spectrogram(loud))


def test_a_clip_is_filled_by_repetition_or_silence():
    wave = np.arange(1, 401, dtype=np.float32)
    repeated = Spectrogram(1000, 100, 50, None, 1.0, "repeat").fit_length(wave)
    np.testing.assert_array_equal(repeated, np.tile(wave, 3)[:1000])
    silent = Spectrogram(1000, 100, 50, None, 1.0).fit_length(wave)
    np.testing.assert_array_equal(silent, np.pad(wave, (0, 600)))
    with pytest.raises(ValueError, match="Did you mean 'repeat'"):
        Spectrogram(fill="repeated")


class TestReadSound:
    @pytest.mark.parametrize("rate", [16000, 44100, 48000])
    @pytest.mark.parametrize("channels", [1, 2])
    def test_of_an_mp4_is_what_was_written(self, tmp_path, rate, channels):
        path = write_mp4(tmp_path / "x.mp4", 1.0, rate=rate, channels=channels)
        wave = read_audio(path, 22050)
        assert wave.dtype == np.float32
        assert abs(len(wave) / 22050 - 1.0) < 0.1
        spectrum = np.abs(np.fft.rfft(wave[4000:18000] * np.hanning(14000)))
        peaks = sorted(int(i) * 22050 / 14000 for i in np.argsort(spectrum)[-1:])
        if channels == 1:
            assert peaks[0] == pytest.approx(440, abs=3)
        else:  # the mean of both channels holds both tones alike
            low, high = (spectrum[round(f * 14000 / 22050)] for f in (440, 880))
            assert low == pytest.approx(high, rel=0.2)

    def test_of_a_flash_video(self, tmp_path):
        wave = read_audio(write_flv(tmp_path / "x.flv", 1.0), 22050)
        assert np.abs(wave).max() == pytest.approx(0.3, abs=0.05)

    def test_a_video_without_sound(self, tmp_path):
        path = write_mp4(tmp_path / "x.mp4", 1.0, channels=0)
        with pytest.raises(ValueError, match=r"x\.mp4 cannot be read: it has no audio stream"):
            read_audio(path, 22050)

    def test_silence_and_shortness_are_refused(self, tmp_path):
        reader = audio_reader(3.0)
        with pytest.raises(ValueError, match="is silent"):
            reader(write_wav(tmp_path / "silent.wav", 1.0, amplitude=0.0))
        with pytest.raises(ValueError, match=r"too short: 0\.20 s, at least 0\.5 s"):
            reader(write_wav(tmp_path / "short.wav", 0.2))
        assert reader(write_wav(tmp_path / "quiet.wav", 1.0, amplitude=0.001)).seconds == pytest.approx(1.0)

    def test_missing(self, tmp_path):
        for name in ("x.wav", "x.mp4"):
            with pytest.raises(FileNotFoundError, match=name):
                read_audio(tmp_path / name, 22050)


def grey_levels(frames):
    """Position in its video (0 to 1) that each frame's grey tells, as fixtures paint them."""
    return (frames.mean(axis=(1, 2, 3)) - 20) / 200


class TestReadFrames:
    @pytest.mark.parametrize("fps", [7.0, 12.5, 25.0, 29.97, 60.0])
    def test_are_chosen_by_time(self, tmp_path, fps):
        """At 1 per second, the frame seen at k + ½ seconds, whatever the video's own rate."""
        path = write_clip(tmp_path / "x.mp4", 4.0, fps=fps)
        frames, seconds = read_frames(path, 1.0, 16)
        count = round(4.0 * fps)
        assert seconds == pytest.approx(count / fps, abs=0.05)
        expected = [int((k + 0.5) * fps) / (count - 1) for k in range(4)]
        assert frames.shape == (4, 16, 16, 3)
        np.testing.assert_allclose(grey_levels(frames), expected, atol=(GREY_STEP / 200) + 1.01 / count)

    def test_of_a_video_of_variable_rate(self, tmp_path):
        times = [0.0, 0.1, 0.2, 1.7, 2.4, 2.45, 2.55, 3.9, 3.95]
        path = write_video(tmp_path / "x.mp4", times, 4.0)
        frames, _ = read_frames(path, 1.0, 16)
        seen = [max(i for i, t in enumerate(times) if t <= k + 0.5) / 8 for k in range(4)]
        np.testing.assert_allclose(grey_levels(frames), seen, atol=GREY_STEP / 200)

    @pytest.mark.parametrize(("seconds", "fps", "count"), [(2.4, 1.0, 2), (2.6, 1.0, 3), (0.3, 1.0, 1), (1.0, 4.0, 4)])
    def test_number(self, tmp_path, seconds, fps, count):
        frames, _ = read_frames(write_clip(tmp_path / "x.mp4", seconds, fps=50), fps, 8)
        assert len(frames) == count
        if seconds < 0.5:
            assert grey_levels(frames)[0] == pytest.approx(0.5, abs=0.1)  # the middle of the video

    def test_flash(self, tmp_path):
        frames, seconds = read_frames(write_flv(tmp_path / "x.flv", 2.6), 1.0, 8)
        assert len(frames) == 3
        assert seconds == pytest.approx(2.6, abs=0.05)

    def test_rotation_is_undone(self, tmp_path):
        image = np.zeros((48, 64, 3), np.uint8)
        image[:24] = 200  # the upper half is bright
        upright = write_video(tmp_path / "a.mp4", [0.0, 0.5], 1.0, images=[image] * 2)
        turned = write_video(tmp_path / "b.mp4", [0.0, 0.5], 1.0, images=[image] * 2, rotation=90)
        first, second = (read_frames(path, 1.0, 16)[0][0].astype(int) for path in (upright, turned))
        assert first[:6].mean() - first[-6:].mean() > 100
        assert second[:, :6].mean() - second[:, -6:].mean() > 100  # a quarter turn against the clock

    def test_a_recording_is_no_video(self, tmp_path):
        path = write_video(tmp_path / "x.mp4", [], 1.0, audio=tone(1, 44100), with_video=False)
        with pytest.raises(ValueError, match="it has no video stream"):
            read_frames(path, 1.0, 8)

    @settings(deadline=None, max_examples=50)
    @given(
        gaps=st.lists(st.floats(0.001, 3.0), min_size=1, max_size=20),
        fps=st.floats(0.2, 10.0),
        start=st.floats(-1.0, 100.0),
    )
    def test_sampler_is_the_literal_definition(self, gaps, fps, start):
        sampler = _Sampler(fps, lambda frame: frame, 10_000)
        times = np.cumsum([0.0, *gaps[:-1]])
        for number, (time, gap) in enumerate(zip(times, gaps, strict=True)):
            sampler.add(number, start + time, gap)
        sampler.finish(None)
        assert sampler.length == sampler.end == pytest.approx(sum(gaps))
        middles = [t for k in range(1000) if (t := (k + 0.5) / fps) < sampler.length - 1e-6]
        assert len(sampler.frames) - len(middles) in {0, 1}  # one whose middle is the very end, up to rounding
        for time, frame in zip(middles, sampler.frames, strict=False):
            expected = max(i for i, t in enumerate(times) if t <= time)
            assert frame == expected or min(abs(times - time)) < 1e-6

    @pytest.mark.parametrize("fps", [0.1, 1.0])
    def test_of_a_short_video_the_frame_at_its_middle(self, tmp_path, fps):
        frames, _ = read_frames(write_video(tmp_path / "x.mp4", [0.0, 0.1, 0.2, 0.35], 0.4), fps, 8)
        assert len(frames) == 1
        assert grey_levels(frames)[0] == pytest.approx(2 / 3, abs=GREY_STEP / 200)  # shown from 0.2 s on

    def test_only_kept_frames_are_converted(self, tmp_path):
        """Conversion of all frames takes several times as long as decoding them."""
        with mock.patch.object(_Converter, "__call__", autospec=True, side_effect=_Converter.__call__) as convert:
            frames, _ = read_frames(write_clip(tmp_path / "x.mp4", 3.0, fps=25.0), 1.0, 8)
        assert convert.call_count == len(frames) == 3


class TestDamage:
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.95, 0.995])
    @pytest.mark.parametrize("kind", ["flv", "mp4", "fast.mp4"])
    def test_truncated(self, tmp_path, share, kind):
        """Cut anywhere, a video is refused by both readings and named."""
        path = tmp_path / f"x.{kind}"
        if kind == "flv":
            write_flv(path, 6.0)
        else:
            write_mp4(path, 6.0, options={"movflags": "faststart"} if kind == "fast.mp4" else None)
        truncate(path, share)
        for read in (lambda: read_frames(path, 1.0, 8), lambda: read_audio(path, 22050)):
            with pytest.raises(ValueError, match=rf"x\.{kind} cannot be read: it"):
                read()

    def test_few_frames_of_unstated_length_are_no_truncation(self, tmp_path):
        """Packets of flash videos state no length: the header counts the last one, 0.4 s to 2 s here."""
        for fps in (0.5, 1.0, 2.5):
            frames, _ = read_frames(write_flv(tmp_path / "x.flv", 6.0, fps=fps, sound=False), 0.5, 8)
            assert len(frames) == 3
        path = write_flv(tmp_path / "x.flv", 6.0, fps=2.5, sound=False)
        content, tags = path.read_bytes(), [13]
        while tags[-1] < len(content):  # tags of 11 bytes, content and 4 bytes; the last is no image
            tags.append(tags[-1] + 15 + int.from_bytes(content[tags[-1] + 1 : tags[-1] + 4]))
        path.write_bytes(content[: tags[-4]])  # without two images
        with pytest.raises(ValueError, match="truncated: its header says 6.00 s, it has"):
            read_frames(path, 0.5, 8)

    @pytest.mark.parametrize(
        "content", [b"", b"not a video " * 99, b"\0" * 4096, b"FLV\1\5\0\0\0\11" + b"\xff" * 999, b"RIFF\4\0\0\0AVI "]
    )
    @pytest.mark.parametrize("suffix", ["mp4", "flv", "avi"])
    def test_garbage(self, tmp_path, content, suffix):
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(content)
        for read in (lambda: read_frames(path, 1.0, 8), lambda: read_audio(path, 22050)):
            with pytest.raises(ValueError, match=rf"x\.{suffix}"):
                read()

    def test_playlists_are_not_followed(self, tmp_path):
        write_mp4(tmp_path / "secret.mp4", 1.0)
        path = tmp_path / "x.mp4"
        for content in (
            "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.mp4\n#EXT-X-ENDLIST\n",
            "ffconcat version 1.0\nfile secret.mp4\n",
        ):
            path.write_text(content)
            with pytest.raises(ValueError, match="cannot be read"):
                read_frames(path, 1.0, 8)

    def test_names_that_look_like_addresses(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_mp4(tmp_path / "x.mp4", 1.0)
        (tmp_path / "x.mp4").rename("concat:-y#é.mp4")
        assert len(read_frames("concat:-y#é.mp4", 1.0, 8)[0]) == 1


class TestOtherReaders:
    def test_images(self, tmp_path):
        Image.fromarray(np.full((30, 20, 3), (200, 100, 50), np.uint8)).save(tmp_path / "x.png")
        assert (read_rgb_image(tmp_path / "x.png", 8) == (200, 100, 50)).all()
        reading = ImageReader(8)(tmp_path / "x.png")
        assert reading.values.shape == ImageReader(8).modality.shape
        assert reading.seconds is None
        Image.new("LA", (5, 5), (255, 0)).save(tmp_path / "clear.png")
        assert not read_rgb_image(tmp_path / "clear.png", 8).any()
        Image.fromarray(np.full((5, 5), 3000, np.uint16)).save(tmp_path / "deep.png")
        (tmp_path / "bad.png").write_bytes((tmp_path / "x.png").read_bytes()[:50])
        for name, reason in (("deep.png", "no plain conversion"), ("bad.png", r"bad\.png cannot be read")):
            with pytest.raises(ValueError, match=reason):
                read_rgb_image(tmp_path / name, 8)
        with pytest.raises(FileNotFoundError, match="none"):
            read_rgb_image(tmp_path / "none.png", 8)

    def test_arrays(self, tmp_path):
        np.save(tmp_path / "v.npy", np.arange(4))
        np.save(tmp_path / "s.npy", np.ones((3, 2)))
        np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
        np.save(tmp_path / "t.npy", np.array(["a"]))
        assert ArrayReader()(tmp_path / "v.npy").values.dtype == np.float32
        assert ArrayReader("sequence", 2).modality.shape == (-1, 2)
        assert ArrayReader("sequence")(tmp_path / "s.npy").values.shape == (3, 2)
        for name, reason in (("s", "a vector of 1 dimensions"), ("o", "cannot be read"), ("t", "real numbers")):
            with pytest.raises(ValueError, match=rf"{name}\.npy.*{reason}"):
                ArrayReader()(tmp_path / f"{name}.npy")
        with pytest.raises(FileNotFoundError, match="none"):
            ArrayReader()(tmp_path / "none.npy")

    @pytest.mark.parametrize(
        "reader", [audio_reader(3.0), VideoReader(32, 2.0), ImageReader(16), ArrayReader("sequence", 3)]
    )
    def test_come_back_from_their_parameters(self, reader):
        assert reader_of(reader.parameters) == reader
        with pytest.raises(ValueError, match="prepare the data again"):
            reader_of({**reader.parameters, "version": 0})

    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (lambda: VideoReader(fps=0), "fps"),
            (lambda: VideoReader(size=0), "size"),
            (lambda: AudioReader(Spectrogram(), "float61"), "dtype"),
            (lambda: AudioReader(Spectrogram(), silence=-1), "silence"),
            (lambda: ArrayReader("text"), "kind"),
            (lambda: ArrayReader(width=0), "width"),
        ],
    )
    def test_parameters_are_checked(self, make, name):
        with pytest.raises(ValueError, match=f"`{name}`"):
            make()

    def test_a_missing_package_is_named(self, monkeypatch):
        check_installed()
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError, match=r"av is not installed.*bmlr\[media\]"):
            check_installed()


def test_fixtures_are_what_they_say(tmp_path):
    """The videos really have the codecs of the data sets."""
    with av.open(str(write_flv(tmp_path / "x.flv", 1.0))) as video:
        assert [video.format.name, *(s.codec_context.name for s in video.streams)] in (
            ["flv", "flv", "mp3"],
            ["flv", "flv", "mp3float"],
            ["flv", "mp3float", "flv"],
        )
    with av.open(str(write_mp4(tmp_path / "x.mp4", 1.0, channels=2, rate=48000))) as video:
        assert {s.codec_context.name for s in video.streams} == {"h264", "aac"}
        assert (video.streams.audio[0].rate, video.streams.audio[0].channels) == (48000, 2)
