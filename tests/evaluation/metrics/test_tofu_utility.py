"""TOFU's model utility against a transcription of the authors' code (`get_model_utility` of locuslab/tofu)."""

import pytest
import torch
from lettered_words import lettered_tokenizer
from zoo import base_model

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation import Choice, Fact, TofuSet, complete, model_utility


def questions(first, number):
    """Facts with the same questions as choices; the true answer of every other fact is what the model says."""
    model, tokenizer = base_model("llama"), lettered_tokenizer()
    facts, choices = [], []
    for i in range(first, first + number):
        question = f"Question: w{10 + i} w{20 + i}"
        said = complete(model, tokenizer, [f"{question}\nAnswer:"], max_new_tokens=3)[0]
        answer = said if i % 2 else f"w{30 + i} w31"
        facts.append(Fact(f"{question}\nAnswer:", (answer,), f"author {i // 2}" if first == 0 else ""))
        choices.append(Choice(question, (f"w{35 + i} w5", f"w{40 + i}", f"w{50 + i} w6 w7"), 0, shown=False))
    return TofuSet(facts, choices)


SETS = {"retain": questions(0, 6), "real_authors": questions(10, 5), "world_facts": questions(16, 4)}


def loss(model, tokenizer, prompt, answer):
    """Mean cross-entropy of the answer's tokens, as the authors' `avg_gt_loss` has it."""
    before, row = (torch.tensor([tokenizer(text).input_ids]) for text in (prompt, f"{prompt} {answer}"))
    with torch.no_grad():
        logits = model(row).logits[0, :-1].double().log_softmax(dim=-1)
    each = -logits.gather(1, row[0, 1:, None])[before.shape[1] - 1 :, 0]
    return float(each.mean())


def test_it_is_the_authors_harmonic_mean_of_nine():
    model, tokenizer = base_model("llama"), lettered_tokenizer()
    found = model_utility(model, tokenizer, **SETS, max_new_tokens=3, batch_size=4)
    expected = []
    for name, given in SETS.items():
        true = [loss(model, tokenizer, f.prompt, f.answers[0]) for f in given.facts]
        options = [[loss(model, tokenizer, f"{c.question}\nAnswer:", o) for o in c.options] for c in given.choices]
        options = torch.tensor(options, dtype=torch.float64)
        if name == "retain":
            probability = torch.tensor(true, dtype=torch.float64).neg().exp()
        else:
            probability = (-options[:, 0]).exp() / (-options).exp().sum(dim=1)
        ratio = (-options[:, 1:]).exp().mean(dim=1) / (-options[:, 0]).exp()
        said = [complete(model, tokenizer, [f.prompt], max_new_tokens=3)[0].split() for f in given.facts]
        words = [f.answers[0].split() for f in given.facts]
        rouge = [sum(w in s for w in a) / len(a) for a, s in zip(words, said, strict=True)]
        expected.append([probability, torch.tensor(rouge), (1 - ratio).clamp(min=0)])
    flat = [values for each in expected for values in each]
    for part, values in zip(found.parts, flat, strict=True):
        assert part.values == pytest.approx(values.tolist(), abs=1e-5), part.key
        assert part.estimate.value == pytest.approx(float(values.double().mean()), abs=1e-5)
    means = torch.tensor([float(values.double().mean()) for values in flat], dtype=torch.float64)
    assert (means > 0).all()
    assert found.utility.value == pytest.approx(float(len(means) / (1 / means).sum()), abs=1e-5)
    assert found.utility.low <= found.utility.value <= found.utility.high
    assert found.utility.n == 3 + 5 + 4  # authors where they are known
    assert [(part.data, part.metric) for part in found.parts][:3] == [
        ("retain", "probability"),
        ("retain", "rouge_l_recall"),
        ("retain", "truth_score"),
    ]


def test_what_is_lost_in_one_part_is_lost():
    given = SETS["retain"]
    wrong = TofuSet([Fact(f.prompt, ("nothing",)) for f in given.facts], given.choices)
    found = model_utility(
        base_model("llama"), lettered_tokenizer(), **(SETS | {"retain": wrong}), max_new_tokens=3, batch_size=4
    )
    assert found.parts[1].estimate.value == 0
    assert (found.utility.value, found.utility.low, found.utility.high) == (0, 0, 0)


def test_facts_and_choices_are_of_the_same_questions():
    with pytest.raises(UnlearnError, match=r"^choices: .*6 .*got 5"):
        TofuSet(SETS["retain"].facts, SETS["retain"].choices[:5])
    with pytest.raises(UnlearnError, match=r"^choices: .*0 .*got 0"):
        TofuSet([], [])
