"""What cannot be trained is refused by name, and the model is left as it was given."""

import pytest
from tiny_entities import entities, parts, settings
from tiny_trainer import trainer

from sae_unlearn.alignment import AlignmentError, SAEAlignmentTrainer
from sae_unlearn.errors import UnlearnError


@pytest.mark.slow
def test_what_cannot_be_trained_is_refused_by_name(tmp_path):
    known, unknown = entities("known", 36), entities("unknown", 24)
    cases = [
        ({"train_dataset": ["w5 w6"]}, "entities: expected an Entity or a mapping, got str"),
        ({"train_dataset": known[:0]}, "train_dataset: .*got no entities"),
        ({"known": known}, "train_dataset, known: .*got 4"),
        ({"unknown": unknown[:5]}, "unknown: .*'thing'.*got 5"),
        ({"min_separation": 1.0, "num_known_latents": 1, "num_unknown_latents": 0}, "min_separation="),
        ({"sae": None}, "Set layer="),
        ({"layer": 2}, "the SAE reads the output of layer 1"),
    ]
    for options, message in cases:
        with pytest.raises(UnlearnError, match=message):
            trainer(tmp_path, **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("preset", "best"),
        ("toward", "nearest"),
        ("away", "far"),
        ("kl_weight", -1.0),
        ("toward_weight", float("nan")),
        ("pairs_per_target", 0),
        ("num_known_latents", 1.5),
        ("min_separation", 2.0),
        ("held_out_fraction", 1.0),
        ("layer", -1),
        ("retain_budget", 0.0),
        ("retain_positions", 0),
        ("torch_compile", True),
    ],
)
def test_settings_out_of_range_are_refused_by_name(tmp_path, option, value):
    with pytest.raises(AlignmentError, match=option):
        settings(tmp_path, **{option: value})


def test_a_refusal_leaves_the_model_as_it_was_given(tmp_path):
    given = parts()
    model = given["model"]
    names, flags = list(model.state_dict()), {n: p.requires_grad for n, p in model.named_parameters()}
    args = settings(tmp_path, min_separation=1.0, num_known_latents=1, num_unknown_latents=0)
    with pytest.raises(AlignmentError, match="min_separation="):
        SAEAlignmentTrainer(args=args, **given)
    assert list(model.state_dict()) == names
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert not hasattr(model, "peft_config")
