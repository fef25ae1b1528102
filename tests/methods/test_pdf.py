import math

import pytest
import torch

import bmlr
from bmlr.methods import PDF
from bmlr.tasks import MultiLabel
from method_loop import MethodLoop
from zoo import FEATURE_DIMS, make_batch, make_encoder, make_model


def softmax(values):
    powers = [math.exp(x - max(values)) for x in values]
    return [x / sum(powers) for x in powers]


def literal_weights(confidences, distances=None):
    """Weights of one sample, by the modalities it has."""
    logs = {u: math.log(c) for u, c in confidences.items()}
    beliefs = {u: c + sum(logs[v] for v in logs if v != u) / sum(logs.values()) for u, c in confidences.items()}
    for u in beliefs if distances and len(beliefs) > 1 else ():
        rivals = [distances[v] for v in distances if v != u]
        beliefs[u] *= min(1.0, distances[u] / (sum(rivals) / len(rivals)))
    return dict(zip(beliefs, softmax(list(beliefs.values())), strict=True))


def literal(method, output, targets, present):
    """Terms and calibrated logits in plain Python, sample by sample."""
    names, size = list(output.features), len(targets)
    features = {u: z.detach() for u, z in output.features.items()}
    logits = {u: method.heads[u](z).tolist() for u, z in features.items()}
    confidences = {u: method.confidence_nets[u](z).sigmoid().squeeze(1).tolist() for u, z in features.items()}
    terms = {"fused": 0.0, **{f"{u}{end}": 0.0 for u in names for end in ("", "_confidence")}}
    fused = []
    for i, y in enumerate(targets.tolist()):
        held = [u for u in names if present is None or u not in present or bool(present[u][i])]
        p = {u: softmax(logits[u][i]) for u in held}
        plain = literal_weights({u: confidences[u][i] for u in held})
        distance = {u: sum(abs(x - 1 / len(row)) for x in row) / len(row) for u, row in p.items()}
        calibrated = literal_weights({u: confidences[u][i] for u in held}, distance)
        rows = [[sum(w[u] * logits[u][i][c] for u in held) for c in range(3)] for w in (plain, calibrated)]
        terms["fused"] -= math.log(softmax(rows[0])[y]) / size
        fused.append(rows[1])
        for u in held:
            count = size if present is None or u not in present else int(present[u].sum())
            terms[u] -= math.log(p[u][y]) / count
            terms[f"{u}_confidence"] += abs(confidences[u][i] - p[u][y]) / count
    return terms, fused


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("lacking", [False, True])
def test_losses_and_predictions_over_steps_are_those_of_a_literal_version(modalities, lacking):
    present = {"video": torch.arange(8) % 3 > 0, "audio": torch.arange(8) % 3 < 2} if lacking else None
    batch = make_batch(modalities, dtype=torch.float64, present=present)
    loop = MethodLoop(make_model(modalities, dtype=torch.float64), PDF(), batch)
    for _ in range(4):
        output = loop.model({u: 4 * x for u, x in batch.inputs.items()}, present)
        terms, fused = literal(loop.method, output, batch.targets, present)
        actual = loop.method(output, batch.targets).terms
        assert actual.keys() == terms.keys()
        for name, value in terms.items():
            assert actual[name].item() == pytest.approx(value, abs=1e-9), name
        prediction = loop.method.predict(output).logits
        torch.testing.assert_close(prediction, torch.tensor(fused, dtype=torch.float64), rtol=0, atol=1e-8)
        loop.step(batch)


def test_whom_each_loss_trains():
    model, batch, method = make_model(), make_batch(), PDF()
    method.setup(model)
    terms = method(model(batch.inputs), batch.targets).terms
    named = {**dict(model.named_parameters()), **dict(method.named_parameters())}

    def trained(name):
        gradients = torch.autograd.grad(terms[name], list(named.values()), retain_graph=True, allow_unused=True)
        return {n.rsplit(".", 2)[0] for n, g in zip(named, gradients, strict=True) if g is not None and g.any()}

    encoders = {"encoders.audio", "encoders.video"}
    assert trained("fused") == {*encoders, "heads"}
    assert trained("audio") == {"encoders.audio", "heads"}
    assert trained("audio_confidence") == {"confidence_nets.audio"}


def test_even_confidences_give_the_mean_and_certain_ones_stay_finite():
    model, batch, method = make_model(3), make_batch(3), PDF(calibrate=False)
    method.setup(model)
    output = model(batch.inputs)
    for net in method.confidence_nets.values():
        torch.nn.init.zeros_(net[-1].weight)
        torch.nn.init.constant_(net[-1].bias, 0.3)
    prediction = method.predict(output)
    mean = torch.stack(list(prediction.unimodal_logits.values())).mean(0)
    torch.testing.assert_close(prediction.logits, mean)
    for value in (200.0, -200.0):  # a sigmoid of 1 and of 0 in single precision
        torch.nn.init.constant_(method.confidence_nets["audio"][-1].bias, value)
        losses = method(model(batch.inputs), batch.targets)
        losses.total.backward()
        assert bool(torch.isfinite(losses.total))
        assert all(bool(p.grad.isfinite().all()) for p in method.parameters())
        assert bool(torch.isfinite(PDF.predict(method, output).logits).all())


def test_a_sure_modality_counts_more_and_calibration_takes_it_back():
    model, batch, method = make_model(), make_batch(), PDF()
    method.setup(model)
    output = model(batch.inputs)
    for name, value in (("audio", 2.0), ("video", -2.0)):
        torch.nn.init.zeros_(method.confidence_nets[name][-1].weight)
        torch.nn.init.constant_(method.confidence_nets[name][-1].bias, value)
    torch.nn.init.zeros_(method.heads["audio"].weight)  # sure, and yet uniform
    torch.nn.init.zeros_(method.heads["audio"].bias)
    logs = method(output, batch.targets).logs
    assert logs["weight_audio"] > 0.8
    method.heads["audio"].bias.data[0] = 1e-3
    share = method.predict(output).logits / method.predict(output).unimodal_logits["video"]
    assert bool((share[:, 1] > 0.5).all())


def test_each_label_is_a_choice_of_its_own():
    encoders = {name: make_encoder(name) for name in ("audio", "video")}
    dims = {name: FEATURE_DIMS[name] for name in encoders}
    model = bmlr.MultimodalClassifier(encoders, MultiLabel(4), feature_dims=dims)
    method = PDF()
    method.setup(model)
    output = model(make_batch().inputs)
    labels = torch.randint(2, (8, 4))
    terms = method(output, labels).terms
    logits = method.heads["audio"](output.features["audio"])
    of_truth = torch.where(labels.bool(), logits.sigmoid(), 1 - logits.sigmoid()).mean(1)
    c = method.confidence_nets["audio"](output.features["audio"]).sigmoid().squeeze(1)
    torch.testing.assert_close(terms["audio_confidence"], (c - of_truth).abs().mean())
