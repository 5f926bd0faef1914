"""Fitting: forward passes up to one layer, any corpus, no trace on the model, and errors that say what to mend."""

import copy
import json
import re
from functools import partial

import pytest
import torch
import zoo
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_topic import tiny_tokenizer, topic_sae, topic_texts
from transformers import AutoModelForCausalLM
from zoo import BOS, EOS, PAD, base_model, padded, plant, planted_config

from sae_unlearn import (
    GuardrailError,
    attach_guardrail,
    detach_guardrail,
    fit_guardrail,
    record_firings,
)
from sae_unlearn.backbone.decoder_layers import find_decoder_layers
from sae_unlearn.backbone.residuals import residual_batches
from sae_unlearn.guardrail import fit_passes
from sae_unlearn.guardrail.calibration import between
from sae_unlearn.guardrail.config_checks import CHOICES
from sae_unlearn.guardrail.model import guard_layers
from sae_unlearn.guardrail.selection import FeatureSums


TOKENIZER = tiny_tokenizer()
FORGET, RETAIN = topic_texts("forget", 32, seed=1), topic_texts("retain", 48, seed=2)

random_sae = partial(zoo.random_sae, d_sae=240, seed=4, threshold=2.5)
SAE = random_sae()


def fit(model=None, forget=FORGET, retain=RETAIN, tokenizer=TOKENIZER, sae=SAE, **kwargs):
    settings = {"num_features": 5, "ratio_percentile": 90.0, "threshold_percentile": 90.0, "progress": False} | kwargs
    return fit_guardrail(base_model("llama") if model is None else model, tokenizer, sae, forget, retain, **settings)


def config_of(model, name="default"):
    return model.peft_config[name]


def tensors(model, name="default"):
    layer = next(x for x in guard_layers(model) if name in x.guard_config)
    parts = layer.sae_guardrail_encoder[name], layer.sae_guardrail_decoder[name]
    return {key: p for part in parts for key, p in part.named_parameters()} | {"dec": parts[1].weight}


def same_fit(a, b, exact=True):
    left, right = config_of(a), config_of(b)
    assert left.feature_ids == right.feature_ids
    if exact:
        assert left.threshold == right.threshold
    else:
        assert left.threshold == pytest.approx(right.threshold, abs=1e-6)
    for name, tensor in tensors(a).items():
        torch.testing.assert_close(tensors(b)[name], tensor, **({"atol": 0, "rtol": 0} if exact else {}))


@pytest.fixture(scope="module")
def usual():
    return fit()


def token_rows(texts):
    return [TOKENIZER(text).input_ids for text in texts]


# ---------------------------------------------------------------------------------------------------------- what is run


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "mixtral", "falcon_h1", "mamba"])
def test_only_layers_up_to_the_guarded_one_are_run_and_without_gradients(architecture):
    model, calls = base_model(architecture), {}
    place = find_decoder_layers(model)
    watched = {f"layer {i}": layer for i, layer in enumerate(place.layers)} | {"head": model.get_output_embeddings()}
    final = next(m for n, m in place.backbone.named_children() if n in ("norm", "ln_f", "final_layernorm", "norm_f"))
    for name, module in (watched | {"norm": final}).items():

        def note(module, args, name=name):
            calls[name] = calls.get(name, 0) + 1
            assert not torch.is_grad_enabled()
            assert not module.training

        module.register_forward_pre_hook(note)
    try:
        fit(model)
    except GuardrailError as error:  # a random SAE need not fit every model; what was run is what counts here
        assert "threshold" in str(error) or "active" in str(error)  # noqa: PT017
    assert set(calls) == {"layer 0", "layer 1"}
    assert calls["layer 0"] == calls["layer 1"] > 4


def state(model):
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    )


def assert_same_state(model, before):
    now = state(model)
    assert now[0].keys() == before[0].keys()
    assert all(torch.equal(now[0][name], tensor) for name, tensor in before[0].items())
    assert now[1:] == before[1:]
    assert not hasattr(model, "peft_config")


class Interrupted(Exception):
    pass


def breaking(after):
    yield from FORGET[:after]
    raise Interrupted


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ({"forget": lambda: breaking(40)}, Interrupted),
        ({"retain": lambda: breaking(20)}, Interrupted),
        ({"retain": lambda: RETAIN[:6]}, GuardrailError),
        ({"forget": lambda: [3, 4]}, GuardrailError),
    ],
    ids=["late in forget", "in retain", "too few", "not text"],
)
def test_an_error_leaves_the_model_as_it_was(broken, error, training):
    model = base_model("llama").train(training)
    next(model.parameters()).requires_grad_(False)
    before = state(model)
    with pytest.raises(error):
        fit(model, batch_size=1, **{name: make() for name, make in broken.items()})
    assert_same_state(model, before)


def test_detached_after_fitting_the_model_is_as_it_was(usual):
    model = base_model("llama")
    model.model.layers[0].train()
    before = state(model)
    detach_guardrail(fit(model))
    assert_same_state(model, before)


def test_fitting_changes_nothing_the_caller_holds():
    forget, features = list(FORGET), [1, 2, 3]
    sae = copy.deepcopy(SAE)
    fit(forget=forget, features=features, sae=sae, threshold=0.5, clamp_value=-9.0)
    assert forget == FORGET
    assert features == [1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(sae.parameters(), SAE.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------------ the same result


def as_generator(texts):
    return (text for text in texts)


def as_dataset(texts):
    return Dataset.from_dict({"text": texts, "label": [0] * len(texts)})


def as_iterable_dataset(texts):
    return as_dataset(texts).to_iterable_dataset()


def as_mappings(texts):
    return [{"text": text} for text in texts]


def as_token_rows(texts):
    return [{"input_ids": row} for row in token_rows(texts)]


def as_padded_batches(side):
    def batches(texts):
        rows = [torch.tensor(row) for row in token_rows(texts)]
        return [padded(rows[i : i + 7], side) for i in range(0, len(rows), 7)]

    return batches


KINDS = {
    "generator": as_generator,
    "dataset": as_dataset,
    "iterable_dataset": as_iterable_dataset,
    "mappings": as_mappings,
    "token_rows": as_token_rows,
    "left_padded": as_padded_batches("left"),
    "right_padded": as_padded_batches("right"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_corpus_gives_the_same_guardrail(kind, usual):
    same_fit(usual, fit(forget=KINDS[kind](FORGET), retain=KINDS[kind](RETAIN)))


def test_fitting_is_deterministic(usual):
    torch.manual_seed(1234)
    same_fit(usual, fit())
    first, second = (json.dumps(config_of(m).to_dict(), sort_keys=True, default=list) for m in (usual, fit()))
    assert first == second


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_does_not_matter(batch_size, usual):
    same_fit(usual, fit(batch_size=batch_size), exact=False)


def test_another_text_column_is_read():
    data = Dataset.from_dict({"body": FORGET}), Dataset.from_dict({"body": RETAIN})
    same_fit(fit(), fit(forget=data[0], retain=data[1], text_column="body"))


def test_empty_texts_are_passed_over(usual):
    holes = [*(" \n",), *FORGET[:3], "", *FORGET[3:]]
    same_fit(usual, fit(forget=holes))


def test_a_guardrail_or_a_lora_on_the_model_joins_in_or_not():
    """A guardrail that is on the model is out of force while another is fitted; a LoRA is part of the model."""
    alone = fit()
    joined = attach_guardrail(base_model("llama"), planted_config(num_features=0, feature_ids=[1, 2], threshold=0.0,
                                                                  clamp_value=-50.0), sae=SAE)  # fmt: skip
    joined = fit(joined, adapter_name="new")
    assert config_of(joined, "new").feature_ids == config_of(alone).feature_ids
    assert config_of(joined, "new").threshold == config_of(alone).threshold
    with record_firings(joined) as firings, torch.no_grad():
        joined(input_ids=torch.tensor([token_rows(FORGET)[0]]))
    assert {f.adapter for f in firings} == {"default", "new"}
    lora = get_peft_model(
        base_model("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["up_proj"])
    )
    other = fit(lora, adapter_name="new")
    assert tensors(other, "new")["clamp"].tolist() != tensors(alone)["clamp"].tolist()


# --------------------------------------------------------------------------------------------------- streaming and rows


def test_corpora_are_read_as_the_fit_goes_on_and_once():
    model, read, at_first_pass = base_model("llama"), [], []
    model.model.layers[0].register_forward_pre_hook(lambda *_: at_first_pass.append(len(read)))

    def stream():
        for i, text in enumerate(topic_texts("forget", 400, seed=3)):
            read.append(i)
            yield text

    fit(model, forget=stream(), batch_size=1)
    assert read == list(range(400))
    assert at_first_pass[0] < 100


def test_rows_put_aside_are_bounded_and_the_rest_goes_to_the_selection():
    calibration = config_of(fit(max_held_out=8)).calibration["corpora"]
    assert calibration["retain"]["threshold_rows"] == 8
    assert calibration["retain"]["report_rows"] == 8
    assert calibration["retain"]["selection_rows"] == 32
    assert calibration["forget"] == {
        "documents": 32,
        "rows": 32,
        "tokens": sum(map(len, token_rows(FORGET))),
        "selection_rows": 16,
        "threshold_rows": 8,
        "report_rows": 8,
    }


def test_report_rows_have_no_part_in_features_or_threshold():
    """Other text in the documents that are kept for the report changes what is reported, and nothing else."""
    forget = [RETAIN[i] if i % 4 == 2 else text for i, text in enumerate(FORGET)]
    retain = [FORGET[i % 32] if i % 4 == 3 else text for i, text in enumerate(RETAIN)]
    for evidence in ("any", "log_ratio"):
        clean, poisoned = fit(evidence=evidence), fit(forget=forget, retain=retain, evidence=evidence)
        same_fit(clean, poisoned)
        before, after = config_of(clean).calibration, config_of(poisoned).calibration
        assert before["statistic_threshold_rows"] == after["statistic_threshold_rows"]
        if evidence == "any":
            assert before["fire_rate_forget"]["rate"] > after["fire_rate_forget"]["rate"]
            assert before["fire_rate_retain"]["rate"] < after["fire_rate_retain"]["rate"]
        assert sum(before["statistic_forget"]) > sum(after["statistic_forget"])
        assert sum(before["statistic_retain"]) < sum(after["statistic_retain"])


def test_the_selection_rows_figures_of_the_features_are_recorded(usual):
    config = config_of(usual)
    found = config.calibration["features"]
    for role, texts, uses in (("forget", FORGET, (0, 3)), ("retain", RETAIN, (0, 2))):
        rows = [row for i, row in enumerate(token_rows(texts)) if i % 4 in uses]
        batches = residual_batches(base_model("llama"), rows, 1, 8)
        tokens = torch.cat([batch.residual[batch.kept & (batch.input_ids != BOS)] for batch in batches])
        a = SAE.encode(tokens)[:, config.feature_ids].double()
        density = (a > 0).double().mean(dim=0)
        assert found[f"score_{role}"] == pytest.approx(a.square().mean(dim=0).tolist(), rel=1e-4)
        assert found[f"density_{role}"] == pytest.approx(density.tolist(), rel=1e-4)
        assert found[f"mean_active_{role}"] == pytest.approx((a.mean(dim=0) / density).nan_to_num().tolist(), rel=1e-4)
    assert found["score_forget"] == sorted(found["score_forget"], reverse=True)


def test_threshold_rows_have_no_part_in_the_features(usual):
    retain = [FORGET[i % 32] if i % 4 == 1 else text for i, text in enumerate(RETAIN)]
    poisoned = fit(retain=retain, threshold_percentile=50.0)
    assert config_of(poisoned).feature_ids == config_of(usual).feature_ids
    assert config_of(poisoned).threshold != config_of(usual).threshold


def test_long_documents_are_cut_into_rows_with_bos_each(usual):
    joined = [" ".join(FORGET[i : i + 4]) for i in range(0, 32, 4)]
    model = fit(forget=joined, max_length=16)
    counts = config_of(model).calibration["corpora"]["forget"]
    lengths = [len(TOKENIZER(text).input_ids) - 1 for text in joined]
    assert counts["documents"] == 8
    assert counts["rows"] == sum(-(-n // 15) for n in lengths)
    assert counts["tokens"] == sum(lengths) + counts["rows"]


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_or_not(shown, capsys):
    fit(progress=shown)
    assert ("features" in capsys.readouterr().err) is shown


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("given", [list, iter], ids=["lists", "streams"])
def test_every_bar_ends_at_its_last_row(given, processes, monkeypatch, capsys):
    """Also where documents are cut into several rows, where nobody knows how many there are, and where another process
    runs the last batch."""
    monkeypatch.setattr(fit_passes, "is_mine", lambda number: number % processes == 0)
    corpora = config_of(
        fit(forget=given(FORGET), retain=given(RETAIN), max_length=12, batch_size=5, progress=True)
    ).calibration["corpora"]
    uses = {"features": "selection_rows", "threshold": "threshold_rows", "report": "report_rows"}
    wanted = {f"{role}: {use}": rows[name] for role, rows in corpora.items() for use, name in uses.items()}
    assert ends_of_bars(capsys.readouterr().err) == {title: f"100% {n}/{n}" for title, n in wanted.items()}


def ends_of_bars(said):
    """The last that each progress bar showed."""
    shown = re.findall(r"(\w+: \w+): +(\d+%)\|[^|]*\| (\d+/\d+)", said)
    return {title: f"{share} {rows}" for title, share, rows in shown}


# ------------------------------------------------------------------------------------------- special and outlier tokens


def test_special_tokens_have_no_part(usual):
    """BOS, EOS and PAD inside the text change neither features nor dose nor threshold."""
    model = base_model("llama")
    for layer in model.model.layers:  # a model without attention: tokens do not see one another
        layer.self_attn.o_proj.weight.data.zero_()
    plain = fit(copy.deepcopy(model), forget=as_token_rows(FORGET), retain=as_token_rows(RETAIN))
    strewn = [
        [{"input_ids": [*row["input_ids"][:4], EOS, PAD, *row["input_ids"][4:], EOS]} for row in as_token_rows(texts)]
        for texts in (FORGET, RETAIN)
    ]
    same_fit(plain, fit(copy.deepcopy(model), forget=strewn[0], retain=strewn[1]), exact=False)
    assert config_of(plain).special_token_ids == [PAD, BOS, EOS]


def model_with_an_outlying_token():
    """A token that no text holds, 95, has fifty times the norm, and tokens do not see one another."""
    model = base_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[95] *= 50
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


@pytest.mark.parametrize(
    ("every", "asked", "left_out"),
    [(1, {}, True), (4, {}, False), (1, {"evidence": "any"}, True), (1, {"preset": "faithful"}, False)],
)
def test_the_gate_leaves_out_outlier_tokens_where_most_rows_have_one(every, asked, left_out):
    texts = [
        [
            {"input_ids": [95, *row["input_ids"]] if i % every == 0 else row["input_ids"]}
            for i, row in enumerate(as_token_rows(some))
        ]
        for some in (FORGET, RETAIN)
    ]
    sae = random_sae()
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    model = fit(model_with_an_outlying_token(), *texts, sae=sae, **asked)
    config = config_of(model)
    assert config.evidence == ("any" if asked else "log_ratio")
    usual = config.calibration["residual_norm_median"]
    assert config.outlier_norm == (pytest.approx(2 * usual) if left_out else None)
    row = torch.tensor([[95, *as_token_rows(FORGET)[0]["input_ids"]]])
    with record_firings(model) as firings, torch.no_grad():
        model(input_ids=row)
        model(input_ids=row[:, 1:])
    with_it, without = firings
    assert with_it.tokens == without.tokens + 1
    if "preset" not in asked:  # as published, a row's first token is never hot
        assert (with_it.hot_tokens == without.hot_tokens) is left_out


def test_outlier_tokens_have_no_part_in_scores_and_dose():
    model = model_with_an_outlying_token()
    sae = random_sae()
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    plain = fit(copy.deepcopy(model), forget=as_token_rows(FORGET), sae=sae)
    strewn = [{"input_ids": [*row["input_ids"], 95, 95, 95]} for row in as_token_rows(FORGET)]
    outliers = fit(copy.deepcopy(model), forget=strewn, sae=sae)
    assert config_of(plain).calibration["outlier_tokens_left_out"] == 0
    assert config_of(outliers).calibration["outlier_tokens_left_out"] == 3 * 16
    assert config_of(outliers).feature_ids == config_of(plain).feature_ids
    torch.testing.assert_close(tensors(outliers)["clamp"], tensors(plain)["clamp"])


# ------------------------------------------------------------------------------------------------- kinds of base models


def test_a_bfloat16_base_is_fitted_in_full_precision_sums(usual):
    model = fit(base_model("llama").to(torch.bfloat16))
    assert len(set(config_of(model).feature_ids) & set(config_of(usual).feature_ids)) >= 4
    assert all(p.dtype == torch.float32 for p in tensors(model).values())
    with record_firings(model) as firings, torch.no_grad():
        model.generate(input_ids=torch.tensor([token_rows(FORGET)[2]]), max_new_tokens=4, do_sample=False)
    assert firings[0].tokens > 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_sae_in_half_precision_is_summed_in_full_precision(dtype):
    """Activations above 255, as large models have them, whose squares are more than float16 holds."""
    sums, halves = FeatureSums(SAE), FeatureSums(copy.deepcopy(SAE).to(dtype))
    tokens = 1000 * torch.randn(500, zoo.WIDTH, generator=torch.Generator().manual_seed(0))
    for each in (sums, halves):
        each.add(tokens)
    for name, total in sums.state().items():
        torch.testing.assert_close(halves.state()[name], total, rtol=0.01, atol=50.0)


def test_a_model_with_a_device_map(usual, tmp_path):
    base_model("llama").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="auto")
    same_fit(usual, fit(model))


def test_an_offloaded_model(usual):
    from accelerate import cpu_offload

    model = base_model("llama")
    cpu_offload(model, execution_device="cpu")
    assert next(model.parameters()).is_meta
    same_fit(usual, fit(model))


def test_a_quantised_base(usual, tmp_path):
    torchao = pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    assert torchao
    base_model("llama").save_pretrained(tmp_path)
    quantised = TorchAoConfig(Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantised)
    assert type(model.model.layers[0].mlp.up_proj.weight).__name__ != "Parameter"
    guarded = fit(model)
    assert len(set(config_of(guarded).feature_ids) & set(config_of(usual).feature_ids)) >= 4
    guarded.save_pretrained(tmp_path / "guard")
    again = attach_guardrail(AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path / "guard")
    with record_firings(again) as firings, torch.no_grad():
        again(input_ids=torch.tensor([token_rows(FORGET)[2]]))
        guarded(input_ids=torch.tensor([token_rows(FORGET)[2]]))
    assert len(firings) == 1


@pytest.mark.parametrize("architecture", ["gemma3", "mixtral", "falcon_h1", "phi"])
def test_other_architectures_are_fitted_and_fire_on_the_topic(architecture):
    model = base_model(architecture)
    options = {"num_features": 20, "ratio_percentile": 99.0, "threshold_percentile": 75.0}
    counted = config_of(fit(copy.deepcopy(model), sae=topic_sae(model), evidence="any", **options)).calibration
    assert counted["fire_rate_forget"]["rate"] > counted["fire_rate_retain"]["rate"]
    weighed = config_of(fit(model, sae=topic_sae(model), **options)).calibration
    assert weighed["fire_rate_forget"]["rate"] > 0
    assert weighed["auroc"] > 0.6


# ----------------------------------------------------------------------------------------------------------------- dose


def edit_norms(model, texts):
    """Norms of the edit at hot tokens of texts, and of the residual stream."""
    layer, norms = guard_layers(model)[0], []
    encoder, decoder = layer.sae_guardrail_encoder["default"], layer.sae_guardrail_decoder["default"]
    with model.disable_adapter():
        for batch in residual_batches(model.get_base_model(), token_rows(texts), 1, 8):
            content = batch.kept & (batch.input_ids > 1)
            activations = encoder(batch.residual)
            hot = (activations > 0).any(-1) & content
            where = activations > 0 if config_of(model).clamp_mode == "fired" else torch.ones_like(activations).bool()
            norms.append(decoder(activations, where)[hot].norm(dim=-1))
    return torch.cat(norms)


def test_dose_in_units_of_the_feature_is_a_multiple_of_its_mean_active_value():
    model = fit(clamp_scale=3.0, clamp_unit="feature")
    held_out = [row for i, row in enumerate(token_rows(FORGET)) if i % 4 in (0, 3)]
    active = []
    with model.disable_adapter():
        for batch in residual_batches(model.get_base_model(), held_out, 1, 8):
            active.append(SAE.encode(batch.residual[batch.kept & (batch.input_ids > 1)]))
    active = torch.cat(active)[:, config_of(model).feature_ids]
    means = active.sum(0) / (active > 0).sum(0)
    assert config_of(model).calibration["outlier_tokens_left_out"] == 0
    torch.testing.assert_close(tensors(model)["clamp"], -3.0 * means, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("clamp_mode", ["fired", "all"])
@pytest.mark.parametrize("scale", [1.2, 2.0])
def test_dose_in_units_of_the_residual_gives_an_edit_of_that_norm(scale, clamp_mode):
    model = fit(clamp_scale=scale, clamp_unit="residual", clamp_mode=clamp_mode)
    norms = edit_norms(model, [text for i, text in enumerate(FORGET) if i % 4 == 1])
    median = config_of(model).calibration["residual_norm_median"]
    assert float(norms.square().mean().sqrt() / median) == pytest.approx(scale, rel=1e-3)
    assert config_of(model).calibration["edit_to_residual"] == pytest.approx(scale, rel=1e-3)


def test_absolute_dose_is_one_value_for_all():
    for given in ({"clamp_value": -500.0}, {"clamp_scale": 500.0, "clamp_unit": "absolute"}):
        model = fit(**given)
        assert tensors(model)["clamp"].tolist() == [-500.0] * 5
        assert (config_of(model).clamp_unit, config_of(model).clamp_value) == ("absolute", -500.0)


# ------------------------------------------------------------------------------------------------------ without corpora


def test_zero_shot_needs_neither_corpora_nor_tokenizer():
    model = fit_guardrail(
        base_model("llama"), None, SAE, features=[7, 3, 11], threshold=0.25, clamp_value=-4.0, progress=False
    )
    config = config_of(model)
    assert (config.feature_ids, config.threshold, config.clamp_value) == ([7, 3, 11], 0.25, -4.0)
    part = SAE.slice([7, 3, 11])
    found = tensors(model)
    assert torch.equal(found["dec"], part.W_dec)
    assert torch.equal(found["threshold"], part.threshold)
    with record_firings(model) as firings, torch.no_grad():
        model(input_ids=torch.tensor([token_rows(FORGET)[0]]))
    assert len(firings) == 1
    assert "fire_rate_forget" not in config.calibration


def test_given_features_are_calibrated_on_retain_text():
    chosen = config_of(fit()).feature_ids
    model = fit(features=chosen)
    assert config_of(model).feature_ids == chosen
    assert config_of(model).threshold == config_of(fit()).threshold


def test_action_record_never_edits():
    model = fit(action="record")
    ids = torch.tensor([row[:15] for row in token_rows(FORGET)])
    with torch.no_grad(), record_firings(model) as firings:
        found = model(input_ids=ids).logits
    assert any(f.fired for f in firings)
    with torch.no_grad():
        assert torch.equal(found, base_model("llama")(input_ids=ids).logits)


@pytest.mark.parametrize("scope", ["sequence", "prefix"])
@pytest.mark.parametrize("statistic", CHOICES["statistic"])
def test_the_reported_statistics_are_what_the_gate_then_finds(statistic, scope):
    sae = random_sae()
    with torch.no_grad():
        sae.threshold.fill_(4.0)  # few hot tokens
    gate = {"statistic": statistic, "gate_scope": scope, "window": 10, "drift": 0.4}
    model = fit(sae=sae, num_features=3, threshold_percentile=75.0, **gate)
    held_out = [row for i, row in enumerate(token_rows(RETAIN)) if i % 4 == 3]
    with record_firings(model) as firings, torch.no_grad():
        for row in held_out:
            model(input_ids=torch.tensor([row]))
    reported = config_of(model).calibration
    rate = sum(f.fired for f in firings) / len(held_out)
    assert reported["fire_rate_retain"]["rate"] == pytest.approx(rate, abs=1e-4)
    assert reported["fire_rate_retain"]["n"] == len(held_out) == 12
    if statistic in ("window", "cusum") or scope == "sequence":
        assert reported["statistic_retain"] == pytest.approx([f.statistic for f in firings], abs=1e-4)


def test_the_threshold_is_the_percentile_of_the_retain_rows_put_aside():
    for percentile in (25.0, 50.0, 90.0):
        calibration = config_of(fit(threshold_percentile=percentile, margin=0.0)).calibration
        rows = torch.tensor(calibration["statistic_threshold_rows"], dtype=torch.float64)
        assert len(rows) == 12
        assert calibration["threshold"] == pytest.approx(float(rows.quantile(percentile / 100)), abs=1e-4)


@pytest.mark.parametrize("margin", [0.25, 0.75])
def test_the_margin_moves_the_threshold_towards_the_lower_quartile_of_the_forget_rows_put_aside(margin):
    low, moved = (config_of(fit(threshold_percentile=50.0, margin=share)).threshold for share in (0.0, margin))
    model = fit()
    with record_firings(model) as firings, torch.no_grad():
        for i, row in enumerate(token_rows(FORGET)):
            if i % 4 == 1:
                model(input_ids=torch.tensor([row]))
    quartile = float(torch.tensor([f.statistic for f in firings], dtype=torch.float64).quantile(0.25))
    assert low < quartile
    assert moved == pytest.approx(low + margin * (quartile - low), abs=1e-6)


def test_a_topic_below_other_text_leaves_the_threshold_where_it_was():
    high = torch.tensor([0.1, 0.25, 0.3, 0.5, 0.9])
    assert between(0.5, high, 0.5) == 0.5
    assert between(0.2, high, 0.5) == pytest.approx(0.2 + 0.5 * (0.25 - 0.2))
    assert between(0.2, torch.zeros(0), 0.5) == 0.2


@pytest.mark.parametrize(("preset", "percentile", "margin"), [(None, 97.5, 0.25), ("faithful", 95.0, 0.0)])
def test_the_default_percentile_and_margin_of_the_threshold(preset, percentile, margin):
    usual, said = (
        config_of(fit(num_features=1, preset=preset, **given)).calibration
        for given in ({"threshold_percentile": None}, {"threshold_percentile": percentile, "margin": margin})
    )
    assert (usual["threshold_percentile"], usual["threshold_margin"]) == (percentile, margin)
    assert usual["threshold"] == said["threshold"]


# ------------------------------------------------------------------------------------------ chat template and the probe


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ bos_token }} w5 {% for m in messages %}{{ m.content }}{% endfor %} <unk> w6"
    return tokenizer


def test_the_chat_template_is_used_when_asked(usual):
    tokenizer = chat_tokenizer()
    model = fit(tokenizer=tokenizer, chat_template=True)
    by_hand = [
        [{"input_ids": [BOS, 5, *row[1:], tokenizer.unk_token_id, 6]} for row in token_rows(texts)]
        for texts in (FORGET, RETAIN)
    ]
    counts = config_of(model).calibration
    assert counts["corpora"]["forget"]["tokens"] == sum(len(row["input_ids"]) for row in by_hand[0])
    assert counts["chat_template"] is True
    assert tokenizer.unk_token_id in config_of(model).special_token_ids
    assert tokenizer.unk_token_id not in config_of(usual).special_token_ids


def test_a_fit_on_plain_text_warns_where_there_is_a_chat_template(usual):
    tokenizer = chat_tokenizer()
    assert any("chat_template=True" in text for text in config_of(fit(tokenizer=tokenizer)).calibration["warnings"])
    for model in (usual, fit(tokenizer=tokenizer, chat_template=True)):
        assert not any("chat_template" in text for text in config_of(model).calibration["warnings"])


def test_a_fit_in_the_chat_template_judges_message_by_message():
    tokenizer = chat_tokenizer()
    boundary = [tokenizer.unk_token_id]  # the BOS at the beginning is none
    for given, expected in (
        ({"chat_template": True}, boundary),
        ({"chat_template": True, "statistic": "window", "threshold": 0.5}, None),
        ({"chat_template": True, "sticky": False}, None),
        ({"chat_template": True, "preset": "faithful"}, None),
        ({}, None),
    ):
        config = config_of(fit(tokenizer=tokenizer, **given))
        assert config.message_boundary_ids == expected
        assert not any("by no special token" in text for text in config.calibration["warnings"])
    words = tiny_tokenizer()
    words.chat_template = "w5 {% for m in messages %}{{ m.content }}{% endfor %} w6"
    for tokens, warned in ((words, True), (tokenizer, False)):
        found = config_of(fit(tokenizer=tokens, chat_template=True))
        assert any("marks its messages by no special token" in text for text in found.calibration["warnings"]) is warned
        assert (found.message_boundary_ids is None) is warned


def test_a_chat_template_that_is_not_there_is_refused():
    with pytest.raises(GuardrailError, match="no chat template"):
        fit(chat_template=True)


def test_a_probe_is_stored_only_when_asked(usual):
    assert "probe" not in config_of(usual).calibration
    probe = config_of(fit(store_probe=True)).calibration["probe"]
    assert probe == {
        "forget": [token_rows(FORGET)[2], token_rows(FORGET)[6]],
        "retain": [token_rows(RETAIN)[3], token_rows(RETAIN)[7]],
    }


def test_nothing_of_the_text_is_in_the_folder(usual, tmp_path):
    usual.save_pretrained(tmp_path)
    written = "".join(p.read_text(errors="ignore") for p in tmp_path.iterdir() if p.suffix != ".safetensors")
    assert not any(text in written for text in FORGET + RETAIN)
    assert "w17" not in written


# ------------------------------------------------------------------------------------------------------------ bad input


def nan_model():
    model = base_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    return model


def silent_sae():
    sae = random_sae()
    with torch.no_grad():
        sae.threshold.fill_(1e6)
    return sae


def ever_active_sae():
    return random_sae(architecture="standard")


BAD = {
    "no forget": ({"forget": None}, r"needs `forget` and `retain`; \['forget'\]"),
    "no retain": ({"retain": None}, r"\['retain'\]"),
    "features without retain": ({"retain": None, "features": [1]}, "needs `retain` text; pass it, or give `threshold`"),
    "dose without forget": ({"forget": None, "features": [1]}, "measured on `forget` text"),
    "empty forget": ({"forget": []}, "The forget corpus is empty; pass at least 8"),
    "empty retain": ({"retain": [" "]}, "The retain corpus is empty; pass at least 32"),
    "few retain": ({"retain": RETAIN[:12]}, "Only 3 retain rows are left for the threshold, of 12; give at least 32"),
    "a string": ({"forget": "all of it"}, "is a str; pass a list"),
    "a number": ({"forget": 3}, "is a int"),
    "items that are no text": ({"forget": [1, 2]}, "holds a int"),
    "wrong column": ({"forget": Dataset.from_dict({"body": FORGET})}, r"columns \['body'\].*'text'"),
    "text without tokenizer": ({"tokenizer": None}, "needs a tokenizer"),
    "wrong batch": ({"forget": [{"input_ids": torch.zeros(2, 3, 4).long()}]}, "input_ids"),
    "float batch": ({"forget": [{"input_ids": torch.zeros(2, 3)}]}, "whole numbers"),
    "only special tokens": ({"forget": [{"input_ids": [BOS, EOS]}] * 8}, "no content tokens"),
    "width": ({"sae": random_sae(width=40)}, "SAE has d_in=40, but LlamaForCausalLM has hidden size 32"),
    "layer": ({"layer": 2}, "layer=2, but the SAE reads the output of layer 1"),
    "layer unknown": ({"sae": random_sae(layer=None)}, "does not say which layer it reads; pass `layer=`"),
    "layer too deep": ({"sae": random_sae(layer=4)}, "layer=4, but LlamaForCausalLM has 4 layers, 0 to 3"),
    "model not finite": ({"model": nan_model()}, "residual stream after layer 1 is not finite"),
    "ids of another tokenizer": (
        {"forget": [{"input_ids": [BOS, 5, 97]}] * 8},
        r"Row 0 holds token id 97, and the model has the ids 0 to 96",
    ),
    "negative ids": ({"forget": [{"input_ids": [BOS, 5, -100]}] * 8}, r"Row 0 holds token id -100"),
    "more tokens than learned positions": (
        {"model": base_model("gpt2"), "forget": [{"input_ids": [BOS] + [5, 6] * 64}] * 8},
        r"Row 0 has 129 tokens, and the model has learned 128 positions; .*max_length=128",
    ),
    "silent sae": ({"sae": silent_sae()}, "SAE is silent on the forget text"),
    "features on all retain text": (
        {"sae": ever_active_sae(), "ratio_percentile": 0.0, "num_features": 200, "min_tokens": 1, "evidence": "any"},
        r"threshold=1.0.*give more or other retain text, fewer features",
    ),
    "threshold too high": ({"threshold": 1.0}, r"threshold=1.0 is outside \[0.0, 1.0\)"),
    "threshold negative": ({"threshold": -0.5}, "threshold=-0.5"),
    "threshold nan": ({"threshold": float("nan")}, "threshold=nan"),
    "dose of the wrong sign": ({"clamp_value": 500.0}, "500.0"),
    "scale of the wrong sign": ({"clamp_scale": -2.0}, "clamp_scale=-2.0 is negative"),
    "two doses": ({"clamp_value": -5.0, "clamp_scale": 2.0}, "give one of the two"),
    "unit": ({"clamp_unit": "metres"}, "clamp_unit='metres'"),
    "residual dose too small": ({"clamp_unit": "residual", "clamp_scale": 0.01}, "clamp_scale=0.01 .* raise it"),
    "silent feature": ({"features": [0], "sae": silent_sae(), "threshold": 0.5}, r"Features \[0\] are never active"),
    "percentile": ({"ratio_percentile": 101.0}, "ratio_percentile=101.0 must lie between 0 and 100"),
    "threshold percentile": ({"threshold_percentile": -1.0}, "threshold_percentile=-1.0"),
    "margin": ({"margin": 1.0}, "margin=1.0 must be at least 0 and less than 1"),
    "no features asked": ({"num_features": 0}, "num_features=0 must be an integer >= 1"),
    "batch size": ({"batch_size": 2.5}, "batch_size=2.5"),
    "max length": ({"max_length": 0}, "max_length=0"),
    "max length of bos": ({"max_length": 1}, "max_length=1 leaves no room"),
    "importance": ({"importance": "mean"}, "importance='mean' is not one of"),
    "preset": ({"preset": "best"}, "preset='best'"),
    "statistic": ({"statistic": "mean"}, "statistic='mean'"),
    "scope": ({"gate_scope": "row"}, "gate_scope='row'"),
    "action": ({"action": "refuse"}, "action='refuse'"),
    "feature twice": ({"features": [3, 3]}, r"\[3\] more than once"),
    "no feature given": ({"features": []}, "non-empty"),
    "name": ({"adapter_name": "a.b"}, "adapter_name='a.b'"),
}


@pytest.mark.parametrize(("wrong", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name_and_the_model_left_untouched(wrong, message):
    model = wrong.get("model", base_model("llama"))
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(GuardrailError, match=message):
        fit(**{"model": model} | wrong)
    assert not guard_layers(model)
    assert before == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_a_feature_beyond_the_sae_is_refused():
    with pytest.raises(ValueError, match="9999"):
        fit(features=[9999])


def test_a_topk_sae_is_refused():
    sae = random_sae(architecture="topk", k=4)
    with pytest.raises(ValueError, match="topk SAE"):
        fit(sae=sae)


def test_a_name_that_is_taken_is_refused(usual):
    model = get_peft_model(base_model("llama"), planted_config())
    plant(model)
    with pytest.raises(GuardrailError, match="'default' on the model already"):
        fit(model, adapter_name="default")
