"""Model and output: reach of gradients, missing modalities, checks, compilation."""

import copy
import math

import pytest
import torch
from torch import nn

import bmlr
from bmlr.model import Output
from zoo import FEATURE_DIMS, make_batch, make_encoder, make_model

FUSIONS = bmlr.fusion.available()


def reached(value, model):
    """Parameters of the model with a gradient other than zero."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(value.square().sum(), parameters, allow_unused=True, retain_graph=True)
    return {name for name, g in zip(names, gradients, strict=True) if g is not None and g.any()}


def parameters_of(model, prefix):
    return {name for name, _ in model.named_parameters() if name.startswith(prefix)}


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("fusion", FUSIONS)
class TestOutput:
    def test_whom_gradients_reach(self, fusion, modalities):
        model = make_model(modalities, fusion)
        output = model(make_batch(modalities).inputs)
        everything = parameters_of(model, "")
        assert reached(output.logits, model) == everything
        assert reached(output.decision_logits, model) == parameters_of(model, "fusion.")
        for name, logits in output.encoder_logits.items():
            assert reached(logits, model) == parameters_of(model, f"encoders.{name}.")
        for name, logits in output.unimodal_logits.items():
            gradient_names = reached(logits, model)
            assert parameters_of(model, f"encoders.{name}.") == {n for n in gradient_names if n.startswith("encoders.")}
            assert any(n.startswith("fusion.") for n in gradient_names)

    def test_values(self, fusion, modalities):
        """Detached or not, the numbers are the same."""
        model = make_model(modalities, fusion)
        output = model(make_batch(modalities).inputs)
        torch.testing.assert_close(output.logits, model.fusion(output.features), rtol=0, atol=0)
        torch.testing.assert_close(output.decision_logits, output.logits, rtol=0, atol=0)
        torch.testing.assert_close(output.subset_logits(model.modalities), output.logits, rtol=0, atol=0)
        for name, logits in output.unimodal_logits.items():
            torch.testing.assert_close(output.encoder_logits[name], logits, rtol=0, atol=0)

    def test_subset(self, fusion, modalities):
        model = make_model(modalities, fusion)
        output = model(make_batch(modalities).inputs)
        free = output.subset_logits(["audio"])
        frozen = output.subset_logits(["audio"], freeze_fusion=True)
        torch.testing.assert_close(free, model.fusion(output.features, keep=["audio"]), rtol=0, atol=0)
        torch.testing.assert_close(frozen, free, rtol=0, atol=0)
        audio = parameters_of(model, "encoders.audio.")
        assert reached(frozen, model) == audio
        assert audio < reached(free, model)

    def test_state_and_copies(self, fusion, modalities):
        model, other = make_model(modalities, fusion), make_model(modalities, fusion, seed=1)
        inputs = make_batch(modalities).inputs
        assert not torch.equal(model(inputs).logits, other(inputs).logits)
        other.load_state_dict(model.state_dict())
        for same in (other, copy.deepcopy(model)):
            torch.testing.assert_close(same(inputs).logits, model(inputs).logits, rtol=0, atol=0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_compiled(fusion):
    """Model and lazily computed outputs compile without graph breaks."""
    model = make_model(2, fusion)
    inputs = make_batch().inputs

    def everything(inputs):
        output = model(inputs)
        return output.logits, output.unimodal_logits, output.decision_logits, output.encoder_logits

    torch._dynamo.reset()
    output = torch.compile(model, backend="aot_eager", fullgraph=True)(inputs)
    assert isinstance(output, Output)
    torch.testing.assert_close(output.unimodal_logits, model(inputs).unimodal_logits)
    torch.testing.assert_close(torch.compile(everything, backend="eager", fullgraph=True)(inputs), everything(inputs))


def test_logits_are_computed_once():
    output = make_model()(make_batch().inputs)
    for name in ("logits", "unimodal_logits", "decision_logits", "encoder_logits", "detached_features"):
        assert getattr(output, name) is getattr(output, name)


def test_auxiliary_readout_watches_without_steering():
    model = make_model(unimodal="auxiliary")
    batch = make_batch()
    output = model(batch.inputs)
    losses = output.readout_losses(batch.targets)
    assert sorted(losses) == ["audio_readout", "video_readout"]
    for name in model.modalities:
        assert reached(losses[f"{name}_readout"], model) == parameters_of(model, f"fusion.auxiliary.{name}.")
        expected = nn.functional.cross_entropy(model.fusion.auxiliary[name](output.features[name]), batch.targets)
        torch.testing.assert_close(losses[f"{name}_readout"], expected)
    assert make_model()(batch.inputs).readout_losses(batch.targets) == {}


def test_replace_features():
    model = make_model()
    present = {"video": torch.tensor([True] * 4)}
    output = model(make_batch(batch_size=4).inputs, present)
    doubled = output.replace_features({u: 2 * z for u, z in output.features.items()})
    torch.testing.assert_close(doubled.logits, model.fusion({u: 2 * z for u, z in output.features.items()}))
    assert doubled.mask("video") is present["video"]
    assert doubled.batch_size == 4


class TestMissingModalities:
    present = {"video": torch.tensor([True, False, True, False])}

    def test_features(self):
        model = make_model()
        batch = make_batch(batch_size=4)
        output = model(batch.inputs, self.present)
        complete = model(batch.inputs)
        mask = self.present["video"]
        assert not output.features["video"][~mask].any()
        torch.testing.assert_close(output.features["video"][mask], complete.features["video"][mask])
        torch.testing.assert_close(output.features["audio"], complete.features["audio"], rtol=0, atol=0)
        assert output.mask("video") is mask
        assert output.mask("audio") is None
        assert complete.mask("video") is None

    def test_absent_inputs_never_enter_an_encoder(self):
        """Batch statistics and gradients ignore an absent input, even NaN."""
        model = make_model(batch_norm=True)
        batch = make_batch(batch_size=4)
        mask = self.present["video"]
        spoiled = {**batch.inputs, "video": batch.inputs["video"].masked_fill(~mask[:, None], math.nan)}
        output = model(spoiled, self.present)
        output.logits.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        alone = make_model(batch_norm=True)
        alone.encode("video", batch.inputs["video"][mask])
        for (_, actual), (_, expected) in zip(
            model.encoders["video"].named_buffers(), alone.encoders["video"].named_buffers(), strict=True
        ):
            torch.testing.assert_close(actual, expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_absent_in_the_whole_batch(self, dtype):
        model = make_model(dtype=dtype, batch_norm=True)
        batch = make_batch(batch_size=4, dtype=dtype)
        nobody = {"video": torch.zeros(4, dtype=torch.bool)}
        output = model(batch.inputs, nobody)
        assert output.features["video"].shape == (4, FEATURE_DIMS["video"])
        assert not output.features["video"].any()
        output.logits.sum().backward()
        assert output.logits.dtype == dtype

    def test_present_everywhere_is_as_not_given(self):
        model = make_model()
        batch = make_batch(batch_size=4)
        everybody = {"video": torch.ones(4, dtype=torch.bool)}
        torch.testing.assert_close(model(batch.inputs, everybody).logits, model(batch.inputs).logits, rtol=0, atol=0)


class TestFeatureDims:
    def test_from_attributes(self):
        class Timm(nn.Module):
            num_features = 11

        encoders = {
            "linear": nn.Linear(2, 3),
            "sequential": nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 5), nn.Tanh()),
            "timm": Timm(),
            "resnet": bmlr.encoders.resnet18(width=4),
        }
        dims = bmlr.MultimodalClassifier(encoders, 3).fusion.feature_dims
        assert dims == {"linear": 3, "sequential": 5, "timm": 11, "resnet": 32}

    def test_given(self):
        encoders = {"a": nn.Flatten(), "b": nn.Identity()}
        model = bmlr.MultimodalClassifier(encoders, 3, feature_dims={"a": 6, "b": 2})
        assert model({"a": torch.zeros(4, 2, 3), "b": torch.zeros(4, 2)}).logits.shape == (4, 3)

    def test_wrong_output_of_an_encoder(self):
        model = bmlr.MultimodalClassifier({"a": nn.Flatten(), "b": nn.Identity()}, 3, feature_dims={"a": 5, "b": 2})
        with pytest.raises(ValueError, match=r"Encoder 'a' should return features of shape \(B, 5\). Found \(4, 6\)"):
            model({"a": torch.zeros(4, 2, 3), "b": torch.zeros(4, 2)})
        with pytest.raises(ValueError, match=r"Encoder 'b' should return features of shape \(B, 2\)"):
            model({"a": torch.zeros(4, 5), "b": torch.zeros(4, 2, 2)})


class TestErrors:
    encoders = {"audio": make_encoder("audio"), "video": make_encoder("video")}
    own = bmlr.fusion.SumFusion(FEATURE_DIMS, 3)

    @pytest.mark.parametrize(
        ("encoders", "arguments", "message"),
        [
            ({}, {"task": 3}, "`encoders` should name at least 1 modality. Found none"),
            (list(encoders.values()), {"task": 3}, "`encoders` should be a dictionary .* Found list"),
            (encoders, {}, "`task` should be a number of classes"),
            (encoders, {"task": 1}, "`num_classes` should be an integer of at least 2"),
            (encoders, {"task": 3, "fusion": "Concat"}, r"`fusion` should be one of .* Did you mean 'concat'\?"),
            (encoders, {"task": 3, "feature_dims": {"audio": 7}}, "`feature_dims` .* 'video' is missing"),
            (
                {"a": nn.Flatten(), "b": nn.Linear(1, 1)},
                {"task": 3},
                "`feature_dims` .* 'a': Flatten has neither",
            ),
            (encoders, {"fusion": own}, r"`fusion` should have the modalities of `encoders`.* Found \['audio', 'text'"),
            (
                {**encoders, "text": make_encoder("text")},
                {"fusion": own, "task": 4},
                "`task` should have the width of `fusion`, 3 outputs",
            ),
            (encoders, {"fusion": own, "fusion_options": {"x": 1}}, "`fusion_options` should be left out"),
            (encoders, {"fusion": own, "feature_dims": {"audio": 7}}, "`feature_dims` should be left out"),
        ],
    )
    def test_construction(self, encoders, arguments, message):
        with pytest.raises(ValueError, match=message):
            bmlr.MultimodalClassifier(encoders, **arguments)

    @pytest.mark.parametrize("name", ["", "a.b", "fused", "keys", "training", "forward"])
    def test_names(self, name):
        with pytest.raises(ValueError, match="`encoders` should have names without a dot"):
            bmlr.MultimodalClassifier({name: nn.Linear(1, 1), "b": nn.Linear(1, 1)}, 3)

    @pytest.mark.parametrize(
        ("inputs", "present", "message"),
        [
            ([torch.zeros(2, 4), torch.zeros(2, 6)], None, "`inputs` should be a dictionary .* Found list"),
            (make_batch(batch_size=2).inputs, [True, True], "`present` should be a dictionary .* Found list"),
            (
                make_batch(batch_size=2).inputs,
                {"video": [True] * 2},
                r"`present\['video'\]` should be a boolean tensor",
            ),
            ({"audio": torch.zeros(2, 4)}, None, r"`inputs` should have the modalities .* Found \['audio'\]"),
            (
                {"audio": torch.zeros(2, 4), "video": torch.zeros(3, 6)},
                None,
                "`inputs` should all have the same batch size",
            ),
            (make_batch(batch_size=2).inputs, {"vido": torch.ones(2).bool()}, r"`present` .* Did you mean 'video'\?"),
            (
                make_batch(batch_size=2).inputs,
                {"video": torch.ones(2)},
                r"`present\['video'\]` should be a boolean mask",
            ),
        ],
    )
    def test_inputs(self, inputs, present, message):
        with pytest.raises(ValueError, match=message):
            make_model()(inputs, present)


def test_own_fusion_module():
    fusion = bmlr.fusion.FiLMFusion({"video": FEATURE_DIMS["video"], "audio": FEATURE_DIMS["audio"]}, 3)
    encoders = {"audio": make_encoder("audio"), "video": make_encoder("video")}
    model = bmlr.MultimodalClassifier(encoders, fusion=fusion)
    assert model.fusion is fusion
    assert model.task.num_outputs == 3
    assert model.modalities == ("audio", "video")
    assert fusion.conditioner == "video"
    assert model(make_batch().inputs).logits.shape == (8, 3)


class Returning(torch.nn.Module):
    """A linear layer whose features come in a container."""

    num_features = 8

    def __init__(self, wrap):
        super().__init__()
        self.layer, self.wrap = torch.nn.Linear(6, 8), wrap

    def forward(self, x):
        return self.wrap(self.layer(x))


@pytest.mark.parametrize(
    ("wrap", "found"),
    [
        (lambda z: (z[:, None], (z, z)), r"tuple of \(2, 1, 8\), tuple: .* such as output\[0\]\.mean\(1\)"),
        (lambda z: {"pooler_output": z}, r"dict of pooler_output \(2, 8\): .* such as output\['pooler_output'\]"),
        (lambda z: {"last_hidden_state": z[:, None]}, r"such as output\['last_hidden_state'\]\.mean\(1\)"),
        (lambda z: {"hidden": z}, "such as one of its entries"),
        (lambda z: None, "an object of type NoneType"),
        (lambda z: z[:1], r"Found \(1, 8\) for 2 samples"),
    ],
)
def test_an_encoder_that_returns_something_else_is_named_with_what_to_pick(wrap, found):
    model = bmlr.MultimodalClassifier({"audio": torch.nn.Linear(4, 8), "text": Returning(wrap)}, 3)
    with pytest.raises(ValueError, match=r"^Encoder 'text' should return features of shape \(B, 8\).*" + found):
        model({"audio": torch.randn(2, 4), "text": torch.randn(2, 6)})


def test_inputs_of_other_forms_are_named():
    model = bmlr.MultimodalClassifier({"audio": torch.nn.Linear(4, 8), "text": torch.nn.Linear(6, 8)}, 3)
    with pytest.raises(ValueError, match=r"a tensor, or a dictionary, tuple or list of tensors\. Found str"):
        model({"audio": torch.randn(2, 4), "text": "words"})
    tokens = {"input_ids": torch.zeros(4, 7), "attention_mask": torch.zeros(3, 7)}
    with pytest.raises(ValueError, match=r"`inputs\['text'\]` should have one first dimension\. Found \[4, 3\]"):
        model({"audio": torch.randn(4, 4), "text": tokens})
    tokens["attention_mask"] = torch.zeros(4, 7)
    with pytest.raises(ValueError, match=r"same batch size\. Found {'audio': 2, 'text': 4}"):
        model({"audio": torch.randn(2, 4), "text": tokens})


def test_batch_normalisation_of_one_value_names_the_modality():
    norm = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8))
    model = bmlr.MultimodalClassifier(
        {"audio": torch.nn.Linear(4, 8), "text": norm}, 3, feature_dims={"audio": 8, "text": 8}
    )
    with pytest.raises(ValueError, match="encoder of 'text' cannot train on a batch of 1"):
        model({"audio": torch.randn(1, 4), "text": torch.randn(1, 6)})


def test_an_exported_model_takes_any_batch_size():
    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, inputs):
            output = self.model(inputs)
            return output.logits, output.unimodal_logits

    model = Logits(bmlr.MultimodalClassifier({"audio": torch.nn.Linear(4, 8), "text": torch.nn.Linear(6, 8)}, 3)).eval()
    inputs = {"audio": torch.randn(5, 4), "text": torch.randn(5, 6)}
    batch = torch.export.Dim("batch")
    shapes = ({name: {0: batch} for name in inputs},)
    exported = torch.export.export(model, (inputs,), dynamic_shapes=shapes).module()
    for size in (2, 9):
        inputs = {"audio": torch.randn(size, 4), "text": torch.randn(size, 6)}
        torch.testing.assert_close(exported(inputs), model(inputs))
