"""No step of a method reads a value from the device, for which a GPU would be waited for."""

import dataclasses

import pytest
import torch
from subjects import SUBJECTS, compute, kinds, make_loop, method_class

from bmlr.methods._support import SteppedMethod
from zoo import make_model


@pytest.mark.parametrize("with_absent", [False, True])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_step_reads_no_value(subject, with_absent, monkeypatch):
    """On the meta device, which has none."""
    if with_absent and method_class(subject).needs_all_modalities:
        pytest.skip("needs all modalities")
    draw = SteppedMethod.generator

    def generator(self, number, device="cpu"):  # there are none of the meta device
        return None if torch.device(device).type == "meta" else draw(self, number, device)

    monkeypatch.setattr(SteppedMethod, "generator", generator)
    for fresh, batch in kinds(make_loop(subject, 3, dtype=torch.float32)):
        encode = fresh.model.encode
        # The model itself reads who is there, to leave the others out of its encoders.
        monkeypatch.setattr(fresh.model, "encode", lambda name, inputs, _=None, encode=encode: encode(name, inputs))
        fresh.model.to("meta")
        fresh.method.to("meta")
        mask = torch.ones(18, dtype=torch.bool, device="meta")
        moved = dataclasses.replace(batch.to("meta"), present={"video": mask} if with_absent else None)
        compute(fresh, moved)
        fresh.method.adjust_gradients(fresh.model)


def test_the_meta_device_finds_a_read():
    logits = (
        make_model().to("meta").fusion({u: torch.zeros(2, d, device="meta") for u, d in (("audio", 7), ("video", 5))})
    )
    for read in (lambda x: float(x.sum()), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.cpu()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(logits)
