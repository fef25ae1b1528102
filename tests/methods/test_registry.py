"""Methods by name."""

import inspect
import math
import re
from typing import get_args

import pytest
import torch

import bmlr
from bmlr import methods
from bmlr.methods._types import Family
from method_loop import set_up
from zoo import make_batch, make_method, make_model


def test_names_are_classes_of_the_package():
    names = methods.available()
    assert len(set(names)) == len(names)
    for name in names:
        cls = getattr(methods, name)
        assert methods.get(name) is cls
        assert name in methods.__all__
        assert issubclass(cls, bmlr.Method)
        assert not inspect.isabstract(cls)


def test_every_public_method_is_listed():
    public = {
        name
        for name in methods.__all__
        if inspect.isclass(cls := getattr(methods, name))
        and issubclass(cls, bmlr.Method)
        and not inspect.isabstract(cls)
    }
    assert public == set(methods.available())


#: Names in the papers, which the command takes too.
LITERATURE = {
    "OGM-GE": "OGMGE", "Uniform-Baseline": "UniformBaseline", "Only-TPO": "OnlyTPO", "Uni-Distill": "UniDistill",
    "Diagnosing & Re-learning": "DiagnosingRelearning", "Vanilla-Reshape": "VanillaReshape",
}  # fmt: skip


def test_names_are_unambiguous():
    """No name, however it is written, leads to two methods."""
    owners = {}
    for name in methods.available():
        assert owners.setdefault(re.sub(r"[\s_&-]", "", name).casefold(), name) == name
        assert methods.get(name) is getattr(methods, name)
    for written, name in LITERATURE.items():
        assert methods.get(written) is getattr(methods, name)


@pytest.mark.parametrize("name", ["OnlyTPO", "only-tpo", "Only-TPO", "ONLY_TPO", "only tpo", "onlytpo", "o-n l_y&TPO"])
def test_spelling_does_not_matter(name):
    assert methods.get(name) is methods.OnlyTPO


@pytest.mark.parametrize(("wrong", "meant"), [("BMRL", "BMLR"), ("onlytop", "OnlyTPO"), ("uniform", "UniformBaseline")])
def test_unknown_name(wrong, meant):
    with pytest.raises(
        ValueError,
        match=rf"^Parameter `method` should be one of Joint, Ensemble, .*'{wrong}'`. Did you mean '{meant}'\?",
    ):
        methods.get(wrong)


def test_create():
    method = methods.create("bmlr", alpha=0.5, beta=0)
    assert isinstance(method, bmlr.BMLR)
    assert method.hparams == {"alpha": 0.5, "beta": 0.0}
    with pytest.raises(ValueError, match="`beta` should lie in"):
        methods.create("BMLR", beta=2)


#: The parameters of each method where none are given: those of its official code, or of its paper, or said to be ours.
DEFAULTS = {
    "AGM": "alpha=1.0, clip=1.0, first_epoch=0, last_epoch=19",
    "AMCo": "threshold=0.5, ramp=0.3, rate=0.9, weight=1.0, seed=0",
    "AMSS": "temperature=0.2, unbiased=False, factor='exact', scope='weight', seed=0",
    "AUG": (
        "check_every=20, max_classifiers=10, hidden=256, residual_weight=0.5, residual_labels='paper', score='paper', "
        "ratio=1.0, tolerance=0.01, register_new=True, weights=None"
    ),
    "BMLR": "alpha=1.0, beta=0.5",
    "CGGM": "rho=1.3, weight=0.2, direction='gradients', clamp=2.0",
    "CML": "weight=6.4, order='sample', first_epoch=0, last_epoch=None, seed=0",
    "DGL": "alpha=4.0, clip=40.0, surrogate='zero'",
    "DiagnosingRelearning": "reinit_epoch=20, reinit_num=3, strength=3.0, starts=1",
    "Greedy": "epsilon=0.01, window=5, first_epoch=1, ratio=4",
    "InfoReg": "beta=1.0, threshold=0.05, unimodal_losses=None, form='paper', leading=None",
    "Joint": "",
    "LFM": (
        "alpha='fitted', head='late_avg', label_weight=0.05, schedule_epochs=None, meta_lr=0.0001, "
        "meta_size=8, meta_scope='first', seed=0"
    ),
    "MLA": "projection=True, weighting=None, weights=None, width=None",
    "MBSD": "weight=1.0, first_epoch=0, last_epoch=None",
    "MLB": "alpha=0.5, beta=2.0",
    "MMPareto": "boost=1.5, rescale='tensor'",
    "MSLR": "rates=None, memory=5",
    "OGMGE": "alpha=0.3, noise=True, scope='weight', reference='mean', first_epoch=0, last_epoch=50, seed=0",
    "OPM": "rate=0.5, strength=0.5, probability=0.7, warmup=6, seed=0",
    "OnlyReshape": "alpha=1.0, beta=0.5",
    "OnlyTPO": "",
    "PDF": "calibrate=True",
    "GBlend": "super_epoch=10, mode='online', rollout_epochs=None, weights='paper'",
    "ModalitySMV": "warmup=5, fraction=0.2, alpha=1.0, curve='linear', seed=0",
    "SampleSMV": "warmup=5",
    "PMR": (
        "alpha=1.0, momentum=0.2, entropy_weight=0.01, entropy_epochs=10, fraction=0.1, form='paper', last_epoch=None"
    ),
    "ReconBoost": (
        "t1=4, t2=4, w1=5.0, w2=1.0, r_init=1.0, r_learnable=True, shared_head=None, hidden=256, "
        "reset_optimizer_per_phase=True, mcr='none', mcr_weight=0.5, clean_bn=False, pretrained=False, order=None"
    ),
    "QMF": "weight=0.1, margin='required', temperature=10.0",
    "Remix": "warmup=10, weight=0.5, gamma=1.0, masked_encoder='run', order='sequential'",
    "MCR": (
        "game='greedy', weight=0.1, unimodal=0.01, contrast=1.0, temperature=0.5, permutations=32, form='paper', "
        "dropout=False, pretrained=False, seed=0"
    ),
    "MIDAS": "weight=1.0, step_size=0.05, warmup=5, hardness='shifted', update='difference', seed=0",
    "TCMax": "samples=None, seed=0",
    "UniDistill": "gate=True",
    "UniReshaping": "epsilon=0.1, targeted=False",
    "Ensemble": "average='log-probabilities', weights='equal'",
    "Pretrained": "freeze=False",
    "Unimodal": "modality=None",
    "UMT": "weight=10.0",
    "G2D": (
        "temperature=1.0, logit_weight=1.0, feature_weight=1.0, prioritised_epochs=None, ranking='validation', "
        "scope='weight'"
    ),
    "UniformBaseline": "weight=0.5",
    "VanillaReshape": "alpha=1.0, beta=0.5",
    "CMLBalanceBenchmark": "weight=0.1, order='epoch', first_epoch=0, last_epoch=80, seed=0",
    "LFMBalanceBenchmark": (
        "alpha='learnable', head='fusion', label_weight=0.95, schedule_epochs=None, meta_lr=0.0001, "
        "meta_size=None, meta_scope='first'"
    ),
    "MBSDBalanceBenchmark": "weight=1.0, first_epoch=0, last_epoch=80",
    "ReconBoostBalanceBenchmark": (
        "t1=1, t2=1, w1=5.0, w2=1.0, r_init=0.01, r_learnable=True, shared_head=None, hidden=0, "
        "reset_optimizer_per_phase=False, mcr='none', mcr_weight=0.5, clean_bn=False, order=None"
    ),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name):
    assert repr(methods.create(name)) == f"{name}({DEFAULTS[name]})"


#: Parameters at the lower end of their ranges.
LEAST = {
    "AGM": {"alpha": 0.0, "first_epoch": 0, "last_epoch": 0},
    "AMCo": {"threshold": 0.0, "ramp": 0.0, "rate": 0.0, "weight": 0.0, "seed": 0},
    "AMSS": {"seed": 0},
    "AUG": {"check_every": 1, "max_classifiers": 1, "hidden": 1, "residual_weight": 0.0, "tolerance": 0.0},
    "BMLR": {"beta": 0.0},
    "CGGM": {"weight": 0.0},
    "CML": {"weight": 0.0, "first_epoch": 0, "last_epoch": 0, "seed": 0},
    "DiagnosingRelearning": {"reinit_epoch": 1, "reinit_num": 0},
    "InfoReg": {"beta": 0.0, "threshold": 0.0},
    "Greedy": {"epsilon": 0.0, "window": 1, "first_epoch": 0, "ratio": 1},
    "LFM": {"alpha": "constant", "label_weight": 0.0, "schedule_epochs": 1, "meta_size": 1, "seed": 0},
    "MBSD": {"weight": 0.0, "first_epoch": 0, "last_epoch": 0},
    "MLB": {"alpha": 0.0, "beta": 0.0},
    "OGMGE": {"alpha": 0.0, "first_epoch": 0, "last_epoch": 0, "seed": 0},
    "OPM": {"rate": 0.0, "strength": 0.0, "probability": 0.0, "warmup": 0, "seed": 0},
    "OnlyReshape": {"beta": 0.0},
    "QMF": {"weight": 0.0},
    "ReconBoost": {"t1": 1, "t2": 0, "w1": 0.5, "w2": 0.0, "hidden": 0, "mcr_weight": 0.0},
    "Remix": {"warmup": 0, "weight": 0.0, "gamma": 0.0},
    "MCR": {"weight": 0.0, "unimodal": 0.0, "contrast": 0.0, "permutations": 1, "seed": 0},
    "MIDAS": {"weight": 0.0, "step_size": 0.0, "warmup": 0, "seed": 0},
    "TCMax": {"samples": 0, "seed": 0},
    "UniReshaping": {"epsilon": 0.0},
    "UniformBaseline": {"weight": 0.0},
    "VanillaReshape": {"beta": 0.0},
}


@pytest.mark.parametrize("name", LEAST)
def test_the_lower_end_of_a_range_is_in_it(name):
    assert methods.create(name, **LEAST[name]).hparams.items() >= LEAST[name].items()


@pytest.mark.parametrize("name", methods.available())
@pytest.mark.parametrize(("training", "epoch"), [(True, 0), (True, 90), (False, 0)])
def test_the_fused_loss_has_its_name_always(name, training, epoch):
    model, batch, method = make_model(), make_batch(), make_method(name)
    set_up(method, model)
    method.train(training)
    method.epoch = epoch
    losses = method.compute_losses(model, batch)
    unimodal = {name: value for name, value in losses.terms.items() if name != "fused"}
    assert len(unimodal) == len(losses.terms) - (not method.conformance.modality_parameter)
    torch.testing.assert_close(losses.total, losses.terms.get("fused", 0) + sum(unimodal.values()))


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        *((name, "") for name in methods.available() if not methods.get(name).needs_all_modalities),
        ("ReconBoost", "boost:video"),
        ("Remix", "remix:video"),
        ("AUG", "modality:video"),
        ("MLA", "modality:video"),
    ],
)
def test_what_stands_where_a_modality_is_absent_is_not_read(name, tag):
    mask, model, method = torch.arange(8) % 3 > 0, make_model(), make_method(name)
    set_up(method, model)
    state, terms = method.state_dict(), []
    for filler in (0.0, math.nan):
        batch = make_batch(present={"video": mask})
        batch.tag = tag
        batch.inputs["video"][~mask] = filler
        method.load_state_dict(state)
        terms.append(method.compute_losses(model, batch).terms)
    assert terms[0] == terms[1]


@pytest.mark.parametrize("name", methods.available())
def test_facts(name):
    info = methods.get(name).info
    assert all((info.paper, info.venue, info.cost))
    assert info.url.startswith("https://")
    assert info.family in get_args(Family)
