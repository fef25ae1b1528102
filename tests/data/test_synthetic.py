"""Synthetic modalities: the computed accuracies are the true ones, and nothing but information makes a difference."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from restored import assert_read_without_data

import bmlr
import bmlr.data
from bmlr.config import ModelOptions, build_model
from bmlr.data.sets._gaussians import separation_of, simplex, simplex_accuracy
from bmlr.data.sets._synthetic import Synthetic
from bmlr.methods import EpochPlan, Joint
from bmlr.training.loader import planned_requests

PARTS = ("train", "val", "test")


def whole(split):
    return split.batch(range(len(split)))


def accuracy(scores, targets):
    return float((scores.argmax(1) == targets).double().mean())


def three_errors(rate, count):
    return 3 * math.sqrt(rate * (1 - rate) / count)


class TestBayesAccuracy:
    @given(st.floats(0, 10), st.integers(2, 1000))
    @settings(deadline=None, max_examples=25)
    def test_integral_is_scipys(self, separation, classes):
        integrate, stats = pytest.importorskip("scipy.integrate"), pytest.importorskip("scipy.stats")
        expected, _ = integrate.quad(
            lambda t: stats.norm.pdf(t) * stats.norm.cdf(t + separation / math.sqrt(2)) ** (classes - 1), -12, 12,
            limit=500, epsabs=1e-11, epsrel=1e-11,
        )  # fmt: skip
        assert simplex_accuracy(separation, classes) == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize(("separation", "classes"), [(0.5, 2), (2.0, 2), (1.0, 3), (2.5, 10), (4.0, 30)])
    def test_nearest_of_equidistant_means_by_monte_carlo(self, separation, classes):
        """No posterior, no quadrature: points around means that are ``separation`` apart, given to the nearest one."""
        rng, count = np.random.default_rng(1), 40_000
        means = separation * simplex(classes)
        targets = rng.integers(classes, size=count)
        points = means[targets] + rng.standard_normal((count, classes - 1))
        distances = ((points[:, None] - means) ** 2).sum(-1)
        expected = simplex_accuracy(separation, classes)
        assert np.mean(distances.argmin(1) == targets) == pytest.approx(expected, abs=three_errors(expected, count))

    def test_limits(self):
        for classes in (2, 3, 50):
            assert simplex_accuracy(0, classes) == pytest.approx(1 / classes, abs=1e-12)
            assert simplex_accuracy(20, classes) == pytest.approx(1, abs=1e-12)
            assert separation_of(1 / classes, classes) == 0

    @given(st.integers(2, 200), st.floats(0.001, 0.999))
    @settings(deadline=None, max_examples=20)
    def test_separation_inverts_accuracy(self, classes, share):
        wanted = 1 / classes + share * (1 - 1 / classes)
        assert simplex_accuracy(separation_of(wanted, classes), classes) == pytest.approx(wanted, abs=1e-9)

    @pytest.mark.parametrize("classes", [2, 3, 4, 17])
    def test_simplex(self, classes):
        corners = simplex(classes)
        assert corners.shape == (classes, classes - 1)
        np.testing.assert_allclose(corners.sum(0), 0, atol=1e-12)
        for first, second in itertools.combinations(corners, 2):
            assert np.linalg.norm(first - second) == pytest.approx(1)

    def test_two_classes_by_hand(self):
        """Two classes s apart: Φ(s / 2); two modalities: Φ(√(s₁² + s₂²) / 2)."""
        stats = pytest.importorskip("scipy.stats")
        data = Synthetic(accuracy={"a": stats.norm.cdf(0.3), "b": stats.norm.cdf(0.4)}, num_classes=2)
        assert data.separation == pytest.approx({"a": 0.6, "b": 0.8})
        assert data.bayes_accuracy["fused"] == pytest.approx(stats.norm.cdf(0.5))

    def test_a_modality_at_chance_adds_nothing(self):
        data = Synthetic(accuracy={"a": 0.7, "b": 0.25}, num_classes=4)
        assert data.bayes_accuracy == pytest.approx({"a": 0.7, "b": 0.25, "fused": 0.7})
        assert data.bayes_of([]) == pytest.approx(0.25)

    def test_missing_modalities_weigh_the_subsets(self):
        data = Synthetic(accuracy={"a": 0.7, "b": 0.5, "c": 0.4}, missing={"a": 0.5, "b": 0.2, "c": 0.4})
        chance = {"a": 0.5, "b": 0.2, "c": 0.4}
        total, expected = 0.0, 0.0
        for number in (1, 2, 3):
            for there in itertools.combinations("abc", number):
                probability = math.prod(1 - chance[u] if u in there else chance[u] for u in "abc")
                total += probability
                expected += probability * data.bayes_of(there)
        assert total == pytest.approx(1 - 0.5 * 0.2 * 0.4)
        assert data.bayes_accuracy["fused"] == pytest.approx(expected / total)
        assert data.bayes_accuracy["a"] == 0.7


CASES = [
    {},
    {"difficulty": {"audio": 20, "video": 1}, "dimensions": 9},
    {"accuracy": {"audio": 0.6, "text": 0.9, "video": 0.5}, "num_classes": 2, "dimensions": 2},
    {"accuracy": {"audio": 0.8, "video": 0.3}, "num_classes": 5, "dimensions": 64},
    {"accuracy": {"a": 0.5, "b": 0.4, "c": 0.6}, "num_classes": 4, "missing": {"a": 0.5, "b": 0.3}},
    {"missing": {"audio": 0.4, "video": 0.6}},
]


class TestPosterior:
    @pytest.mark.parametrize("parameters", CASES)
    def test_reaches_the_bayes_accuracy(self, parameters):
        data = Synthetic(**parameters, samples={"test": 20_000})
        batch = whole(data.split("test"))
        posterior = data.posterior(batch.inputs, batch.present)
        for name, bayes in data.bayes_accuracy.items():
            there = (batch.present or {}).get(name, torch.ones(len(batch), dtype=torch.bool))
            found = accuracy(posterior[name][there], batch.targets[there])
            assert found == pytest.approx(bayes, abs=three_errors(bayes, int(there.sum()))), name

    @pytest.mark.parametrize("parameters", CASES)
    def test_is_calibrated(self, parameters):
        """The mean probability of the best class is the accuracy, and every class is probable as often as it is."""
        data = Synthetic(**parameters, samples={"val": 10_000})
        batch = whole(data.split("val"))
        fused = data.posterior(batch.inputs, batch.present)["fused"]
        assert fused.dtype == torch.float64
        torch.testing.assert_close(fused.sum(1), torch.ones(len(fused), dtype=torch.float64))
        bayes = data.bayes_accuracy["fused"]
        assert float(fused.max(1).values.mean()) == pytest.approx(bayes, abs=three_errors(bayes, len(fused)))
        frequency = torch.bincount(batch.targets, minlength=data.num_classes) / len(fused)
        np.testing.assert_allclose(fused.mean(0), frequency, atol=three_errors(1 / data.num_classes, len(fused)))

    def test_is_that_of_bayes_rule_on_the_latents(self):
        """A literal Bayes rule with densities of the latents drawn anew from the same streams, before the map."""
        data = Synthetic(accuracy={"a": 0.7, "b": 0.5}, num_classes=4, difficulty={"a": 4, "b": 0}, dimensions=6)
        split = data.split("test")
        likelihood = np.ones((len(split), 4))
        for name in ("a", "b"):
            latents = data._rng("latents", name, split="test").standard_normal((len(split), 6))
            means = np.zeros((4, 6))
            means[:, :3] = data.separation[name] * simplex(4)
            latents += means[split.targets.numpy()]
            likelihood *= np.exp(-((latents[:, None] - means) ** 2).sum(-1) / 2)
        expected = likelihood / likelihood.sum(1, keepdims=True)
        np.testing.assert_allclose(data.posterior(whole(split).inputs)["fused"], expected, atol=1e-4)

    def test_without_layers_a_linear_classifier_is_the_best(self):
        data = Synthetic(accuracy={"a": 0.7, "b": 0.5}, num_classes=3, difficulty={"a": 0, "b": 6}, dimensions=5)
        train, test = whole(data.split("train")), whole(data.split("test"))
        for name, reaches in (("a", True), ("b", False)):
            means = torch.stack([train.inputs[name][train.targets == label].mean(0) for label in range(3)])
            found = accuracy(-torch.cdist(test.inputs[name], means), test.targets)
            assert (found > data.accuracy[name] - three_errors(data.accuracy[name], 2000) - 0.01) is reaches, name

    def test_some_modalities_only(self):
        data = Synthetic()
        inputs = whole(data.split("val")).inputs
        posterior = data.posterior({"video": inputs["video"]})
        assert set(posterior) == {"video", "fused"}
        torch.testing.assert_close(posterior["video"], posterior["fused"])

    def test_absent_gives_the_prior(self):
        data = Synthetic(accuracy={"a": 0.7, "b": 0.5}, num_classes=4, missing={"b": 0.5})
        batch = whole(data.split("val"))
        posterior = data.posterior(batch.inputs, batch.present)
        absent = ~batch.present["b"]
        assert absent.any()
        assert not batch.inputs["b"][absent].any()
        assert (posterior["b"][absent] == 0.25).all()
        torch.testing.assert_close(posterior["fused"][absent], posterior["a"][absent])

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"adio": torch.zeros(2, 16)}, "Did you mean 'audio'"),
            ({}, "should have shape"),
            ({"audio": torch.zeros(2, 15)}, r"\(2, 15\)"),
            ({"audio": torch.zeros(16)}, r"\(16,\)"),
            ({"audio": torch.zeros(2, 16), "video": torch.zeros(3, 16)}, r"\(3, 16\)"),
        ],
    )
    def test_bad_inputs(self, inputs, message):
        with pytest.raises(ValueError, match=message):
            Synthetic().posterior(inputs)

    def test_bad_mask(self):
        with pytest.raises(ValueError, match="present"):
            Synthetic().posterior({"audio": torch.zeros(2, 16)}, {"audio": torch.ones(3, dtype=torch.bool)})


class TestMap:
    @given(st.integers(0, 20), st.integers(2, 40), st.integers(0, 2**63))
    @settings(deadline=None, max_examples=20)
    def test_can_be_undone(self, layers, dimensions, seed):
        data = Synthetic(
            accuracy={"a": 0.6, "b": 0.6}, num_classes=2, dimensions=dimensions, difficulty={"a": layers}, seed=seed
        )
        latents = np.random.default_rng(0).standard_normal((200, dimensions))
        mapped = data._maps["a"](latents)
        np.testing.assert_allclose(data._maps["a"].inverse(mapped), latents, atol=1e-9)
        np.testing.assert_allclose(
            data._maps["a"].inverse(mapped.astype(np.float32).astype(np.float64)), latents, atol=5e-3
        )

    def test_more_layers_bend_more(self):
        """The share of the inputs that no linear function of the latents explains grows with the layers."""
        latents = np.random.default_rng(0).standard_normal((2000, 16))
        latents -= latents.mean(0)
        unexplained = []
        for layers in (0, 1, 3, 6):
            mapped = Synthetic(difficulty={"audio": layers})._maps["audio"](latents)
            mapped = mapped - mapped.mean(0)
            residual = np.linalg.lstsq(latents, mapped, rcond=None)[1].sum()
            unexplained.append(residual / (mapped**2).sum())
        assert unexplained[0] < 1e-20
        assert all(first < second for first, second in itertools.pairwise(unexplained))

    def test_inputs_stay_near_unit_variance(self):
        inputs = whole(Synthetic().split("train")).inputs
        assert all(0.2 < float(x.var(0).min()) < float(x.var(0).max()) < 2 for x in inputs.values())


class TestParts:
    def test_forms(self):
        data = bmlr.data.create("synthetic", samples={"train": 30, "val": 20})
        assert isinstance(data, bmlr.data.Synthetic)
        assert {name: len(data.split(name)) for name in PARTS} == {"train": 30, "val": 20, "test": 2000}
        batch = data.split("train").batch([3, 1])
        for name, modality in data.modalities.items():
            assert modality.kind == "vector"
            assert batch.inputs[name].shape == (2, *modality.shape)
            assert batch.inputs[name].dtype == torch.float32
        assert batch.present is None
        assert data.split("train").groups is None
        assert data.protocol == "clean"
        assert len(data.classes) == 10

    def test_every_class_is_as_frequent(self):
        targets = Synthetic(samples={"train": 20_000}).split("train").targets
        frequency = torch.bincount(targets, minlength=10) / 20_000
        assert float((frequency - 0.1).abs().max()) < three_errors(0.1, 20_000)

    def test_same_parameters_same_samples_another_seed_others(self):
        first, same, other = Synthetic(), Synthetic(), Synthetic(seed=1)
        for name in PARTS:
            assert torch.equal(first.split(name).targets, same.split(name).targets)
            assert not torch.equal(first.split(name).targets, other.split(name).targets)
            for modality, values in whole(first.split(name)).inputs.items():
                assert torch.equal(values, whole(same.split(name)).inputs[modality])
                assert not torch.equal(values, whole(other.split(name)).inputs[modality])

    def test_splits_and_modalities_are_independent(self):
        data = Synthetic(accuracy={"a": 0.1, "b": 0.1}, difficulty={}, samples=dict.fromkeys(PARTS, 2000))
        drawn = [whole(data.split(name)).inputs[u].flatten().numpy() for name in PARTS for u in ("a", "b")]
        correlations = np.corrcoef(np.stack(drawn)) - np.eye(6)
        assert np.abs(correlations).max() < 4 / math.sqrt(32_000)

    def test_order_of_the_modalities_does_not_matter(self):
        parameters = {"difficulty": {"a": 2, "b": 1}, "missing": {"a": 0.3, "b": 0.2}}
        first = Synthetic(accuracy={"a": 0.6, "b": 0.4}, **parameters)
        second = Synthetic(accuracy={"b": 0.4, "a": 0.6}, **parameters)
        assert first.bayes_accuracy == pytest.approx(second.bayes_accuracy, abs=1e-12)
        one, two = whole(first.split("train")), whole(second.split("train"))
        assert torch.equal(one.targets, two.targets)
        for name in ("a", "b"):
            assert torch.equal(one.inputs[name], two.inputs[name])
            assert torch.equal(one.present[name], two.present[name])

    def test_a_modality_does_not_depend_on_the_others(self):
        alone = Synthetic(accuracy={"a": 0.6, "b": 0.4}, difficulty={"a": 3})
        beside = Synthetic(accuracy={"c": 0.9, "a": 0.6, "b": 0.7}, difficulty={"a": 3, "b": 5})
        assert torch.equal(whole(alone.split("val")).inputs["a"], whole(beside.split("val")).inputs["a"])

    def test_fewer_samples_are_the_first(self):
        few = Synthetic(samples={"train": 50}, missing={"video": 0.5}).split("train")
        many = Synthetic(samples={"train": 500}, missing={"video": 0.5}).split("train").batch(range(50))
        assert torch.equal(whole(few).targets, many.targets)
        assert torch.equal(whole(few).present["video"], many.present["video"])
        torch.testing.assert_close(whole(few).inputs["video"], many.inputs["video"], rtol=0, atol=1e-5)

    def test_missing_has_the_stated_share_and_never_all(self):
        batch = whole(Synthetic(missing={"video": 0.3}, samples={"train": 10_000}).split("train"))
        assert set(batch.present) == {"video"}
        assert float((~batch.present["video"]).double().mean()) == pytest.approx(0.3, abs=three_errors(0.3, 10_000))
        both = whole(Synthetic(missing={"audio": 0.5, "video": 0.8}, samples={"train": 10_000}).split("train"))
        assert (both.present["audio"] | both.present["video"]).all()
        expected = 0.5 * 0.2 / (1 - 0.5 * 0.8)  # audio lacks, given that not both do
        assert float((~both.present["audio"]).double().mean()) == pytest.approx(
            expected, abs=three_errors(expected, 10_000)
        )

    def test_label_noise_is_in_training_labels_alone_and_has_the_stated_share(self):
        parameters = {"num_classes": 4, "samples": {"train": 20_000}}
        clean, noisy = Synthetic(**parameters), Synthetic(**parameters, label_noise=0.3)
        for name in ("val", "test"):
            assert torch.equal(clean.split(name).targets, noisy.split(name).targets)
        true, given = whole(clean.split("train")), whole(noisy.split("train"))
        assert torch.equal(true.inputs["video"], given.inputs["video"])
        steps = torch.bincount((given.targets - true.targets) % 4, minlength=4) / 20_000
        for share, expected in zip(steps.tolist(), (0.7, 0.1, 0.1, 0.1), strict=True):
            assert share == pytest.approx(expected, abs=three_errors(expected, 20_000))
        assert noisy.bayes_accuracy == clean.bayes_accuracy
        few = Synthetic(num_classes=4, samples={"train": 50}, label_noise=0.3).split("train")
        assert torch.equal(few.targets, given.targets[:50])

    def test_default_difficulty_is_by_order(self):
        assert Synthetic().difficulty == {"audio": 0, "video": 6}
        assert Synthetic(accuracy={"x": 0.5, "y": 0.5, "z": 0.5}).difficulty == {"x": 0, "y": 6, "z": 6}
        assert Synthetic(difficulty={}).difficulty == {"audio": 0, "video": 0}

    def test_parameters_given_make_it_again(self):
        data = Synthetic(accuracy={"a": 0.6, "b": 0.4}, missing={"b": 0.2}, samples={"val": 7}, seed=3)
        again = Synthetic(**data.hparams)
        assert again.hparams == data.hparams
        assert torch.equal(whole(again.split("val")).inputs["b"], whole(data.split("val")).inputs["b"])
        assert Synthetic().samples == {"train": 4000, "val": 1000, "test": 2000}  # the default was not written to


class TestTraining:
    @pytest.mark.parametrize("missing", [{}, {"video": 0.5}])
    def test_gets_above_chance_and_never_beyond_bayes(self, missing):
        torch.manual_seed(0)
        data = Synthetic(
            accuracy={"audio": 0.7, "video": 0.6}, num_classes=4, dimensions=8, difficulty={"video": 2}, missing=missing
        )
        model, method = build_model(data, ModelOptions(width=8)), Joint()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        split = data.split("train")
        for epoch in range(4):
            for request in planned_requests(EpochPlan(), len(split), 64, seed=0, epoch=epoch):
                optimizer.zero_grad()
                method.compute_losses(model, split.batch(request.indices)).total.backward()
                optimizer.step()
        batch = whole(data.split("test"))
        with torch.no_grad():
            output = model.eval()(batch.inputs, batch.present)
        for name, logits in {"fused": output.logits, **output.unimodal_logits}.items():
            there = (batch.present or {}).get(name, torch.ones(len(batch), dtype=torch.bool))
            found, bayes = accuracy(logits[there], batch.targets[there]), data.bayes_accuracy[name]
            assert 0.25 + three_errors(0.25, int(there.sum())) < found, name
            assert found < bayes + three_errors(bayes, int(there.sum())), name


class TestErrors:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"accuracy": {"audio": 0.9}}, "2 to 12 modalities. Found 1"),
            ({"accuracy": {f"m{n}": 0.9 for n in range(13)}}, "Found 13"),
            ({"accuracy": {"audio": 0.9, "video": 1.0}}, r"accuracy\['video'\]"),
            ({"accuracy": {"audio": 0.09, "video": 0.9}}, r"accuracy\['audio'\].* \[0.1, 1\)"),
            ({"accuracy": {"audio": float("nan"), "video": 0.9}}, r"accuracy\['audio'\]"),
            ({"accuracy": {"audio": 0.9, "fused": 0.9}}, "none 'fused'"),
            ({"accuracy": {"audio": 0.9, "a.b": 0.9}}, r"Found 'a\.b'"),
            ({"difficulty": {"vidoe": 1}}, "Did you mean 'video'"),
            ({"difficulty": {"video": -1}}, r"difficulty\['video'\]"),
            ({"difficulty": {"video": 1.5}}, r"difficulty\['video'\]"),
            ({"difficulty": {"video": 21}}, "at most 20"),
            ({"num_classes": 1}, "num_classes"),
            ({"dimensions": 8}, "`dimensions` should be an integer of at least 9"),
            ({"num_classes": 2, "dimensions": 1}, "at least 2"),
            ({"samples": {"tset": 5}}, "Did you mean 'test'"),
            ({"samples": {"test": 0}}, r"samples\['test'\]"),
            ({"missing": {"text": 0.1}}, "missing"),
            ({"missing": {"audio": 1.0}}, r"missing\['audio'\]"),
            ({"missing": {"audio": float("nan")}}, r"missing\['audio'\]"),
            ({"label_noise": -0.1}, "label_noise"),
            ({"label_noise": float("nan")}, "label_noise"),
            ({"label_noise": 0.75, "num_classes": 4}, r"\[0, 0.75\), so that of 4 classes"),
            ({"seed": -1}, "seed"),
        ],
    )
    def test_parameter_out_of_range(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            Synthetic(**wrong)

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="Did you mean 'train'"):
            Synthetic().split("trian")
        with pytest.raises(ValueError, match="Did you mean 'audio'"):
            Synthetic().bayes_of(["adio"])


class TestLoadFiles:
    @pytest.fixture
    def files(self, tmp_path):
        batch = Synthetic().split("test").batch([4])
        for name, values in batch.inputs.items():
            np.save(tmp_path / f"{name}.npy", values[0].numpy())
        return {name: tmp_path / f"{name}.npy" for name in batch.inputs}

    def test_as_the_splits(self, files):
        found, batch = Synthetic().load_files(files), Synthetic().split("test").batch([4])
        for name, values in batch.inputs.items():
            assert torch.equal(found[name], values)
            assert found[name].dtype == torch.float32
        assert_read_without_data(Synthetic(), files)

    def test_integers_and_doubles(self, files):
        np.save(files["audio"], np.arange(16))
        np.save(files["video"], np.arange(16) / 8)
        found = Synthetic().load_files(files)
        assert found["audio"].tolist() == [list(range(16))]
        assert found["video"].dtype == torch.float32

    def test_missing_or_unknown_modality(self, files):
        for wrong in ({"audio": files["audio"]}, {**files, "text": files["audio"]}):
            with pytest.raises(ValueError, match="audio"):
                Synthetic().load_files(wrong)

    def test_a_modality_that_samples_may_lack_may_be_left_out(self, files):
        data = Synthetic(missing={"video": 0.3})
        found = data.load_files({"audio": files["audio"]})
        assert not found["video"].any()
        assert found["video"].shape == found["audio"].shape == (1, 16)
        with pytest.raises(ValueError, match="should name a file of audio: no sample of the training data lacks it"):
            data.load_files({"video": files["video"]})
        with pytest.raises(ValueError, match="should name files of audio, video. Found none"):
            data.load_files({})

    def test_missing_file(self, files, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            Synthetic().load_files({**files, "audio": tmp_path / "nowhere.npy"})

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros(15), r"shape \(15,\)"),
            (np.zeros((1, 16)), r"shape \(1, 16\)"),
            (np.zeros(16, dtype=complex), "complex"),
            (np.array(["a"] * 16), "real numbers"),
            (np.full(16, np.nan), "NaN, infinity"),
            (np.full(16, -np.inf), "NaN, infinity"),
            (np.full(16, 1e300), "NaN, infinity"),  # too large for float32
        ],
    )
    def test_wrong_content(self, files, array, message):
        np.save(files["audio"], array)
        with pytest.raises(ValueError, match=rf"audio\.npy .*{message}"):
            Synthetic().load_files(files)

    def test_nothing_is_executed(self, files):
        np.save(files["audio"], np.array([print] * 16, dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match=r"audio\.npy cannot be read"):
            Synthetic().load_files(files)

    @pytest.mark.parametrize("damage", ["empty", "text", "cut", "boastful", "archive"])
    def test_damaged_file_is_named(self, files, damage):
        path = files["audio"]
        if damage == "archive":
            with path.open("wb") as file:
                np.savez(file, x=np.zeros(16))
        elif damage == "boastful":
            header = {"descr": "<f4", "fortran_order": False, "shape": (16, 10**12)}
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
        else:
            content = path.read_bytes()
            path.write_bytes({"empty": b"", "text": b"0 1 2", "cut": content[:-4]}[damage])
        with pytest.raises(ValueError, match=r"audio\.npy"):
            Synthetic().load_files(files)
