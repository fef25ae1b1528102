"""Every method under ``torch.compile``."""

import copy

import pytest
import torch
from subjects import METHODS, compute, gradients, kinds, make_loop, same


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_model_gives_the_same_losses_and_gradients(name):
    for fresh, batch in kinds(make_loop(name, 2, "film")):
        compiled = copy.deepcopy(fresh)
        compiled.model.compile(backend="aot_eager")
        for encoder in compiled.model.encoders.values():  # what the methods that encode one by one call
            encoder.compile(backend="aot_eager")
        expected, losses = compute(fresh, batch), compute(compiled, batch)
        assert same(losses.terms, expected.terms)
        assert same(gradients(compiled.model, compiled.method), gradients(fresh.model, fresh.method))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # the compiler's own import
def test_a_whole_step_of_bmlr_compiles_to_one_graph():
    loop = make_loop("BMLR", 3)
    batch, other = loop.train, copy.deepcopy(loop)

    @torch.compile(fullgraph=True, backend="inductor")
    def step(inputs, targets):
        losses = other.method(other.model(inputs), targets)
        return losses.total

    expected = compute(loop, batch).total
    total = step(batch.inputs, batch.targets)
    total.backward()
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-11)
    assert same(gradients(other.model, other.method), gradients(loop.model, loop.method), rtol=1e-7, atol=1e-9)
