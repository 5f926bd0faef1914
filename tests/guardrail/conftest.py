"""Fixtures that several files share; what `usual` is made of is in `fitting`."""

import pytest


@pytest.fixture(scope="module")
def usual():
    """A model with a guardrail fitted to it in the usual way; not to be changed."""
    from fitting import fit

    return fit()


@pytest.fixture(scope="session")
def expected():
    """Logits with the guardrail, and without."""
    from guarded_calls import logits
    from zoo import base_model, guarded

    return logits(guarded("llama")), logits(base_model("llama"))


@pytest.fixture
def by_operators(monkeypatch):
    """A function that leaves every step on the CPU to torch's operators from then on."""
    from sae_unlearn.guardrail.kernels import dispatch as step_choice

    return lambda: monkeypatch.setattr(step_choice, "on_host", lambda hidden: False)


@pytest.fixture
def compiles():
    """Skips where torch cannot compile the model as it is, without a guardrail (an older torch than transformers' own
    compiled code asks for)."""
    import torch
    from forward_calls import forward
    from zoo import base_model, padded, token_ids

    torch._dynamo.reset()
    bare = torch.compile(base_model("llama"), fullgraph=True, backend="eager")
    try:
        forward(bare, **padded([token_ids(1, 5)[0]]))
    except torch._dynamo.exc.TorchDynamoException as error:
        pytest.skip(f"torch {torch.__version__} cannot compile the bare model: {type(error).__name__}")
