"""Learning rates, freezing and clipping by modality."""

import pytest
import torch
from torch import nn

import bmlr
from bmlr.parameters import optimizer_like
from method_loop import set_up
from test_wrap import make_text_batch, wrap_text_model
from zoo import make_batch, make_model


def names_of(model, parameters):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in parameters}


def test_groups_hold_every_trained_parameter_once_under_its_modality():
    model = make_model(3)
    groups = bmlr.param_groups(
        model, lr={"audio": 3e-5, "fusion": 0.2}, weight_decay={"audio": 0.1, "text": 0.0}, freeze=["video"]
    )
    assert [{k: v for k, v in group.items() if k != "params"} for group in groups] == [
        {"name": "audio", "lr": 3e-5, "weight_decay": 0.1},
        {"name": "fusion", "lr": 0.2},
        {"name": "text", "weight_decay": 0.0},
    ]
    for group, part in zip(groups, ("encoders.audio.", "fusion.", "encoders.text."), strict=True):
        assert all(name.startswith(part) for name in names_of(model, group["params"]))
    trained = [p for group in groups for p in group["params"]]
    assert names_of(model, trained) == {name for name, _ in model.named_parameters() if "encoders.video" not in name}
    assert len(trained) == len({id(p) for p in trained})
    plain = bmlr.param_groups(make_model())
    assert [group["name"] for group in plain] == ["others"]


def test_a_step_moves_each_modality_by_its_own_rate():
    model = make_model(dtype=torch.float64)
    reference = make_model(dtype=torch.float64)
    batch = make_batch(2, dtype=torch.float64)
    for net, optimizer in (
        (model, torch.optim.SGD(bmlr.param_groups(model, lr={"audio": 0.3}), lr=0.1)),
        (reference, torch.optim.SGD(reference.parameters(), lr=0.1)),
    ):
        balancer = bmlr.Balancer(net, bmlr.BMLR(), optimizer, max_epochs=1)
        for given in balancer.epoch([batch]):
            balancer.step(given)
    start = make_model(dtype=torch.float64).state_dict()
    for name, value in model.state_dict().items():
        factor = 3 if name.startswith("encoders.audio") else 1
        torch.testing.assert_close(value - start[name], factor * (reference.state_dict()[name] - start[name]))


@pytest.mark.parametrize("name", [n for n in bmlr.methods.available() if n != "AGM"])
def test_every_method_leaves_a_frozen_encoder_and_its_statistics_alone(name):
    cls = bmlr.methods.get(name)
    model = make_model(batch_norm=True)
    torch.manual_seed(0)
    method = cls(**cls.conformance.short)
    set_up(method, model)
    optimizer = torch.optim.SGD(bmlr.param_groups(model, freeze=["video"]), lr=0.05)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    balancer = bmlr.Balancer(model, method, optimizer, max_epochs=1)
    batch = make_batch(2, 16)
    rows = [({u: x[i] for u, x in batch.inputs.items()}, batch.targets[i]) for i in range(16)]
    loader = torch.utils.data.DataLoader(rows, 8)
    model.train()  # what a loop says at every epoch
    for given in balancer.epoch(loader, loader):
        balancer.step(given)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert not [key for key in changed if key.startswith("encoders.video")]
    assert any(key.startswith("encoders.audio") for key in changed) == cls.trains


def test_frozen_parts_stay_in_evaluation_mode_and_nothing_else_does():
    model = make_model(batch_norm=True)
    outer = nn.Sequential(model)
    model.freeze("video")
    for module in (model, outer):
        module.train()
        assert not any(part.training for part in model.encoders["video"].modules())
        assert all(part.training for part in (*model.encoders["audio"].modules(), *model.fusion.modules()))
    wrapped = wrap_text_model()
    text = next(iter(wrapped.modalities))
    wrapped.train()
    wrapped.freeze(text)
    wrapped.net.train(), wrapped.train()
    assert not any(part.training for part in wrapped.encoders[text].modules())
    assert not any(p.requires_grad for p in wrapped.encoders[text].parameters())
    for other in wrapped.modalities[1:]:
        assert all(part.training for child in wrapped.encoders[other].children() for part in child.modules())
    assert all(p.requires_grad for p in wrapped.fusion.parameters())
    wrapped(make_text_batch(4))


class Shared(nn.Module):
    def __init__(self, common):
        super().__init__()
        self.common, self.out_features = common, 5

    def forward(self, x):
        return self.common(x[:, :4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": {"vidoe": 1e-3}}, r"`lr` should name .* audio, video, or fusion. Found 'vidoe'. Did you mean 'video'"),
        ({"weight_decay": {"x": 0.1}}, "`weight_decay` should name modalities"),
        ({"freeze": ["audoi"]}, "`freeze` should name .* Did you mean 'audio'"),
        ({"lr": {"audio": 1e-3}, "freeze": ["audio"]}, "`lr` names 'audio', which `freeze` keeps from training"),
        ({"freeze": ["audio", "video", "fusion"]}, "`freeze` should leave a part of the model to train"),
        ({"lr": {"audio": -1}}, r"`lr\['audio'\]` should be a positive"),
    ],
)
def test_wrong_options_are_told_in_one_sentence_and_change_nothing(options, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        bmlr.param_groups(model, **options)
    if "fusion" not in options.get("freeze", ()):
        assert all(p.requires_grad for p in model.parameters())
        assert not model.frozen


def test_shared_parameters_are_told():
    common = nn.Linear(4, 5)
    model = bmlr.MultimodalClassifier({"audio": Shared(common), "video": Shared(common)}, 3)
    for options in ({"lr": {"audio": 1e-3}}, {"freeze": ["audio"]}, {"lr": {"audio": 1e-3, "video": 1e-4}}):
        with pytest.raises(ValueError, match="'audio' and 'video' share the parameter 'encoders.audio.common.weight'"):
            bmlr.param_groups(model, **options)
    groups = bmlr.param_groups(model, lr={"audio": 1e-3, "video": 1e-3})
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    bmlr.param_groups(model, freeze=["audio", "video"])
    optimizer = torch.optim.SGD(model.fusion.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="clip the joint norm"):
        bmlr.Balancer(model, bmlr.BMLR(), optimizer, max_epochs=1, clip_norm={"audio": 1.0})


def test_gradients_are_clipped_by_modality():
    moved = {}
    for clip_norm in (None, {"audio": 1e-3, "fusion": 2e-3}):
        model = make_model(dtype=torch.float64)
        start = {key: value.clone() for key, value in model.state_dict().items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        balancer = bmlr.Balancer(model, bmlr.methods.OGMGE(), optimizer, max_epochs=1, clip_norm=clip_norm)
        torch.manual_seed(0)
        for given in balancer.epoch([make_batch(2, dtype=torch.float64)]):
            balancer.step(given)
        moved[clip_norm is None] = {
            part: float(torch.stack([(v - start[k]).norm() for k, v in model.state_dict().items() if part in k]).norm())
            for part in ("encoders.audio", "encoders.video", "fusion")
        }
    assert moved[False]["encoders.audio"] == pytest.approx(1e-3, rel=1e-3)
    assert moved[False]["fusion"] == pytest.approx(2e-3, rel=1e-3)
    assert moved[False]["encoders.video"] == moved[True]["encoders.video"] > 1e-2
    with pytest.raises(ValueError, match=r"`clip_norm` should name .* Did you mean 'audio'"):
        bmlr.Balancer(model, bmlr.BMLR(), optimizer, max_epochs=1, clip_norm={"audoi": 1.0})


def test_an_unknown_part_freezes_nothing():
    model = make_model()
    with pytest.raises(KeyError):
        model.freeze("audio", "audoi")
    assert all(p.requires_grad for p in model.train().parameters())
    assert model.frozen == frozenset()


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
        lambda groups: torch.optim.Adam(groups, lr=0.1, amsgrad=True),
        lambda groups: torch.optim.AdamW(groups, lr=0.1),
    ],
)
def test_an_optimiser_of_the_same_kind_has_the_options_of_now_and_no_state(make):
    model = make_model()
    optimizer = make(bmlr.param_groups(model, lr={"audio": 0.5}))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    steps = []
    optimizer.register_step_pre_hook(lambda *_: steps.append(1))

    def step(which):
        which.zero_grad()
        model(make_batch().inputs).logits.square().sum().backward()
        which.step()

    step(optimizer)
    schedule.step()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    kept = {p: {k: v.clone() for k, v in state.items() if torch.is_tensor(v)} for p, state in optimizer.state.items()}
    other = optimizer_like(optimizer, model.encoders["audio"].parameters())
    assert type(other) is type(optimizer)
    assert [(group["name"], group["lr"]) for group in other.param_groups] == [("audio", 0.25)]
    assert not other.state
    step(other)
    assert len(steps) == 1
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == names_of(model, model.encoders["audio"].parameters())
    for p, state in kept.items():
        assert all(torch.equal(optimizer.state[p][k], v) for k, v in state.items())
    with pytest.raises(ValueError, match="`parameters` should be among those of the optimiser"):
        optimizer_like(optimizer, make_model(seed=3).parameters())
