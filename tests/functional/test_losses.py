"""The two losses against NumPy and at their edges."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import oracle
from bmlr.functional import masked_mean, reshape_labels, smooth_labels, soft_cross_entropy
from zoo import make_logits


class TestSoftCrossEntropy:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)], ids=str)
    @pytest.mark.parametrize("masked", [False, True])
    def test_formula(self, dtype, tolerance, masked):
        """−Σ_c ỹ_c log p_c, mean over the samples that count."""
        logits, targets = make_logits(1, 16, 9, dtype=dtype)
        logits = logits["m0"]
        labels = smooth_labels(targets, 9, epsilon=0.4, dtype=dtype)
        mask = torch.arange(16) % 3 != 0 if masked else None
        losses = [
            -(labels[i].numpy() * oracle.log_softmax(logits[i].numpy())).sum()
            for i in range(16)
            if mask is None or mask[i]
        ]
        actual = soft_cross_entropy(logits, labels, mask=mask)
        assert actual.item() == pytest.approx(float(np.mean(losses)), rel=tolerance)
        assert actual.dtype == dtype

    def test_indices_and_one_hot_agree(self):
        logits, targets = make_logits(1, 16, 9, dtype=torch.float64)
        labels = F.one_hot(targets, 9).double()
        hard = soft_cross_entropy(logits["m0"], targets)
        torch.testing.assert_close(soft_cross_entropy(logits["m0"], labels), hard, rtol=1e-14, atol=0)
        torch.testing.assert_close(soft_cross_entropy(logits["m0"], targets.to(torch.uint8)), hard, rtol=0, atol=0)

    def test_gradient(self):
        """∂L/∂ℓ = (p − ỹ) / B, since a label sums to one."""
        logits, targets = make_logits(1, 6, 5, dtype=torch.float64)
        logits = logits["m0"].requires_grad_()
        labels = smooth_labels(targets, 5, epsilon=0.3, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(soft_cross_entropy(logits, labels), logits)
        torch.testing.assert_close(gradient, (logits.softmax(1) - labels) / 6)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_types_are_widened(self, dtype):
        logits, targets = make_logits(1, 16, 9, dtype=dtype)
        labels = smooth_labels(targets, 9, epsilon=0.1)
        actual = soft_cross_entropy(logits["m0"], labels)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, soft_cross_entropy(logits["m0"].float(), labels), rtol=0, atol=0)

    @pytest.mark.parametrize("labels_type", [torch.float16, torch.float64], ids=str)
    def test_the_type_is_that_of_the_logits(self, labels_type):
        logits, targets = make_logits(1, 16, 9)
        labels = F.one_hot(targets, 9)
        actual = soft_cross_entropy(logits["m0"], labels.to(labels_type))
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, soft_cross_entropy(logits["m0"], labels.float()), rtol=0, atol=0)

    def test_nothing_counts(self):
        logits = torch.randn(3, 4, requires_grad=True)
        loss = soft_cross_entropy(logits, torch.tensor([0, 1, 2]), mask=torch.zeros(3, dtype=torch.bool))
        loss.backward()
        assert loss == 0
        assert not logits.grad.any()

    @pytest.mark.parametrize("labels", [torch.tensor([0, 1]), torch.full((2, 3), 1 / 3)], ids=["indices", "soft"])
    def test_masked_samples_have_no_gradient(self, labels):
        logits = torch.tensor([[1.0, 2.0, 3.0], [math.nan, math.inf, 0.0]], requires_grad=True)
        mask = torch.tensor([True, False])
        loss = soft_cross_entropy(logits, labels, mask=mask)
        loss.backward()
        torch.testing.assert_close(loss, soft_cross_entropy(logits[:1], labels[:1]))
        assert logits.grad[0].any()
        assert not logits.grad[1].any()  # zeros, not NaN

    def test_nan_logits_give_a_nan_loss(self):
        """The label of such a sample is one-hot, so the loss is where training sees it."""
        logits, targets = make_logits(2, 4)
        logits["m0"][2, 1] = math.nan
        labels, _ = reshape_labels(logits, targets, alpha=1.0, beta=0.1)
        assert soft_cross_entropy(logits["m0"], labels["m0"]).isnan()
        assert soft_cross_entropy(logits["m1"], labels["m1"]).isfinite()
        assert soft_cross_entropy(logits["m0"], targets).isnan()

    def test_masked_class(self):
        """A class at −∞ without mass in the label adds nothing: 0 · log 0 = 0, in the loss and in its gradient."""
        logits = torch.tensor([[1.0, 0.0, -math.inf]], requires_grad=True)
        loss = soft_cross_entropy(logits, torch.tensor([[0.75, 0.25, 0.0]]))
        loss.backward()
        torch.testing.assert_close(loss, soft_cross_entropy(logits[:, :2], torch.tensor([[0.75, 0.25]])))
        torch.testing.assert_close(
            logits.grad,
            torch.tensor(
                [[logits.detach().softmax(1)[0, 0] - 0.75] * 1 + [logits.detach().softmax(1)[0, 1] - 0.25, 0.0]]
            ),
        )
        assert soft_cross_entropy(logits, torch.tensor([[0.5, 0.25, 0.25]])) == math.inf

    @pytest.mark.parametrize("shape", [(2, 4), (1, 3), (2, 1), (2,)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"`labels` should be distributions of the shape of `logits`, \(2, 3\)"):
            soft_cross_entropy(torch.zeros(2, 3), torch.ones(shape))


class TestMaskedMean:
    def test_values(self):
        values = torch.tensor([1.0, 2.0, 6.0])
        assert masked_mean(values) == 3
        assert masked_mean(values, torch.tensor([True, False, True])) == 3.5
        assert masked_mean(values, torch.zeros(3, dtype=torch.bool)) == 0

    def test_gradient_of_masked_nan(self):
        values = torch.tensor([1.0, math.nan], requires_grad=True)
        masked_mean(values, torch.tensor([True, False])).backward()
        torch.testing.assert_close(values.grad, torch.tensor([1.0, 0.0]))
