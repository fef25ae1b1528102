"""A small training loop with every call of the method interface, and checks for any method."""

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import bmlr
from bmlr.batch import map_tensors
from bmlr.methods import EpochContext, EpochPlan, Method, StartingMethod
from bmlr.parameters import optimizer_like
from zoo import make_batch, make_model

MakeMethod = Callable[[], Method]
State = dict[str, Any]


def set_up(method: Method, model: bmlr.MultimodalClassifier) -> None:
    """Set a method up, with a modality where it names one, and runs where it starts from some."""
    name_modality(method, model)
    method.setup(model)
    give_runs(method, model)


def give_runs(method: Method, model: bmlr.MultimodalClassifier) -> None:
    """Give a method the runs it starts from.

    They are not trained: their encoders are those of the model, moved a little.
    """
    if not (required := method.required_runs(model.modalities)):
        return
    trained: dict[str, tuple[bmlr.MultimodalClassifier, Method]] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for name, single in required.items():
            network = copy.deepcopy(model)
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel())).view(parameter.shape))
            single.setup(network)
            trained[name] = network, single
    assert isinstance(method, StartingMethod)
    method.start_from(trained, model)


def name_modality(method: Method, model: bmlr.MultimodalClassifier) -> None:
    """Name the first modality to a method that wants one."""
    parameter = method.conformance.modality_parameter
    if parameter and getattr(method, parameter) is None:
        setattr(method, parameter, model.modalities[0])


class MethodLoop:
    """SGD with momentum over a split held in one batch.

    The order of samples is a function of epoch and pass.
    """

    def __init__(
        self,
        model: bmlr.MultimodalClassifier,
        method: Method,
        train: bmlr.Batch,
        *,
        batch_size: int = 8,
        max_epochs: int = 4,
        autocast: bool = False,
        seed: int = 0,
    ) -> None:
        set_up(method, model)
        self.model, self.method, self.train = model, method, train
        self.batch_size, self.max_epochs, self.autocast, self.seed = batch_size, max_epochs, autocast, seed
        parameters = [p for p in (*model.parameters(), *method.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    def context(self, epoch: int) -> EpochContext:
        def in_order() -> Iterator[bmlr.Batch]:
            return (self.take(rows) for rows in torch.arange(len(self.train)).split(self.batch_size))

        def shuffled(number: int) -> Iterator[bmlr.Batch]:
            generator = torch.Generator().manual_seed(1000 * epoch + number)
            count = max(1, len(self.train) // self.batch_size)
            chunks = torch.randperm(len(self.train), generator=generator).tensor_split(count)
            return (self.take(rows) for rows in chunks)

        return EpochContext(
            epoch, self.max_epochs, self.model, len(self.train), in_order, in_order, self.seed, shuffled,
            lambda parameters: optimizer_like(self.optimizer, parameters),
        )  # fmt: skip

    def take(self, rows: Tensor, tag: str = "") -> bmlr.Batch:
        return take(self.train, rows, tag)

    def batches(self, plan: EpochPlan, epoch: int) -> Iterator[tuple[bmlr.Batch, bool]]:
        """Batches and whether the optimiser is to be forgotten before them."""
        passes = [list(self.batches_of(plan, number, epoch)) for number in range(len(plan.passes))]
        for planned in zip(*passes, strict=True) if plan.order == "aligned" else passes:
            yield from planned

    def batches_of(self, plan: EpochPlan, number: int, epoch: int) -> Iterator[tuple[bmlr.Batch, bool]]:
        """The batches of a pass."""
        planned = plan.passes[number]
        rows = torch.tensor(planned.indices if planned.indices is not None else range(len(self.train)))
        generator = torch.Generator().manual_seed(100 * epoch + (0 if plan.order == "aligned" else number))
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        count = max(1, len(rows) // self.batch_size)  # no small rest, which batch normalisation could not train on
        for position, batch_rows in enumerate(shuffled.tensor_split(count)):
            yield self.take(batch_rows, planned.tag), planned.fresh_optimizer and position == 0

    def run(self, epochs: Sequence[int]) -> None:
        self.model.train()
        for epoch in epochs:
            for batch, fresh in self.batches(self.method.start_epoch(self.context(epoch)), epoch):
                self.take_step(batch, fresh)
            self.method.end_epoch(self.context(epoch))

    def take_step(self, batch: bmlr.Batch, fresh_optimizer: bool) -> None:
        if fresh_optimizer:
            self.optimizer.state.clear()
        self.step(batch)

    def step(self, batch: bmlr.Batch) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            losses = self.method.compute_losses(self.model, batch)
        for name, value in losses.terms.items():
            assert value.ndim == 0, name
            assert bool(torch.isfinite(value)), name
        self.method.backward(losses, self.model)
        self.method.adjust_gradients(self.model)
        self.optimizer.step()

    def state(self) -> State:
        return {
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])


def take(batch: bmlr.Batch, rows: Tensor, tag: str = "") -> bmlr.Batch:
    """Samples at ``rows``, in that order."""
    return bmlr.Batch(
        {name: map_tensors(lambda x: x[rows], x) for name, x in batch.inputs.items()},
        batch.targets[rows],
        None if batch.present is None else {name: mask[rows] for name, mask in batch.present.items()},
        None if batch.indices is None else batch.indices[rows],
        tag,
    )


def stored(state: State) -> State:
    """State after a round trip through a file without code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: State = torch.load(file, weights_only=True)
    return loaded


def assert_same_state(actual: State, expected: State) -> None:
    """Equal bit for bit, to any depth."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_same_state(actual[key], value)
        elif isinstance(value, Tensor):
            assert torch.equal(actual[key], value), key
        else:
            assert actual[key] == value, key


def assert_resumes(
    make_method: MakeMethod, modalities: int, *, fusion: str = "concat", epochs: int = 4, batch_norm: bool = True
) -> None:
    """A run stopped half-way and resumed ends like the uninterrupted one, bit for bit."""
    train = make_batch(modalities, 30)

    def loop(seed: int) -> MethodLoop:
        model = make_model(modalities, fusion, seed=seed, batch_norm=batch_norm)
        torch.manual_seed(seed)
        return MethodLoop(model, make_method(), train, max_epochs=epochs)

    uninterrupted, first, second = loop(0), loop(0), loop(1)
    uninterrupted.run(range(epochs))
    first.run(range(epochs // 2))
    second.load(stored(first.state()))
    second.run(range(epochs // 2, epochs))
    assert_same_state(second.state()["model"], uninterrupted.state()["model"])
    assert_same_state(second.state()["method"], uninterrupted.state()["method"])


def assert_any_order(make_method: MakeMethod, modalities: Sequence[str], tag: str = "") -> None:
    """Losses and gradients do not depend on the order of modalities in model and batch."""
    batch = make_batch(modalities, 12, dtype=torch.float64)
    batch.tag = tag
    original = make_model(modalities, "sum", dtype=torch.float64)
    reordered = make_model(modalities[::-1], "sum", dtype=torch.float64, seed=1)
    reordered.load_state_dict(original.state_dict())
    results = []
    method_state = None
    for model in (original, reordered):
        method = make_method()
        method.setup(model)
        method_state = method_state or method.state_dict()
        method.load_state_dict(method_state)
        ordered = {name: batch.inputs[name] for name in model.modalities}
        losses = method.compute_losses(model, bmlr.Batch(ordered, batch.targets, tag=tag))
        method.backward(losses, model)
        results.append((losses.terms, {name: p.grad for name, p in model.named_parameters()}))
    (terms, gradients), (other_terms, other_gradients) = results
    assert terms.keys() == other_terms.keys()
    for name, value in terms.items():
        torch.testing.assert_close(other_terms[name], value)
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient)


def assert_half_precision(make_method: MakeMethod, modalities: int, tag: str = "") -> None:
    """Under bfloat16 autocast losses are float32 and right, and gradients finite."""
    batch, model = make_batch(modalities, 12), make_model(modalities)
    batch.tag = tag
    method = make_method()
    method.setup(model)
    state = method.state_dict()
    full = method.compute_losses(model, batch)
    method.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16):
        half = method.compute_losses(model, batch)
    for name, value in half.terms.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, full.terms[name], rtol=0.05, atol=0.05)
    method.backward(half, model)
    gradients = [p.grad for p in (*model.parameters(), *method.parameters()) if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


def assert_every_fusion(make_method: MakeMethod, fusion: str, modalities: int) -> None:
    """An epoch with this fusion changes every encoder and leaves its weights finite."""
    model = make_model(modalities, fusion)
    loop = MethodLoop(model, make_method(), make_batch(modalities, 18), max_epochs=modalities)
    before = {name: p.detach().clone() for name, p in model.encoders.named_parameters()}
    loop.run(range(modalities))
    for name, p in model.encoders.named_parameters():
        assert bool(torch.isfinite(p).all()), name
        assert not torch.equal(p, before[name]), name
    prediction = loop.method.predict(model(loop.train.inputs))
    assert prediction.logits.shape == (18, 3)
    assert set(prediction.unimodal_logits) == set(model.modalities)
