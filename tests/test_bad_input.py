"""Bad input to every public function: an error that names it, of the kinds that are documented, and never another one.

A row is a call and words of the message of its `UnlearnError`; a file that is not there may raise an `OSError`.
"""

from functools import cached_property

import pytest
import torch
from public_calls import public_calls
from sae_folders import D_IN, D_SAE, tensors, tiny
from tiny_entities import parts, settings
from tiny_topic import tiny_tokenizer
from torch import nn
from zoo import base_model, guarded, planted_config

import sae_unlearn
from sae_unlearn import (
    Entity,
    EntitySet,
    GuardrailFitConfig,
    LabeledEntities,
    SAEAlignmentConfig,
    SAEAlignmentTrainer,
    SAEGuardrailConfig,
    SAESlice,
    SparseAutoencoder,
    UnlearnError,
    attach_bundle,
    attach_guardrail,
    detach_guardrail,
    enable_guardrails,
    evaluation,
    fit_guardrail,
    fit_guardrails,
    guardrail_status,
    label_entities,
    list_guardrails,
    push_bundle,
    record_firings,
    save_bundle,
    scout,
    search_guardrail,
    set_action,
    set_threshold,
)


@pytest.fixture
def it(tmp_path):
    """A bare model, one with a guardrail, a tokenizer, an SAE of that model, entities, and a trainer."""

    class Parts:
        tokenizer = tiny_tokenizer()
        sae = SparseAutoencoder(
            torch.eye(32), torch.zeros(32), torch.eye(32), torch.zeros(32), threshold=torch.ones(32), layer=1
        )
        entities = EntitySet([Entity("w2", "thing", {"colour": "w3"})])
        labeled = LabeledEntities(entities, EntitySet(), EntitySet(), (), {})

        @cached_property
        def model(self):
            return base_model("llama")

        @cached_property
        def guarded(self):
            return guarded("llama")

        args = settings(tmp_path)

        @property
        def trainer(self):
            return SAEAlignmentTrainer(args=self.args, **parts())

    return Parts()


def no_entries(found):
    with found:
        pass


ZERO = torch.zeros
BAD = [
    # function, call, words of the message
    (attach_guardrail, lambda it: attach_guardrail("a model", planted_config()), "config|model"),
    (
        attach_guardrail,
        lambda it: attach_guardrail(nn.Linear(2, 2), planted_config(), sae=it.sae),
        "config|feature_ids",
    ),
    (attach_guardrail, lambda it: attach_guardrail(it.model, "no/such/folder"), "neither a folder"),
    (attach_guardrail, lambda it: attach_guardrail(it.model, 7), "source=7"),
    (attach_guardrail, lambda it: attach_guardrail(it.model, None), "None"),
    (attach_guardrail, lambda it: attach_guardrail(it.model, planted_config(), sae=it.sae), "feature_ids"),
    (attach_guardrail, lambda it: attach_guardrail(it.model, ".", adapter_name="a.b"), "adapter_name"),
    (attach_guardrail, lambda it: attach_guardrail(it.model, ".", adapter_name=3), "adapter_name"),
    (attach_guardrail, lambda it: attach_guardrail(it.model, ".", subfolder="../x"), "subfolder"),
    (attach_guardrail, lambda it: attach_guardrail(it.model, ".", revision="main"), "revision"),
    (detach_guardrail, lambda it: detach_guardrail(it.model), "adapter_name=None"),
    (detach_guardrail, lambda it: detach_guardrail(it.guarded, "other"), "other"),
    (detach_guardrail, lambda it: detach_guardrail("a model"), "model"),
    (fit_guardrail, lambda it: fit_guardrail("a model", None, it.sae), "config|model"),
    (fit_guardrail, lambda it: fit_guardrail(it.model, None, "an SAE"), "an SAE .*local folder"),
    (fit_guardrail, lambda it: fit_guardrail(it.model, None, tiny(layer=1)), "d_in"),
    (fit_guardrail, lambda it: fit_guardrail(it.model, None, it.sae), "forget"),
    (fit_guardrail, lambda it: fit_guardrail(it.model, None, it.sae, ["a"], ["b"]), "tokenizer"),
    (fit_guardrail, lambda it: fit_guardrail(it.model, it.tokenizer, it.sae, "w2 w3", ["w4"]), "forget"),
    (fit_guardrail, lambda it: fit_guardrail(it.model, it.tokenizer, it.sae, [3], ["w4"]), "int"),
    (fit_guardrail, lambda it: fit_guardrail(it.model, it.tokenizer, it.sae, [], []), "forget: .*none"),
    (fit_guardrail, lambda it: zero_shot(it, features=[]), "non-empty"),
    (fit_guardrail, lambda it: zero_shot(it, features=[99]), "99"),
    (fit_guardrail, lambda it: zero_shot(it, features=["a"]), "features='a'"),
    (fit_guardrail, lambda it: zero_shot(it, features=3), "features=3"),
    (fit_guardrail, lambda it: zero_shot(it, threshold=2.0), "threshold=2.0"),
    (fit_guardrail, lambda it: zero_shot(it, threshold="high"), "threshold"),
    (fit_guardrail, lambda it: zero_shot(it, clamp_value=5.0), "positive|clamp"),
    (fit_guardrail, lambda it: zero_shot(it, clamp_value="much"), "clamp_value"),
    (fit_guardrail, lambda it: zero_shot(it, layer=9), "layer"),
    (fit_guardrail, lambda it: zero_shot(it, layer="1"), "layer"),
    (fit_guardrail, lambda it: zero_shot(it, preset="other"), "preset"),
    (fit_guardrail, lambda it: zero_shot(it, statistic="mean"), "statistic"),
    (fit_guardrail, lambda it: zero_shot(it, batch_size=0), "batch_size"),
    (fit_guardrail, lambda it: zero_shot(it, max_length=True), "max_length"),
    (fit_guardrail, lambda it: zero_shot(it, num_features=1.5), "num_features"),
    (fit_guardrail, lambda it: zero_shot(it, ratio_percentile=101), "ratio_percentile"),
    (fit_guardrail, lambda it: zero_shot(it, ratio_percentile="99"), "ratio_percentile"),
    (fit_guardrail, lambda it: zero_shot(it, importance="x"), "importance"),
    (fit_guardrail, lambda it: zero_shot(it, adapter_name="a.b"), "adapter_name"),
    (fit_guardrail, lambda it: zero_shot(it, num_feature=3), "Did you mean 'num_features'"),
    (
        fit_guardrail,
        lambda it: zero_shot(it, config={"num_features": 3}),
        "config.*dict",
    ),
    (fit_guardrail, lambda it: zero_shot(it, chat_template="yes"), "chat_template='yes'"),
    (fit_guardrail, lambda it: zero_shot(it, max_held_out=0), "max_held_out=0"),
    (fit_guardrail, lambda it: zero_shot(it, preset="faithful", min_tokens=4), "min_tokens=4.*preset='faithful'"),
    (GuardrailFitConfig, lambda it: GuardrailFitConfig(margin=1.0), "margin=1.0"),
    (GuardrailFitConfig, lambda it: GuardrailFitConfig(refusal=3), "refusal=3"),
    (fit_guardrails, lambda it: fit_guardrails(it.model, it.tokenizer, it.sae, ["w2"], ["w4"]), "mapping"),
    (fit_guardrails, lambda it: fit_guardrails(it.model, it.tokenizer, it.sae, {}, ["w4"]), "forget: "),
    (fit_guardrails, lambda it: fit_guardrails(it.model, it.tokenizer, it.sae, {"a": ["w2"]}, ["w4"], x=1), "'x'"),
    (search_guardrail, lambda it: search_guardrail(it.model, it.tokenizer, [], ["w2"], ["w4"]), "saes"),
    (
        search_guardrail,
        lambda it: search_guardrail(it.model, it.tokenizer, it.sae, ["w2"], ["w4"], minutes=0),
        "minutes",
    ),
    (search_guardrail, lambda it: search_guardrail(it.model, it.tokenizer, it.sae, ["w2"], ["w4"]), "forget"),
    (attach_bundle, lambda it: attach_bundle(it.model, "no/such/folder"), "no/such/folder"),
    (save_bundle, lambda it: save_bundle(it.model, "unwritten"), "guardrail"),
    (push_bundle, lambda it: push_bundle(it.model, "me/it"), "guardrail"),
    (record_firings, lambda it: no_entries(record_firings(it.model)), "model: .*guardrail"),
    (record_firings, lambda it: no_entries(record_firings("a model")), "str"),
    (guardrail_status, lambda it: guardrail_status("a model"), "str"),
    (list_guardrails, lambda it: list_guardrails("a model"), "str"),
    (enable_guardrails, lambda it: enable_guardrails(it.guarded, "other"), "other"),
    (enable_guardrails, lambda it: enable_guardrails(it.model, ["default"]), "default"),
    (set_action, lambda it: set_action(it.guarded, "other", "clamp"), "other"),
    (scout, lambda it: scout(it.model, it.tokenizer, [3], ["w4"]), "int"),
    (scout, lambda it: scout(it.model, it.tokenizer, ["w2"], ["w4"], layers=[9]), "9"),
    (set_threshold, lambda it: set_threshold(it.guarded, "other", threshold=0.3), "other"),
    (set_threshold, lambda it: set_threshold(it.guarded, "default"), "threshold"),
    (set_action, lambda it: set_action(it.guarded, "default", "explode"), "explode"),
    (set_action, lambda it: set_action(it.guarded, "default", "refuse"), "refus"),
    (set_action, lambda it: set_action(it.guarded, "default", "refuse", message="no"), "tokenizer"),
    (SAEGuardrailConfig, lambda it: SAEGuardrailConfig(layer=-1), "layer"),
    (SAEGuardrailConfig, lambda it: SAEGuardrailConfig(threshold=float("nan")), "threshold"),
    (SparseAutoencoder, lambda it: SparseAutoencoder(*four(W_enc=None)), "W_enc"),
    (SparseAutoencoder, lambda it: SparseAutoencoder(*four(b_enc=ZERO(3)), "standard"), "b_enc"),
    (SparseAutoencoder, lambda it: SparseAutoencoder(*four(W_dec=ZERO(D_SAE, D_IN).int()), "standard"), "W_dec"),
    (SparseAutoencoder, lambda it: SparseAutoencoder(*four(), architecture="other"), "other"),
    (SparseAutoencoder, lambda it: SparseAutoencoder(*four(), architecture="topk"), "k"),
    (SparseAutoencoder, lambda it: SparseAutoencoder(*four()), "threshold"),
    (SparseAutoencoder, lambda it: tiny(layer=-2), "layer"),
    (SparseAutoencoder.encode, lambda it: tiny().encode(ZERO(2, D_IN + 1)), "d_in"),
    (SparseAutoencoder.encode, lambda it: tiny().encode(ZERO(2, D_IN).int()), "int32"),
    (SparseAutoencoder.encode, lambda it: tiny().encode([1.0] * D_IN), "Tensor"),
    (SparseAutoencoder.decode, lambda it: tiny().decode(ZERO(2, D_IN)), "d_sae"),
    (SparseAutoencoder.slice, lambda it: tiny().slice([]), "at least one id"),
    (SparseAutoencoder.slice, lambda it: tiny().slice([D_SAE]), "feature_ids: expected ids"),
    (SparseAutoencoder.slice, lambda it: tiny().slice([1, 1]), "more than once"),
    (SparseAutoencoder.slice, lambda it: tiny().slice([True]), "feature_ids: .*True"),
    (SparseAutoencoder.slice, lambda it: tiny().slice("12"), "feature_ids"),
    (SparseAutoencoder.slice, lambda it: tiny("topk").slice([1]), "topk"),
    (SparseAutoencoder.from_pretrained, lambda it: SparseAutoencoder.from_pretrained("no/such/place"), "no/such/place"),
    (SparseAutoencoder.from_pretrained, lambda it: SparseAutoencoder.from_pretrained(3), "source=3: .*got int"),
    (SparseAutoencoder.from_pretrained, lambda it: SparseAutoencoder.from_pretrained(".", dtype=torch.int8), "dtype"),
    (SparseAutoencoder.from_pretrained, lambda it: SparseAutoencoder.from_pretrained(".", subfolder=".."), "subfolder"),
    (SparseAutoencoder.from_saelens, lambda it: SparseAutoencoder.from_saelens(3), "sae_lens"),
    (SparseAutoencoder.pre_activations, lambda it: tiny().pre_activations([1.0]), "h: expected .* got list"),
    (SparseAutoencoder.forward, lambda it: tiny()(ZERO(2, D_IN + 1)), "d_in"),
    (SparseAutoencoder.save_pretrained, lambda it: tiny().save_pretrained(3), "path=3"),
    (SparseAutoencoder.save_pretrained, lambda it: tiny().save_pretrained(__file__), "is a file"),
    (SparseAutoencoder.push_to_hub, lambda it: tiny().push_to_hub(3), "3 cannot be the name of a Hub repository"),
    (SparseAutoencoder.push_to_hub, lambda it: tiny().push_to_hub("a/b", subfolder="../x"), "subfolder="),
    (SAESlice.encode, lambda it: tiny().slice([1]).encode(ZERO(2, D_IN + 1)), "d_in"),
    (SAESlice, lambda it: SAESlice([1], ZERO(2, 2), ZERO(2), ZERO(2), ZERO(2, 2)), "feature_ids|columns"),
    (SAESlice, lambda it: SAESlice([0], ZERO(2, 1), ZERO(1), ZERO(1) - 1, ZERO(1, 2)), "negative"),
    (Entity, lambda it: Entity("", "thing", {}), "entity|name|empty"),
    (Entity.from_dict, lambda it: Entity.from_dict({}), "'entity_type'"),
    (Entity.from_dict, lambda it: Entity.from_dict(3), "int"),
    (Entity, lambda it: Entity(3, "thing", {}), "3|int"),
    (EntitySet, lambda it: EntitySet([3]), "int"),
    (EntitySet, lambda it: EntitySet(3), "entities=3"),
    (EntitySet.from_json, lambda it: EntitySet.from_json("no-such-file.json"), "no-such-file"),
    (EntitySet.from_json, lambda it: EntitySet.from_json(None), "path=None"),
    (EntitySet.from_file, lambda it: EntitySet.from_file(3), "path=3"),
    (EntitySet.from_file, lambda it: EntitySet.from_file("people.txt"), "'.txt'"),
    (EntitySet.from_csv, lambda it: EntitySet.from_csv(1), "path=1"),
    (EntitySet.from_dataset, lambda it: EntitySet.from_dataset(None), "entities=None"),
    (EntitySet.from_dataset, lambda it: EntitySet.from_dataset({"train": []}), "dataset: .*train"),
    (EntitySet.to_json, lambda it: it.entities.to_json(3), "path=3"),
    (EntitySet.to_json, lambda it: it.entities.to_json("people.csv"), "'.csv'"),
    (EntitySet.of_type, lambda it: it.entities.of_type(3), "entity_type=3"),
    (EntitySet.without, lambda it: it.entities.without(["w2"]), "got str"),
    (EntitySet.without, lambda it: it.entities.without(None), "entities=None"),
    (EntitySet.sample, lambda it: it.entities.sample(9), "n=9: .*1"),
    (EntitySet.sample, lambda it: it.entities.sample(0.5), "n=0.5"),
    (EntitySet.split, lambda it: it.entities.split("half"), "half"),
    (EntitySet.split, lambda it: it.entities.split(float("nan")), "nan"),
    (EntitySet.split, lambda it: it.entities.split(0.9, 0.9), "fractions="),
    (LabeledEntities.divide, lambda it: LabeledEntities.divide(3, [], str, {}), "entities=3"),
    (LabeledEntities.divide, lambda it: LabeledEntities.divide(it.entities, [], str, {}), "answers: .*'w2'"),
    (LabeledEntities.answers_about, lambda it: it.labeled.answers_about("w2"), "entity='w2'"),
    (LabeledEntities.save, lambda it: it.labeled.save(3), "path=3"),
    (LabeledEntities.load, lambda it: LabeledEntities.load(3), "path=3"),
    (LabeledEntities.load, lambda it: LabeledEntities.load("no/such"), "no/such"),
    (label_entities, lambda it: label_entities(it.model, it.tokenizer, it.entities, samples="many"), "samples"),
    (label_entities, lambda it: label_entities(it.model, it.tokenizer, it.entities, samples=0), "samples"),
    (SAEAlignmentConfig, lambda it: SAEAlignmentConfig(output_dir="x", toward="other"), "toward"),
    (SAEAlignmentConfig, lambda it: SAEAlignmentConfig(output_dir="x", away_weight=-1.0), "away_weight"),
    (SAEAlignmentTrainer, lambda it: SAEAlignmentTrainer(**parts() | {"args": 3}), "args: .*got int"),
    (
        SAEAlignmentTrainer,
        lambda it: SAEAlignmentTrainer(**parts() | {"args": it.args, "model": "a model"}),
        "model='a",
    ),
    (SAEAlignmentTrainer.evaluate, lambda it: it.trainer.evaluate([3]), "entities: .*got int"),
    (SAEAlignmentTrainer.portrait, lambda it: it.trainer.portrait(["w2"]), "expected an EntitySet"),
    (SAEAlignmentTrainer.push_to_hub, lambda it: it.trainer.push_to_hub(license=3), "license=3"),
    (SAEAlignmentTrainer.create_model_card, lambda it: it.trainer.create_model_card(license=3), "license=3"),
    (SAEAlignmentTrainer.add_to_card, lambda it: it.trainer.add_to_card(other=None), "'other'"),
    (SAEAlignmentTrainer.add_to_card, lambda it: it.trainer.add_to_card(audit=3), "audit: .*got int"),
    (evaluation.wilson_interval, lambda it: evaluation.wilson_interval(3, 2), "3"),
    (evaluation.bootstrap_interval, lambda it: evaluation.bootstrap_interval(ZERO(0)), "value|empty|0"),
    (evaluation.evaluate, lambda it: evaluation.evaluate(it.model, it.tokenizer), "forget|retain|measure"),
    (evaluation.evaluate, lambda it: evaluation.evaluate(it.model, it.tokenizer, forget=[3]), "int|forget"),
    (evaluation.row_losses, lambda it: evaluation.row_losses(it.model, it.tokenizer, [""]), "token"),
    (evaluation.row_divergences, lambda it: evaluation.row_divergences(it.model, it.tokenizer, ["w2"]), "base"),
]


def zero_shot(it, **changed):
    given = {"features": [3], "threshold": 0.2, "clamp_value": -5.0} | changed
    return fit_guardrail(it.model, it.tokenizer, it.sae, progress=False, **given)


def four(**changed):
    given = tensors() | changed
    return [given[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")]


@pytest.mark.parametrize(
    ("call", "words"), [row[1:] for row in BAD], ids=[f"{i}-{r[0].__name__}" for i, r in enumerate(BAD)]
)
def test_bad_input_is_refused_by_name(call, words, it):
    with pytest.raises((UnlearnError, OSError), match=rf"(?i){words}") as caught:
        call(it)
    assert type(caught.value) is not UnicodeDecodeError
    assert len(str(caught.value)) > 10
    if "model" in vars(it):  # made for this call
        assert guardrail_status(it.model).guardrails == ()
    if "guarded" in vars(it):
        assert guardrail_status(it.guarded).verdict == "guarded"


WITHOUT_A_ROW = {
    "Firing": "a result",
    "AttachedGuardrail": "a result",
    "GuardrailStatus": "a result",
    "LabeledEntities": "a result; `divide` and `load` make it",
    "SAEAlignmentTrainer.compute_loss": "called by `Trainer`, with what it has collated",
    "SAEAlignmentTrainer.get_eval_dataloader": "called by `Trainer`, with what `evaluate` has checked",
    "SAEAlignmentTrainer.train": "it passes its arguments to `Trainer`",
    "SAEAlignmentTrainer.training_step": "called by `Trainer`, with what it has collated",
    "SAEAlignmentTrainer.log": "called by `Trainer`, with what it has measured",
    "SAEGuardrailConfig.check_kwargs": "called by PEFT, with what a config file holds",
}


def test_every_public_function_and_method_has_a_row():
    tested, public = {row[0] for row in BAD}, dict(public_calls(sae_unlearn))
    assert [name for name, call in public.items() if call not in tested and name not in WITHOUT_A_ROW] == []
    assert set(WITHOUT_A_ROW) <= set(public)
