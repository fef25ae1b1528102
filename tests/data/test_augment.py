"""Crops have the reference's distribution, pixels are PIL's, and a sample's result depends on its seed alone."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bmlr.data.transforms import _frames as _augment
from bmlr.data.transforms._frames import IMAGENET_MEAN, IMAGENET_STD, augment_frames, sample_crops

Image = pytest.importorskip("PIL.Image")

RAW = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}  # grey levels as they are
# (height, width), scale, ratio: squares, common videos, slim images for which most or all attempts fail, tiny ones.
SETTINGS = [
    ((256, 256), (0.08, 1.0), (3 / 4, 4 / 3)),
    ((360, 480), (0.08, 1.0), (3 / 4, 4 / 3)),
    ((1000, 1000), (0.3, 0.6), (0.5, 3.0)),
    ((90, 400), (0.08, 1.0), (3 / 4, 4 / 3)),
    ((400, 90), (0.5, 1.0), (3 / 4, 4 / 3)),
    ((7, 5), (0.08, 1.0), (3 / 4, 4 / 3)),
]


def reference_crop(height, width, scale, ratio, rng):
    """The reference's sampling, written out from its documentation: (top, left, height, width, which attempt)."""
    for attempt in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w, attempt
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w, 10


def numbers(crops):
    return {name: np.array([getattr(crop, name) for crop in crops]) for name in ("top", "left", "height", "width")}


def flips(crops):
    return np.array([crop.flipped for crop in crops])


def noise(*shape, seed=0):
    return torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def by_pil(frame, size, top, left, height, width, flipped):
    image = Image.fromarray(frame.numpy()).crop((left, top, left + width, top + height))
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    if flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)


class TestNumbers:
    @pytest.mark.parametrize("step", [1, 2**31, 2**32, 2**40])
    def test_uniform_and_independent_for_seeds_at_any_distance(self, step):
        """Fraction of the area, ratio, position and flip, of each seed and the next."""
        stats = pytest.importorskip("scipy.stats")
        count = 5000
        crops = sample_crops(torch.arange(count) * step, 10_000, 10_000, scale=(0.1, 0.5), ratio=(0.5, 2.0))
        columns = fractions(crops)
        for column in columns:
            assert stats.kstest(column, "uniform").pvalue > 1e-3
        draws = np.array([*columns, flips(crops)])
        pairs = np.concatenate([draws[:, :-1], draws[:, 1:]])
        assert np.abs(np.corrcoef(pairs) - np.eye(10)).max() < 5 / math.sqrt(count)

    @given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 63))
    @settings(deadline=None, max_examples=50)
    def test_every_bit_of_a_seed_counts(self, seed, bit):
        other = (seed ^ 1 << bit) if bit < 63 else seed + 2**63 if seed < 0 else seed - 2**63
        first, second = sample_crops(torch.tensor([seed, other]), 10_000, 10_000)
        assert first[:4] != second[:4]


def fractions(crops):
    """Area, ratio and position of crops of 10,000 × 10,000 pixels, each uniform in [0, 1] where all attempts fit."""
    found = numbers(crops)
    height, width = found["height"].astype(float), found["width"].astype(float)
    return [
        (height * width / 1e8 - 0.1) / 0.4,
        np.log2(width / height) / 2 + 0.5,
        (found["top"] + 0.5) / (10_001 - height),
        (found["left"] + 0.5) / (10_001 - width),
    ]


class TestDistribution:
    @pytest.mark.parametrize(("shape", "scale", "ratio"), SETTINGS)
    def test_crops_are_the_references(self, shape, scale, ratio):
        """Kolmogorov and Smirnov's test of every number of a crop and of functions of several at once."""
        stats = pytest.importorskip("scipy.stats")
        height, width = shape
        count = 8000
        rng = random.Random(1)  # noqa: S311
        expected = np.array([reference_crop(height, width, scale, ratio, rng)[:4] for _ in range(count)])
        found = numbers(sample_crops(torch.arange(count), height, width, scale=scale, ratio=ratio))

        def views(top, left, h, w):
            jitter = np.random.default_rng(0).uniform(0, 1e-9, count)
            return {
                "top": top, "left": left, "height": h, "width": w,
                "area": h * w, "ratio": w / h, "bottom": top + h, "right": left + w,
                "place": (top + 0.5) / (height - h + 1) - (left + 0.5) / (width - w + 1),
            } | {"mixed": 3 * top - 2 * left + h * w / 50 + jitter}  # fmt: skip

        ours, theirs = (
            views(**{k: found[n] for k, n in zip(("top", "left", "h", "w"), found, strict=True)}),
            views(*expected.T),
        )
        for name in ours:
            assert stats.ks_2samp(ours[name], theirs[name], method="asymp").pvalue > 1e-3, name

    def test_area_and_ratio_are_as_documented(self):
        """Where every attempt fits: area uniform, ratio log-uniform, place uniform, and independent of each other."""
        stats = pytest.importorskip("scipy.stats")
        columns = fractions(sample_crops(torch.arange(20_000), 10_000, 10_000, scale=(0.1, 0.5), ratio=(0.5, 2.0)))
        for column in columns:
            assert stats.kstest(column, "uniform").pvalue > 1e-3
        assert np.abs(np.corrcoef(columns) - np.eye(4)).max() < 4 / math.sqrt(20_000)

    def test_central_crop_is_as_frequent_as_the_references(self):
        rng, count = random.Random(2), 8000  # noqa: S311
        expected = np.mean([reference_crop(90, 400, (0.3, 1), (3 / 4, 4 / 3), rng)[4] == 10 for _ in range(count)])
        found = numbers(sample_crops(torch.arange(count), 90, 400, scale=(0.3, 1.0)))
        central = (found["top"] == 0) & (found["left"] == 140) & (found["height"] == 90) & (found["width"] == 120)
        assert 0.3 < expected <= 1
        assert central.mean() == pytest.approx(expected, abs=0.03)

    @pytest.mark.parametrize(
        ("shape", "expected"),
        [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10)), ((12, 11), (0, 0, 12, 11))],
    )
    def test_central_crop_where_nothing_fits(self, shape, expected):
        assert _augment._central_crop(*shape, (3 / 4, 4 / 3)) == expected
        if max(shape) > 100:
            found = numbers(sample_crops(torch.arange(50), *shape, scale=(0.9, 1.0)))
            assert {tuple(row) for row in np.stack(list(found.values()), 1).tolist()} == {expected}

    @given(st.integers(1, 40), st.integers(1, 40), st.floats(0.001, 1), st.integers(-(2**63), 2**63 - 200))
    @settings(deadline=None, max_examples=40)
    def test_crops_lie_inside(self, height, width, smallest, seed):
        found = numbers(sample_crops(seed + torch.arange(100), height, width, scale=(smallest, 1.0)))
        assert (found["top"] >= 0).all()
        assert (found["left"] >= 0).all()
        assert (found["height"] >= 1).all()
        assert (found["width"] >= 1).all()
        assert (found["top"] + found["height"] <= height).all()
        assert (found["left"] + found["width"] <= width).all()

    def test_flips(self):
        crops = sample_crops(torch.arange(20_000), 64, 64, flip=0.3)
        assert flips(crops).mean() == pytest.approx(0.3, abs=0.01)
        assert abs(np.corrcoef(flips(crops), numbers(crops)["top"])[0, 1]) < 4 / math.sqrt(20_000)
        assert not flips(sample_crops(torch.arange(1000), 64, 64, flip=0)).any()
        assert flips(sample_crops(torch.arange(1000), 64, 64, flip=1)).all()


class TestPixels:
    @pytest.mark.parametrize("size", [1, 24, 56, 130])
    @pytest.mark.parametrize("shape", [(48, 64), (64, 48), (100, 100), (7, 5)])
    def test_training_is_pils_crop_resize_and_flip(self, shape, size):
        """Within one grey level, the rounding of PIL's two passes and of its weights, on noise, the hardest image."""
        frames, seeds = noise(8, 2, *shape), torch.arange(8) + 100
        found = augment_frames(frames, size, seeds, train=True, **RAW)
        crops = sample_crops(seeds, *shape)
        assert 0 < flips(crops).sum() < 8
        for sample in range(8):
            box = {name: int(values[sample]) for name, values in numbers(crops).items()}
            for frame in range(2):
                expected = by_pil(frames[sample, frame], size, **box, flipped=crops[sample].flipped)
                assert float((found[sample, frame] - expected).abs().max()) <= 1.01

    @pytest.mark.parametrize("shape", [(48, 64), (64, 48), (32, 32), (300, 200), (3, 5)])
    def test_evaluation_is_pils_resize(self, shape):
        frames = noise(2, 3, *shape)
        found = augment_frames(frames, 32, None, train=False, **RAW)
        for sample in range(2):
            for frame in range(3):
                expected = by_pil(frames[sample, frame], 32, 0, 0, *shape, flipped=False)
                assert float((found[sample, frame] - expected).abs().max()) <= 1.01

    def test_errors_do_not_lean_to_one_side(self):
        """A wrong filter or a shift by half a pixel would hide below one level in smooth images, not in the mean."""
        frames = noise(4, 1, 90, 120)
        found = augment_frames(frames, 40, None, train=False, **RAW)
        expected = torch.stack([by_pil(x[0], 40, 0, 0, 90, 120, flipped=False) for x in frames])
        difference = found[:, 0] - expected
        assert abs(float(difference.mean())) < 0.02
        assert float(difference.std()) < 0.45  # two roundings to whole levels give √(1/12 + 1/12 · Σ w²) < 0.41

    def test_same_size_is_the_same_image_normalised(self):
        frames = noise(2, 1, 16, 16)
        found = augment_frames(frames, 16, None, train=False)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        expected = ((frames / 255 - mean) / std).permute(0, 1, 4, 2, 3)
        torch.testing.assert_close(found, expected)
        assert (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def test_whole_crop_without_flip_is_evaluation(self):
        frames = noise(3, 2, 20, 20)
        trained = augment_frames(
            frames, 12, torch.arange(3), train=True, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0
        )  # fmt: skip
        assert torch.equal(trained, augment_frames(frames, 12, None, train=False))
        mirrored = augment_frames(frames, 12, torch.arange(3), train=True, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1)
        torch.testing.assert_close(mirrored, trained.flip(-1), rtol=0, atol=1e-5)

    def test_grey_stays_grey_and_in_range(self):
        frames = torch.full((4, 1, 33, 47, 3), 200, dtype=torch.uint8)
        found = augment_frames(frames, 20, torch.arange(4), train=True, **RAW)
        torch.testing.assert_close(found, torch.full_like(found, 200), rtol=1e-5, atol=0)
        extremes = augment_frames(noise(4, 1, 33, 47) // 128 * 255, 20, torch.arange(4), train=True, **RAW)
        assert float(extremes.min()) >= 0
        assert float(extremes.max()) <= 255.001

    def test_form(self):
        found = augment_frames(noise(2, 3, 20, 30), 8, torch.tensor([1, 2]), train=True)
        assert found.shape == (2, 3, 3, 8, 8)
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        assert augment_frames(noise(0, 3, 20, 30), 8, torch.zeros(0, dtype=torch.int64), train=True).shape[0] == 0


class TestSeeds:
    @given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=6), st.integers(1, 30))
    @settings(deadline=None, max_examples=15)
    def test_a_sample_does_not_depend_on_its_batch(self, seeds, size):
        frames, seeds = noise(len(seeds), 2, 21, 17), torch.tensor(seeds)
        together = augment_frames(frames, size, seeds, train=True)
        order = torch.randperm(len(seeds))
        assert torch.equal(augment_frames(frames[order], size, seeds[order], train=True), together[order])
        for sample in range(len(seeds)):
            alone = augment_frames(frames[sample : sample + 1], size, seeds[sample : sample + 1], train=True)
            assert torch.equal(alone[0], together[sample])

    def test_frames_share_the_crop_and_do_not_depend_on_their_number(self):
        frame = noise(2, 1, 30, 40)
        seeds = torch.tensor([3, 4])
        one = augment_frames(frame, 16, seeds, train=True)
        three = augment_frames(frame.expand(2, 3, 30, 40, 3), 16, seeds, train=True)
        assert torch.equal(three, one.expand_as(three))

    def test_same_seed_same_result_another_seed_another(self):
        frames, seeds = noise(2, 1, 30, 40), torch.tensor([3, 4])
        first = augment_frames(frames, 16, seeds, train=True)
        torch.manual_seed(99)  # of no influence
        assert torch.equal(augment_frames(frames, 16, seeds, train=True), first)
        assert not torch.equal(augment_frames(frames, 16, seeds + 2, train=True), first)

    def test_other_layouts_in_memory(self):
        frames, seeds = noise(2, 3, 20, 30), torch.tensor([3, 4])
        strided = frames.permute(4, 0, 1, 3, 2).contiguous().permute(1, 2, 4, 3, 0)
        assert not strided.is_contiguous()
        assert torch.equal(augment_frames(strided, 8, seeds, train=True), augment_frames(frames, 8, seeds, train=True))

    def test_inputs_are_left_alone(self):
        frames, seeds = noise(2, 1, 20, 30), torch.tensor([3, 4])
        before = frames.clone(), seeds.clone()
        augment_frames(frames, 8, seeds, train=True)
        assert torch.equal(frames, before[0])
        assert torch.equal(seeds, before[1])

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no GPU.")
    @pytest.mark.parametrize("seeds_on", ["cpu", "cuda"])
    def test_a_gpu_gives_the_same(self, seeds_on):
        frames, seeds = noise(8, 2, 90, 120), torch.arange(8)
        found = augment_frames(frames.cuda(), 56, seeds.to(seeds_on), train=True)
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), augment_frames(frames, 56, seeds, train=True), rtol=0, atol=1e-5)


class TestErrors:
    FRAMES = torch.zeros(2, 1, 8, 8, 3, dtype=torch.uint8)
    SEEDS = torch.tensor([0, 1])

    @pytest.mark.parametrize(
        ("frames", "message"),
        [
            (FRAMES.double(), r"`frames` should be uint8.* torch\.float64"),
            (FRAMES[0], r"Found \(1, 8, 8, 3\)"),
            (FRAMES.permute(0, 1, 4, 2, 3), "`mean` should hold 8 finite numbers"),
            (FRAMES[:, :0], r"Found \(2, 0, 8, 8, 3\)"),
            (FRAMES[:, :, :0], r"Found \(2, 1, 0, 8, 3\)"),
        ],
    )
    def test_frames(self, frames, message):
        with pytest.raises(ValueError, match=message):
            augment_frames(frames, 4, self.SEEDS, train=True)

    @pytest.mark.parametrize(
        ("seeds", "message"),
        [
            (None, "None"),
            (torch.tensor([0]), r"shape \(1,\)"),
            (torch.tensor([[0, 1]]), r"shape \(1, 2\)"),
            (torch.tensor([0, 1], dtype=torch.int32), r"torch\.int32"),
            (torch.tensor([0.0, 1.0]), r"torch\.float32"),
        ],
    )
    def test_seeds(self, seeds, message):
        with pytest.raises(ValueError, match=f"`seeds` .*{message}"):
            augment_frames(self.FRAMES, 4, seeds, train=True)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"size": 0},
            {"size": 4.0},
            {"scale": (0.0, 1.0)},
            {"scale": (0.5, 0.2)},
            {"scale": (0.5, 1.1)},
            {"scale": (float("nan"), 1.0)},
            {"ratio": (0.0, 1.0)},
            {"ratio": (2.0, 1.0)},
            {"ratio": (1.0, float("inf"))},
            {"flip": 1.1},
            {"flip": float("nan")},
            {"mean": (0.5, 0.5)},
            {"mean": (0.5, 0.5, float("nan"))},
            {"std": (1.0, 1.0, 0.0)},
            {"std": (1.0, 1.0)},
        ],
    )
    def test_parameters(self, wrong):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            augment_frames(self.FRAMES, seeds=self.SEEDS, train=True, **{"size": 4, **wrong})
