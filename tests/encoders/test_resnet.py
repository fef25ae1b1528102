"""ResNet-18: torchvision's names and numbers, frames, weights."""

import pytest
import torch

from bmlr.encoders import ResNet, resnet18


def batch_norm(name):
    return {f"{name}.{split}" for split in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}


def torchvision_names():
    """The state dict keys of torchvision's resnet18, without its classifier."""
    names = {"conv1.weight"} | batch_norm("bn1")
    for stage in range(1, 5):
        for block in range(2):
            prefix = f"layer{stage}.{block}"
            names |= {f"{prefix}.conv1.weight", f"{prefix}.conv2.weight"}
            names |= batch_norm(f"{prefix}.bn1") | batch_norm(f"{prefix}.bn2")
            if stage > 1 and block == 0:
                names |= {f"{prefix}.downsample.0.weight"} | batch_norm(f"{prefix}.downsample.1")
    return names


def test_names_and_number_of_parameters():
    encoder = resnet18()
    assert set(encoder.state_dict()) == torchvision_names()
    assert sum(p.numel() for p in encoder.parameters()) == 11_176_512
    assert encoder.conv1.weight.shape == (64, 3, 7, 7)
    assert encoder.layer4[0].downsample[0].weight.shape == (512, 256, 1, 1)
    assert encoder.num_features == 512


def test_one_channel_stem():
    encoder = resnet18(in_channels=1)
    assert sum(p.numel() for p in encoder.parameters()) == 11_176_512 - 64 * 2 * 49


@pytest.mark.parametrize(("stem", "resolution"), [("imagenet", 2), ("small", 8)])
def test_resolution(stem, resolution):
    """Strides: the ImageNet stem divides by 4 before the stages divide by 8."""
    encoder = resnet18(width=4, stem=stem)
    seen = []
    encoder.layer4.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    assert encoder(torch.randn(2, 3, 64, 64)).shape == (2, 32)
    assert seen == [(2, 32, resolution, resolution)]


def test_frames_are_averaged():
    encoder = resnet18(width=4).eval()
    frames = torch.randn(2, 3, 3, 32, 32)
    expected = torch.stack([encoder(frames[:, t]) for t in range(3)]).mean(0)
    torch.testing.assert_close(encoder(frames), expected, rtol=1e-5, atol=1e-5)
    one_by_one = torch.cat([encoder(frames[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(encoder(frames), one_by_one, rtol=1e-5, atol=1e-5)


def test_odd_sizes():
    """The paper's spectrogram, 257 × 188."""
    assert resnet18(in_channels=1, width=4)(torch.randn(2, 1, 257, 188)).shape == (2, 32)


def test_every_parameter_learns():
    encoder = resnet18(width=4)
    encoder(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


class TestTorchvisionWeights:
    def weights(self, **options):
        source = resnet18(**options)
        state = {name: value.clone() for name, value in source.state_dict().items()}
        classifier = {"fc.weight": torch.zeros(1000, source.num_features), "fc.bias": torch.zeros(1000)}
        return source, {**state, **classifier}

    def test_colour(self):
        source, weights = self.weights(width=4)
        encoder = resnet18(width=4)
        encoder.load_torchvision_weights(weights)
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(encoder.eval()(images), source.eval()(images), rtol=0, atol=0)

    def test_grey(self):
        """One channel: as the colour network sees a grey image."""
        source, weights = self.weights(width=4)
        before = weights["conv1.weight"].clone()
        encoder = resnet18(width=4, in_channels=1)
        encoder.load_torchvision_weights(weights)
        images = torch.randn(2, 1, 32, 32)
        torch.testing.assert_close(encoder.eval()(images), source.eval()(images.expand(-1, 3, -1, -1)))
        assert torch.equal(weights["conv1.weight"], before)

    def test_errors(self):
        _, weights = self.weights(width=4)
        with pytest.raises(ValueError, match=r"(?s)`state_dict` does not fit .*size mismatch"):
            resnet18(width=8).load_torchvision_weights(weights)
        with pytest.raises(ValueError, match=r"(?s)`state_dict` does not fit .*conv1.weight"):
            resnet18(width=4, in_channels=2).load_torchvision_weights(weights)
        without = {name: value for name, value in weights.items() if name != "bn1.weight"}
        with pytest.raises(ValueError, match=r"(?s)`state_dict` does not fit .*Missing key.*bn1.weight"):
            resnet18(width=4).load_torchvision_weights(without)
        with pytest.raises(ValueError, match=r"(?s)`state_dict` does not fit .*Unexpected key.*extra"):
            resnet18(width=4).load_torchvision_weights({**weights, "extra": torch.zeros(1)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [2, 2, 2]}, r"`layers` should hold 4 numbers of blocks. Found `layers = \[2, 2, 2\]`"),
        ({"layers": [2, 2, 0, 2]}, r"`layers\[2\]` should be an integer of at least 1"),
        ({"layers": [1] * 4, "width": 0}, "`width` should be an integer of at least 1"),
        ({"layers": [1] * 4, "in_channels": 1.5}, "`in_channels` should be an integer of at least 1"),
        ({"layers": [1] * 4, "stem": "smal"}, r"`stem` should be one of imagenet, small.* Did you mean 'small'\?"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8), (2, 3, 1, 8, 8), (2, 2, 2, 3, 8, 8)])
def test_wrong_input(shape):
    with pytest.raises(ValueError, match=r"Input should have shape \(B, 3, H, W\) or \(B, T, 3, H, W\). Found"):
        resnet18(width=4)(torch.zeros(shape))
