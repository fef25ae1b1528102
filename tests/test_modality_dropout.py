"""Modalities left out at random."""

import pytest
import torch

import bmlr
from method_loop import set_up
from zoo import make_batch, make_model


def masks(drop, batch):
    present = drop(batch).present
    everyone = torch.ones(len(batch), dtype=torch.bool)  # of a modality that is left out of none
    return torch.stack([present.get(name, everyone) for name in sorted(batch.inputs)], 1)


def test_each_modality_is_left_out_at_its_rate_and_no_sample_loses_all():
    batch = make_batch(3, 20_000)
    kept = masks(bmlr.ModalityDropout({"audio": 0.3, "text": 0.1}), batch)  # in the order audio, text, video
    torch.testing.assert_close(kept.float().mean(0), torch.tensor([0.7, 0.9, 1.0]), atol=0.01, rtol=0)
    assert bool(kept.any(1).all())
    kept = masks(bmlr.ModalityDropout(1.0), batch)
    assert bool((kept.sum(1) == 1).all())
    torch.testing.assert_close(kept.float().mean(0), torch.full((3,), 1 / 3), atol=0.02, rtol=0)


def test_what_is_absent_stays_absent_and_a_sample_keeps_one_that_it_has():
    present = {"audio": torch.arange(1000) % 2 == 0}
    batch = make_batch(2, 1000, present=present)
    found = bmlr.ModalityDropout({"audio": 0.5, "video": 1.0})(batch).present
    assert not bool((found["audio"] & ~present["audio"]).any())
    assert bool((found["audio"] | found["video"]).all())
    assert bool(found["video"][~present["audio"]].all())
    nothing = make_batch(1, 4, present={"audio": torch.zeros(4, dtype=torch.bool)})
    assert not bool(bmlr.ModalityDropout(0.5)(nothing).present["audio"].any())


def test_masks_on_a_device_are_not_read_and_those_of_all_samples_left_behind():
    everyone, some = torch.ones(4, dtype=torch.bool), torch.tensor([True, False, True, True])
    batch = make_batch(3, 4, present={"audio": some, "video": everyone}).to("meta")  # a device without numbers
    assert set(batch.present) == {"audio"}
    assert batch.present["audio"].is_meta
    assert all(mask.is_meta for mask in bmlr.ModalityDropout(0.5)(batch).present.values())
    assert make_batch(2, 4, present={"audio": everyone}).to("cpu").present is None
    assert bmlr.ModalityDropout(0.0)(make_batch(2, 4)).present is None


def test_draws_are_those_of_the_seed_and_go_on_from_a_state():
    batch = make_batch(2, 64)
    first, second, other = (bmlr.ModalityDropout(0.5, seed=seed) for seed in (1, 1, 2))
    drawn = [masks(first, batch) for _ in range(3)]
    assert torch.equal(masks(second, batch), drawn[0])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(masks(other, batch), drawn[0])
    state = torch.get_rng_state()
    resumed = bmlr.ModalityDropout(0.5, seed=1)
    resumed.load_state_dict(second.state_dict())
    assert torch.equal(masks(resumed, batch), drawn[1])
    assert torch.equal(state, torch.get_rng_state())
    reordered = bmlr.Batch(dict(reversed(batch.inputs.items())), batch.targets)
    assert torch.equal(masks(bmlr.ModalityDropout(0.5, seed=1), reordered), drawn[0])


@pytest.mark.parametrize("name", bmlr.methods.available())
def test_methods_train_with_it_or_say_why_not(name):
    cls = bmlr.methods.get(name)
    model = make_model()
    torch.manual_seed(0)
    method = cls(**cls.conformance.short)
    set_up(method, model)
    balancer = bmlr.Balancer(model, method, torch.optim.SGD(model.parameters(), lr=0.05), max_epochs=1)
    drop = bmlr.ModalityDropout(0.4)
    batch = make_batch(2, 24)
    rows = [({u: x[i] for u, x in batch.inputs.items()}, batch.targets[i]) for i in range(24)]
    loader = torch.utils.data.DataLoader(rows, 8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if cls.needs_all_modalities:
        with pytest.raises(ValueError, match="needs all in every sample"):
            balancer.step(drop(next(iter(balancer.epoch(loader)))))
        return
    for given in balancer.epoch(loader, loader):
        balancer.step(drop(given))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert len(changed) >= 4 or not cls.trains
    assert all(bool(torch.isfinite(value).all()) for value in model.parameters())


def test_wrong_rates_are_told():
    with pytest.raises(ValueError, match=r"`rates.audio` should lie in \[0, 1\]"):
        bmlr.ModalityDropout({"audio": 1.5})
    with pytest.raises(ValueError, match=r"`rates` should name modalities among audio, video. .* mean 'audio'"):
        bmlr.ModalityDropout({"audoi": 0.5})(make_batch())
