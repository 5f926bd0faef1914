"""Bad input of the measures of representation, refused by name."""

from types import SimpleNamespace

import pytest
import torch
from tiny_topic import tiny_tokenizer
from zoo import base_model

from benchmarks.representation.collapse import collapse_ratio
from benchmarks.representation.held_out_latents import held_out_firing, held_out_latents
from benchmarks.representation.probes import BaseProbe, fit_base_probe, read_base_probe, refit_discriminator
from benchmarks.representation.states import entity_states
from sae_unlearn import Entity, SparseAutoencoder, UnlearnError


@pytest.fixture(scope="module")
def it():
    """A model with its tokenizer, and an SAE of it."""
    eye, zeros = torch.eye(32), torch.zeros(32)
    sae = SparseAutoencoder(eye, zeros, eye, zeros, threshold=torch.ones(32), layer=1)
    return SimpleNamespace(bare=(base_model("llama"), tiny_tokenizer()), sae=sae)


def states(entities=4, width=32):
    return torch.randn(entities, 2, width, generator=torch.Generator().manual_seed(0))


def probe():
    return fit_base_probe(states(), -states())


ENTITIES = [Entity("w2", "thing", {"colour": "w3"})]
BAD = [
    # function, call, words of the message
    (collapse_ratio, lambda it: collapse_ratio([1], [2]), "targets.*list"),
    (collapse_ratio, lambda it: collapse_ratio(states(1), states(4)), r"targets=\[1, 2, 32\]"),
    (entity_states, lambda it: entity_states(*it.bare, [], 1), r"entities=\[\]"),
    (entity_states, lambda it: entity_states(*it.bare, [3], 1), "entities.*int"),
    (entity_states, lambda it: entity_states(*it.bare, ENTITIES, 9, templates=["{entity}"]), "layer=9"),
    (fit_base_probe, lambda it: fit_base_probe(states(0), states(4)), "at least one"),
    (fit_base_probe, lambda it: fit_base_probe(states(width=3), states(width=4)), "shapes"),
    (read_base_probe, lambda it: read_base_probe("a probe", states(), states()), "probe.*str"),
    (held_out_latents, lambda it: held_out_latents("an SAE", states(), states(), []), "sae.*str"),
    (held_out_latents, lambda it: held_out_latents(it.sae, states(width=3), states(width=3), []), "d_in"),
    (held_out_latents, lambda it: held_out_latents(it.sae, states(), states(), [], number=0), "number=0"),
    (held_out_firing, lambda it: held_out_firing(it.sae, [99], states(), states(), states()), "ids=99"),
    (held_out_firing, lambda it: held_out_firing(it.sae, [], states(), states(), states()), r"ids=\[\]"),
    (refit_discriminator, lambda it: refit_discriminator(states(9), states(9), states(9), kind="x"), "kind='x'"),
    (refit_discriminator, lambda it: refit_discriminator(states(0), states(9), states(9)), "targets=0"),
    (BaseProbe.p_known, lambda it: probe().p_known([1.0]), "states.*list"),
    (BaseProbe.p_known, lambda it: probe().p_known(states(width=31)), "width 31"),
]


@pytest.mark.parametrize(
    ("call", "words"), [row[1:] for row in BAD], ids=[f"{i}-{r[0].__name__}" for i, r in enumerate(BAD)]
)
def test_bad_input_is_refused_by_name(call, words, it):
    with pytest.raises(UnlearnError, match=rf"(?i){words}"):
        call(it)
