"""Recall among a closed set of answers."""

import pytest
import torch
from tiny_topic import tiny_tokenizer
from zoo import base_model

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.metrics.ranking import candidate_log_probs, rank_answers


PROMPTS = ["w3 w4 w5", "w6", "w7 w8 w9 w10 w11"]
# the second and third share two tokens, the fourth one with them
CANDIDATES = ["w20", "w30 w31 w32", "w30 w31 w33 w34", "w30 w40", "w50 w51"]
TELLING = [[20], [30, 31, 32], [30, 31, 33], [30, 40], [50]]


def plain(model, tokenizer, prompt, tokens):
    row = tokenizer(prompt).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([row + tokens])).logits[0].double().log_softmax(dim=-1)
    return sum(float(logits[len(row) - 1 + k, token]) for k, token in enumerate(tokens))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_log_probabilities_are_the_plain_ones(name, batch_size):
    model, tokenizer = base_model(name), tiny_tokenizer()
    expected = torch.tensor([[plain(model, tokenizer, p, t) for t in TELLING] for p in PROMPTS], dtype=torch.float64)
    found = candidate_log_probs(model, tokenizer, PROMPTS, CANDIDATES, batch_size=batch_size)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_prior_does_not_win():
    """Candidate 0 is likely after everything; the right one is only likelier than usual."""
    scores = torch.tensor([[-1.0, -3.0, -9.0], [-1.0, -5.0, -5.0], [-1.0, -5.0, -5.0]], dtype=torch.float64)
    found = rank_answers(scores, [1, 2, 2])
    assert found.ranks.tolist() == [0, 0, 0]
    assert found.recall.value == 1.0
    assert rank_answers(scores, [1, 2, 2], priors=torch.zeros(3)).ranks.tolist() == [1, 1.5, 1.5]


def test_a_model_that_says_the_same_of_everything_recalls_nothing():
    found = rank_answers(torch.zeros(6, 9), [0, 1, 2, 3, 4, 5])
    assert found.recall.value == 0.0
    assert found.mean_rank.value == 4.0


def test_prompts_of_one_subject_count_once():
    found = rank_answers(torch.eye(4).double(), [0, 1, 2, 3], priors=torch.zeros(4), subjects=["a", "a", "b", "b"])
    assert found.recall.n == found.mean_rank.n == 2


@pytest.mark.parametrize(
    ("prompts", "candidates", "message"),
    [
        (["w3 "], ["w4", "w5"], "prompts='w3 '"),
        (["w3"], ["w4", "w4"], "candidates='w4': .*'w4'"),
        (["w3"], ["w4", "w4 w5"], "candidates='w4': .*'w4 w5'"),
        (["w3"], ["w4", ""], "candidates='': .*'w3'"),
    ],
)
def test_what_cannot_be_ranked_is_named(prompts, candidates, message):
    with pytest.raises(UnlearnError, match=message):
        candidate_log_probs(base_model("llama"), tiny_tokenizer(), prompts, candidates)
