"""Training steps as the loops of official code are structured, for ``official.py``.

Each makes the forwards, backward passes, loops over parameters and samples, and reads of numbers on the host that the
official loop makes, on the model, the heads and the optimiser of the library: two modalities, audio and video, and a
concatenation. They are written from equations and counts of calls. From equal weights they and the steps of the library
end with equal weights, which a test holds (``tests/benchmark/test_official.py``). Draws come from the method's own
streams, so that both draw the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from step import Setting, Subject
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.parameters import optimizer_like

AUDIO, VIDEO = "audio", "video"
Step = Callable[["Literal", bmlr.Batch], None]
#: Weight of the memory consolidation of ReconBoost, which has no gradient.
CONSOLIDATION = 0.5


class Literal(Subject):
    """A subject whose steps are those of an official loop.

    Attributes:
        kept: What the loop keeps between steps.
    """

    def __init__(
        self, name: str, setting: Setting, batch: bmlr.Batch, parameters: Mapping[str, Any], step: Step
    ) -> None:
        super().__init__(name, setting, batch, parameters)
        self.name = f"{name}, official"
        self.kept: dict[str, Any] = {}
        self._step = step

    @property
    def rule(self) -> Any:
        """The method, whose parameters, heads and draws the loop takes."""
        return self.method

    def take(self, batch: bmlr.Batch) -> None:
        """Make one step."""
        self._step(self, batch)

    def encode(self, batch: bmlr.Batch) -> tuple[Tensor, Tensor]:
        """Features of both modalities."""
        encoders = self.model.encoders
        return encoders[AUDIO](batch.inputs[AUDIO]), encoders[VIDEO](batch.inputs[VIDEO])

    def fuse(self, a: Tensor, v: Tensor) -> Tensor:
        """Fused logits."""
        return F.linear(torch.cat((a, v), 1), self.layer.weight, self.layer.bias)

    def halves(self, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Unimodal logits, with half of the bias each."""
        weight, bias = self.layer.weight, self.layer.bias
        return a @ weight[:, : a.shape[1]].T + bias / 2, v @ weight[:, a.shape[1] :].T + bias / 2

    @property
    def layer(self) -> nn.Linear:
        """The linear layer on the concatenation."""
        layer = self.model.fusion.get_submodule("linear")
        assert isinstance(layer, nn.Linear)  # noqa: S101  (for types)
        return layer

    def descend(self, loss: Tensor) -> None:
        """Backward, optimiser step, and the loss on the host."""
        loss.backward()
        self.optimizer.step()
        loss.item()


def joint(own: Literal, batch: bmlr.Batch) -> None:
    """Diagnosing & Re-learning between its resets."""
    own.optimizer.zero_grad()
    own.descend(F.cross_entropy(own.fuse(*own.encode(batch)), batch.targets))


def uniform(own: Literal, batch: bmlr.Batch) -> None:
    """A loss per modality beside the multimodal one."""
    own.optimizer.zero_grad()
    a, v = own.encode(batch)
    heads, weight, y = own.rule.heads, own.rule.weight, batch.targets
    losses = F.cross_entropy(heads[AUDIO](a), y), F.cross_entropy(heads[VIDEO](v), y)
    own.descend(F.cross_entropy(own.fuse(a, v), y) + weight * losses[0] + weight * losses[1])
    for loss in losses:
        loss.item()


def ogm_ge(own: Literal, batch: bmlr.Batch) -> None:
    """Scores summed sample by sample; gradients scaled and noised one by one, each std read on the host."""
    own.optimizer.zero_grad()
    a, v = own.encode(batch)
    unimodal, y = own.halves(a, v), batch.targets
    loss = F.cross_entropy(own.fuse(a, v), y)
    logged = [F.cross_entropy(logits, y) for logits in unimodal]
    loss.backward()
    scores = [torch.stack([F.softmax(logits, 1)[i][y[i]] for i in range(len(y))]).sum() for logits in unimodal]
    ratio = scores[0] / scores[1]
    factors: dict[str, Tensor | float] = {AUDIO: 1.0, VIDEO: 1.0}
    if ratio > 1:
        factors[AUDIO] = 1 - torch.tanh(own.rule.alpha * ratio)
    else:
        factors[VIDEO] = 1 - torch.tanh(own.rule.alpha / ratio)
    generator = own.rule.generator(own.rule.step, y.device)
    own.rule.step += 1
    for name, parameter in own.model.named_parameters():
        if name.startswith("encoders.") and parameter.ndim == 4:
            assert parameter.grad is not None  # noqa: S101  (for types)
            std = parameter.grad.std().item() + 1e-8
            noise = torch.zeros_like(parameter.grad).normal_(0, std, generator=generator)
            parameter.grad = parameter.grad * factors[name.split(".")[1]] + noise
    own.optimizer.step()
    for value in (loss, *logged):
        value.item()


def opm(own: Literal, batch: bmlr.Batch) -> None:
    """Rates and the draw on the host; what is left of the batch is fused."""
    own.optimizer.zero_grad()
    a, v = own.encode(batch)
    method, y = own.rule, batch.targets
    with torch.no_grad():
        p = [F.softmax(logits, 1).gather(1, y[:, None]).sum() for logits in own.halves(a, v)]
    rates = []
    for lead in (p[0] / p[1], p[1] / p[0]):
        advantage = torch.tanh(F.relu(lead - 1))
        rates.append(float((method.rate * (1 + method.strength * advantage)).clamp(0, 1)) if advantage > 0 else 0.0)
    generator = method.generator(method.step)
    method.step += 1
    if torch.rand((), generator=generator, dtype=torch.float32).item() < method.probability:
        draws = torch.rand(len(y), 2, generator=generator, dtype=torch.float32).to(a)
        keep = draws >= torch.tensor(rates).to(a)
        theta = (a.shape[1] * rates[0] + v.shape[1] * rates[1]) / (a.shape[1] + v.shape[1])
        a, v = a * keep[:, :1] / (1 - theta + 1e-5), v * keep[:, 1:] / (1 - theta + 1e-5)
        rows = keep.any(1)
        a, v, y = a[rows], v[rows], y[rows]
    own.descend(F.cross_entropy(own.fuse(a, v), y))


def agm(own: Literal, batch: bmlr.Batch) -> None:
    """Three whole forwards with gradient, scores and their means on the host, hooks that scale, clipping."""
    own.optimizer.zero_grad()
    inputs, y, model = batch.inputs, batch.targets, own.model
    both = own.fuse(*own.encode(batch))
    model.eval()
    alone = {}
    for name, other in ((AUDIO, VIDEO), (VIDEO, AUDIO)):
        zeroed = {name: inputs[name], other: torch.zeros_like(inputs[other])}
        alone[name] = own.fuse(*own.encode(dataclasses.replace(batch, inputs=zeroed)))
    model.train()
    shares = {AUDIO: (both - alone[VIDEO] + alone[AUDIO]) / 2, VIDEO: (both - alone[AUDIO] + alone[VIDEO]) / 2}
    largest = -math.log(1e-8)
    score = {u: F.cross_entropy(m, y, reduction="none").clamp(max=largest).mean().item() for u, m in shares.items()}
    mean, count = own.kept.get("mean", {AUDIO: 0.0, VIDEO: 0.0}), own.kept.get("count", 0) + 1
    for u, v in ((AUDIO, VIDEO), (VIDEO, AUDIO)):
        gap = math.exp(mean[v] - mean[u]) - math.exp(score[v] - score[u])
        kappa = math.exp(own.rule.alpha * min(gap, 10.0))
        shares[u].register_hook(lambda gradient, kappa=kappa: gradient * kappa)
    own.kept = {"count": count, "mean": {u: mean[u] * (count - 1) / count + score[u] / count for u in score}}
    loss = F.cross_entropy(shares[AUDIO] + shares[VIDEO], y)
    loss.backward()
    gradient = own.layer.weight.grad
    assert gradient is not None  # noqa: S101  (for types)
    if gradient.max().item() > own.rule.clip or gradient.min().item() < -own.rule.clip:
        nn.utils.clip_grad_norm_(model.parameters(), own.rule.clip)
    own.optimizer.step()
    loss.item()


def mmpareto(own: Literal, batch: bmlr.Batch) -> None:
    """A backward pass per loss and one of their sum; gradients combined one by one, lengths compared on the host."""
    a, v = own.encode(batch)
    y, heads = batch.targets, own.rule.heads
    losses = {
        "fused": F.cross_entropy(own.fuse(a, v), y),
        AUDIO: F.cross_entropy(heads[AUDIO](a), y),
        VIDEO: F.cross_entropy(heads[VIDEO](v), y),
    }
    gradients: dict[str, dict[str, Tensor]] = {}
    for name, loss in losses.items():
        own.optimizer.zero_grad()
        loss.backward(retain_graph=True)
        gradients[name] = {n: p.grad.clone() for n, p in own.model.named_parameters() if p.grad is not None}
    own.optimizer.zero_grad()
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    for u in (AUDIO, VIDEO):
        names = list(gradients[u])
        g_m, g_u = (torch.cat([gradients[key][n].flatten() for n in names]) for key in ("fused", u))
        weight = 0.5
        if F.cosine_similarity(g_m, g_u, dim=0) <= 0:
            weight = ((g_u - g_m) @ g_u / (g_m - g_u).norm() ** 2).item()
        for n in names:
            parameter = own.model.get_parameter(n)
            assert parameter.grad is not None  # noqa: S101  (for types)
            combined = 2 * weight * gradients["fused"][n] + 2 * (1 - weight) * gradients[u][n]
            length, plain = combined.norm(), parameter.grad.norm()
            factor = plain / length if plain > length else 1.0
            parameter.grad = own.rule.boost * factor * combined
    own.optimizer.step()
    for loss in (total, *losses.values()):
        loss.item()


def cml(own: Literal, batch: bmlr.Batch) -> None:
    """The ranking loss with its mask, in an order of removal per sample."""
    own.optimizer.zero_grad()
    a, v = own.encode(batch)
    y, method = batch.targets, own.rule
    draws = torch.rand(len(y), 2, generator=method.generator(method.step), dtype=torch.float32)
    method.step += 1
    keep = (draws.argsort(1) >= 1).to(a)
    large, small = own.fuse(a, v), own.fuse(a * keep[:, :1], v * keep[:, 1:])
    (q_large, c_large), (q_small, c_small) = (F.softmax(f, 1).max(1) for f in (large, small))
    mask = 1 - ((c_small == y) & (c_large != y)).to(a)
    ranking = (mask * F.relu(q_small - q_large)).sum()
    losses = F.cross_entropy(large, y) / 2 + F.cross_entropy(small, y) / 2
    own.descend(losses + method.weight / len(y) * ranking)


def cml_of_benchmark(own: Literal, batch: bmlr.Batch) -> None:
    """One order per epoch; the positive part of a sum over the batch, with a mask that is not used."""
    own.optimizer.zero_grad()
    a, v = own.encode(batch)
    y, method = batch.targets, own.rule
    if "first" not in own.kept:  # the modality that is removed first
        draws = torch.rand(1, 2, generator=method.generator(method.epoch), dtype=torch.float32)
        own.kept["first"] = int(draws.argsort(1)[0].tolist().index(0))
    large, removed = own.fuse(a, v), own.halves(a, v)[own.kept["first"]]
    small = large - removed + own.layer.bias / 2
    (q_large, c_large), (q_small, c_small) = (F.softmax(f, 1).max(1) for f in (large, small))
    _ = (c_small == y) & (c_large != y)
    ranking = max(torch.zeros_like(q_small[0]), (q_small - q_large).sum())
    own.descend(F.cross_entropy(large, y) / 2 + F.cross_entropy(small, y) / 2 + method.weight * ranking)


def mbsd_of_benchmark(own: Literal, batch: bmlr.Batch) -> None:
    """Weights and confidences of both modalities filled in sample by sample."""
    own.optimizer.zero_grad()
    a, v = own.encode(batch)
    y, unimodal = batch.targets, own.halves(a, v)
    p, q = (F.softmax(logits, 1) for logits in unimodal)
    strong, weak, weights = [], [], []
    for i in range(len(y)):
        first, second = p[i][y[i]], q[i][y[i]]
        strong.append(first if first > second else second)
        weak.append(second if first > second else first)
        is_right = p[i].argmax() == y[i] or q[i].argmax() == y[i]
        weights.append(strong[-1] - weak[-1] if is_right else torch.zeros_like(first))
    weight, ps, pw = torch.stack(weights), torch.stack(strong), torch.stack(weak)
    divergence = F.kl_div(ps, pw, reduction="none")
    distance = F.mse_loss(*unimodal, reduction="none").mean(1)
    losses = [F.cross_entropy(logits, y) for logits in (own.fuse(a, v), *unimodal)]
    own.descend(torch.stack(losses).sum() + (weight * distance).mean() + (weight * divergence).mean())


def aligned(logits: tuple[Tensor, Tensor], label: Tensor, weight: float) -> Tensor:
    """LFM's loss of two predictions, with logarithms of probabilities."""
    p, q = (F.softmax(values, 1) for values in logits)
    middle = (p + q) / 2
    alignment = F.kl_div(p.log(), middle, reduction="batchmean") + F.kl_div(q.log(), middle, reduction="batchmean")
    return 2 * (weight * label + (1 - weight) * alignment / 2)


def lfm(own: Literal, batch: bmlr.Batch) -> None:
    """The mean of two heads, and the alignment of their predictions."""
    own.optimizer.zero_grad()
    a, v = own.encode(batch)
    logits = own.rule.heads[AUDIO](a), own.rule.heads[VIDEO](v)
    label = F.cross_entropy((logits[0] + logits[1]) / 2, batch.targets)
    own.descend(aligned(logits, label, own.rule.current_label_weight))


def lfm_of_benchmark(own: Literal, batch: bmlr.Batch) -> None:
    """The alignment of both terms of the multimodal logits."""
    own.optimizer.zero_grad()
    a, v = own.encode(batch)
    label = F.cross_entropy(own.fuse(a, v), batch.targets)
    own.descend(aligned(own.halves(a, v), label, own.rule.current_label_weight))


def reconboost(own: Literal, batch: bmlr.Batch) -> None:
    """One modality with a term without gradient, for which the previous one runs again; all in rectification."""
    own.optimizer.zero_grad()
    method, encoders, y = own.rule, own.model.encoders, batch.targets
    nets = {u: (lambda u=u: method.heads(encoders[u](batch.inputs[u]))) for u in (AUDIO, VIDEO)}
    if batch.tag == "rectify":
        own.descend(F.cross_entropy(method.boost_rate * (nets[AUDIO]() + nets[VIDEO]()), y))
        return
    active = batch.tag.removeprefix("boost:")
    other = VIDEO if active == AUDIO else AUDIO
    with torch.no_grad():
        explained = F.softmax(method.boost_rate * nets[other](), 1)
    logits = nets[active]()
    one_hot, log_p = F.one_hot(y, logits.shape[1]).to(logits), F.log_softmax(logits, 1)
    boosting = -method.w1 * (one_hot * log_p).mean() + method.w2 * (one_hot * explained * log_p).mean()
    consolidation = F.mse_loss(F.softmax(logits.detach(), 1), F.softmax(nets[other]().detach(), 1))
    own.descend(boosting + CONSOLIDATION * consolidation)


def remix(own: Literal, batch: bmlr.Batch) -> None:
    """Both encoders in the graph, the feature of the masked one overwritten by zeros."""
    own.optimizer.zero_grad()
    kept = batch.tag.removeprefix("remix:")
    features = dict(zip((AUDIO, VIDEO), own.encode(batch), strict=True))
    alone = own.rule.heads[kept](features[kept])
    for name in {AUDIO, VIDEO} - {kept}:
        features[name] = features[name].clone()
        features[name][:] = 0.0
    fused = F.cross_entropy(own.fuse(features[AUDIO], features[VIDEO]), batch.targets)
    own.descend(fused + own.rule.gamma * F.cross_entropy(alone, batch.targets))


def dgl(own: Literal, batch: bmlr.Batch) -> None:
    """Unimodal losses through the whole layer, whose gradients are dropped; a second backward pass for the layer."""
    own.optimizer.zero_grad()
    a, v = own.encode(batch)
    y, method = batch.targets, own.rule
    unimodal = own.fuse(a, torch.zeros_like(v)), own.fuse(torch.zeros_like(a), v)
    fused = F.cross_entropy(own.fuse(a.detach(), v.detach()), y)
    losses = method.alpha * (F.cross_entropy(unimodal[0], y) + F.cross_entropy(unimodal[1], y))
    losses.backward(retain_graph=True)
    for parameter in own.layer.parameters():
        parameter.grad = None
    fused.backward()
    nn.utils.clip_grad_norm_(own.model.parameters(), method.clip)
    own.optimizer.step()
    for loss in (losses, fused):
        loss.item()


def algorithm_1(own: Literal, batch: bmlr.Batch) -> None:
    """BMLR: labels by matrices of C × C sample by sample, an optimiser and a backward pass per set of parameters."""
    model, y = own.model, batch.targets
    groups = {u: list(model.encoders[u].parameters()) for u in (AUDIO, VIDEO)} | {"fused": list(own.layer.parameters())}
    if "optimizers" not in own.kept:
        own.kept["optimizers"] = {name: optimizer_like(own.optimizer, group) for name, group in groups.items()}
    a, v = own.encode(batch)
    logits = dict(zip((AUDIO, VIDEO), own.halves(a, v), strict=True))
    losses = {"fused": F.cross_entropy(own.fuse(a, v), y)}
    for u, other in ((AUDIO, VIDEO), (VIDEO, AUDIO)):
        rows = zip(logits[u].detach(), logits[other].detach(), y, strict=True)
        labels = torch.stack([reshaped(row, of_other, i, own.rule.alpha, own.rule.beta) for row, of_other, i in rows])
        losses[u] = -(labels * F.log_softmax(logits[u], 1)).sum(1).mean()
    for name, group in groups.items():
        for p, gradient in zip(group, torch.autograd.grad(losses[name], group, retain_graph=True), strict=True):
            p.grad = gradient
    for optimizer in own.kept["optimizers"].values():
        optimizer.step()
    for loss in losses.values():
        loss.item()


def reshaped(row: Tensor, of_other: Tensor, y: Tensor, alpha: float, beta: float) -> Tensor:
    """Label of one modality for one sample (Eqs. 4 to 8)."""
    size = len(row)
    one_hot, identity = F.one_hot(y, size).to(row), torch.eye(size, dtype=row.dtype, device=row.device)
    ratio = F.softmax(row, 0)[y] / F.softmax(of_other, 0)[y]
    xi = 1 - 1 / ratio if ratio > 1 and ratio * beta < 1 else torch.zeros_like(ratio)
    d = F.softmax(of_other / (alpha / ratio), 0)
    matrix = d[:, None] @ torch.ones(1, size).to(row)
    return (xi * matrix + (1 - xi) * identity) @ one_hot
