import copy
import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods import AUG
from method_loop import MethodLoop
from zoo import make_batch, make_model

FORMS = ("paper", "official")


def make_loop(method, modalities=2, samples=18, **options):
    torch.manual_seed(0)
    model = make_model(modalities, dtype=torch.float64)
    return MethodLoop(model, method, make_batch(modalities, samples, dtype=torch.float64, **options), max_epochs=8)


def grown(method, **counts):
    """The method with so many classifiers."""
    for name, count in counts.items():
        method._counts[sorted(method.layers).index(name)] = count
    return method


def literal_chain(method, model, name, batch):
    """Logits of each classifier, from the weights, one number at a time."""
    features = model.encoders[name](batch.inputs[name]).tolist()
    output, bias = method.head.weight.tolist(), method.head.bias.tolist()
    chain = []
    for layer in list(method.layers[name])[: method.num_classifiers(name)]:
        weight, shift = layer.weight.tolist(), layer.bias.tolist()
        rows = []
        for z in features:
            hidden = [
                max(0.0, sum(a * b for a, b in zip(w, z, strict=True)) + s) for w, s in zip(weight, shift, strict=True)
            ]
            rows.append(
                [sum(a * h for a, h in zip(w, hidden, strict=True)) + s for w, s in zip(output, bias, strict=True)]
            )
        chain.append(rows)
    return chain


def total(chain, i):
    return [sum(rows[i][c] for rows in chain) for c in range(3)]


def probability(logits, y):
    return math.exp(logits[y]) / sum(map(math.exp, logits))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_losses_agree_with_a_literal_version(count, form):
    loop = make_loop(AUG(residual_weight=0.4, residual_labels=form, hidden=6))
    batch, method = loop.take(torch.arange(5), "modality:video"), grown(loop.method, video=count)
    chain = literal_chain(method, loop.model, "video", batch)
    losses = [0.0, 0.0, 0.0]
    for i, y in enumerate(batch.targets.tolist()):
        losses[0] -= math.log(probability(total(chain, i), y)) / 5
        if count > 1:
            losses[1] -= math.log(probability(total(chain[:-1], i), y)) / 5
            read = [total(chain[:-1], i)] if form == "official" else [rows[i] for rows in chain[:-1]]
            label = 1 - 0.4 * sum(probability(logits, y) for logits in read)
            losses[2] -= label * math.log(probability(chain[-1][i], y)) / 5
    found = method.compute_losses(loop.model, batch)
    assert list(found.terms) == ["video", "video_before", "video_residual"][: 1 if count == 1 else 3]
    for value, expected in zip(found.terms.values(), losses, strict=False):
        assert value.item() == pytest.approx(expected)
    assert found.logs == {"classifiers_video": torch.tensor(float(count))}


@pytest.mark.parametrize("form", FORMS)
def test_probabilities_in_the_labels_are_held_constant_and_only_the_modality_learns(form):
    loop = make_loop(AUG(residual_labels=form, hidden=6))
    method, batch = grown(loop.method, video=3), loop.take(torch.arange(6), "modality:video")
    method.backward(method.compute_losses(loop.model, batch), loop.model)
    method.adjust_gradients(loop.model)
    actual = {name: p.grad for name, p in (*loop.model.named_parameters(), *method.named_parameters())}
    loop.model.zero_grad()
    method.zero_grad()
    z = loop.model.encoders["video"](batch.inputs["video"])
    h = [method.head(method.layers["video"][k](z).relu()) for k in range(3)]
    one_hot = F.one_hot(batch.targets, 3)
    left = [h[0] + h[1]] if form == "official" else h[:2]
    labels = one_hot - 0.5 * sum(one_hot * x.detach().softmax(1) for x in left)
    residual = -(labels * h[2].log_softmax(1)).sum(1).mean()
    (F.cross_entropy(sum(h), batch.targets) + F.cross_entropy(h[0] + h[1], batch.targets) + residual).backward()
    for name, p in (*loop.model.named_parameters(), *method.named_parameters()):
        assert (actual[name] is None) == (p.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(actual[name], p.grad)
    learning = {name for name, gradient in actual.items() if gradient is not None}
    assert {name.split(".")[1] for name in learning if not name.startswith("head")} == {"video"}
    assert not any(name.startswith("layers.video.3") for name in learning)


def test_a_label_is_never_below_zero():
    loop = make_loop(AUG(residual_weight=2.0, hidden=6))
    method = grown(loop.method, audio=4)
    terms = method.compute_losses(loop.model, loop.take(torch.arange(6), "modality:audio")).terms
    assert terms["audio_residual"].item() >= 0


def test_with_one_classifier_it_is_alternation_with_a_shared_layer():
    loop = make_loop(AUG(max_classifiers=1, check_every=1, hidden=6), 3)
    model, method = copy.deepcopy((loop.model, loop.method))
    loop.run([0, 1])
    assert loop.method.counts.tolist() == [1, 1, 1]
    parameters = [*model.parameters(), *method.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    for epoch in (0, 1):
        for batch, _ in loop.batches(loop.method.start_epoch(loop.context(epoch)), epoch):
            name = batch.tag.removeprefix("modality:")
            optimizer.zero_grad()
            logits = method.head(method.layers[name][0](model.encoders[name](batch.inputs[name])).relu())
            F.cross_entropy(logits, batch.targets).backward()
            optimizer.step()
    for one, other in zip((*loop.model.parameters(), *loop.method.parameters()), parameters, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("modalities", [2, 3])
def test_the_weakest_on_the_training_samples_gets_a_classifier(modalities, form):
    method = AUG(check_every=2, max_classifiers=3, hidden=6, score=form)
    loop, history = make_loop(method, modalities), []
    for epoch in range(8):
        counts = dict(zip(sorted(loop.model.modalities), method.counts.tolist(), strict=True))
        scores = {}
        for name in loop.model.modalities:
            chain = literal_chain(method, loop.model, name, loop.train)
            read = lambda i, chain=chain: [total(chain, i)] if form == "official" else [rows[i] for rows in chain]
            targets = enumerate(loop.train.targets.tolist())
            scores[name] = sum(probability(logits, y) for i, y in targets for logits in read(i)) / len(loop.train)
        weak, strong = min(scores, key=scores.get), max(scores.values())
        gap = strong / scores[weak] - 1 if form == "official" else strong - scores[weak]
        if epoch and epoch % 2 == 0 and gap > 0.01:
            counts[weak] = min(3, counts[weak] + 1)
        loop.run([epoch])
        assert method.counts.tolist() == [counts[name] for name in sorted(counts)]
        history.append(sum(method.counts.tolist()))
    assert history[0] == history[1] == modalities
    assert history[-1] > modalities


def test_level_modalities_and_full_ones_get_none():
    method = AUG(tolerance=0.1, ratio=1.2)
    assert method.weakest({"audio": 0.72, "video": 0.5}) == "video"
    assert method.weakest({"audio": 0.69, "video": 0.5}) is None
    assert method.weakest({"video": 0.5}) is None
    assert AUG(score="official", tolerance=0.1).weakest({"audio": 0.23, "video": 0.2, "text": 0.22}) == "video"
    assert AUG(score="official", tolerance=0.1).weakest({"audio": 0.21, "video": 0.2}) is None


def test_new_layers_learn_or_keep_their_draw():
    for register_new in (True, False):
        loop = make_loop(AUG(check_every=1, hidden=6, max_classifiers=3, register_new=register_new))
        before = copy.deepcopy(dict(loop.method.named_parameters()))
        loop.run(range(4))
        name, count = max(
            ((u, loop.method.num_classifiers(u)) for u in loop.model.modalities), key=lambda pair: pair[1]
        )
        assert count > 1
        moved = [
            not torch.equal(loop.method.layers[name][k].weight, before[f"layers.{name}.{k}.weight"]) for k in range(3)
        ]
        assert moved == [True, *(register_new and k < count for k in (1, 2))]
        assert loop.method.layers[name][1].weight.requires_grad == register_new


def test_predictions_are_weighted_over_the_modalities_present():
    loop = make_loop(AUG(weights={"audio": 0.4, "video": 0.6}, hidden=6))
    grown(loop.method, audio=2)
    output = loop.model(loop.train.inputs, {"audio": torch.arange(18) > 0})
    prediction = loop.method.predict(output)
    audio, video = prediction.unimodal_logits["audio"], prediction.unimodal_logits["video"]
    torch.testing.assert_close(prediction.logits[0], video[0])
    torch.testing.assert_close(prediction.logits[1:], (0.4 * audio + 0.6 * video)[1:], rtol=1e-12, atol=1e-14)
    chain = literal_chain(loop.method, loop.model, "audio", loop.train)
    assert audio[3].tolist() == pytest.approx(total(chain, 3))


def test_absent_modalities_do_not_count_in_scores():
    mask = torch.arange(18) % 2 == 0
    loop = make_loop(AUG(check_every=1, hidden=6), present={"video": mask})
    spoilt = copy.deepcopy(loop)
    spoilt.train.targets[~mask & (loop.train.targets == 0)] = 1  # labels of samples without video: audio's score moves
    scores, others = (run.method._scores(run.context(1)) for run in (loop, spoilt))
    assert scores["video"] == others["video"]
    assert scores["audio"] != others["audio"]
    loop.train.present["video"] = torch.zeros(18, dtype=torch.bool)
    assert list(loop.method._scores(loop.context(1))) == ["audio"]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"`weights` should have a number for each of audio, video. Found {'text': 1"):
        AUG(weights={"text": 1.0}).setup(make_model())
    with pytest.raises(ValueError, match="AUG is defined for multiclass and multilabel tasks only, since a new class"):
        AUG().setup(
            bmlr.MultimodalClassifier({"a": torch.nn.Linear(2, 3), "b": torch.nn.Linear(2, 3)}, bmlr.tasks.Sentiment())
        )
    with pytest.raises(RuntimeError, match=r"AUG has classifiers for \[\] and got features of 'audio': call"):
        AUG().predict(make_model()(make_batch().inputs))
