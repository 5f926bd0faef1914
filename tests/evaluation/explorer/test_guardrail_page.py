"""A guardrail's page: one file that fetches nothing, escapes everything, and says what was recorded and measured."""

import copy
import json
import re

import pytest
from html_page import Page
from tiny_topic import tiny_parts, topic_texts
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from sae_unlearn import GuardrailError, SparseAutoencoder, attach_guardrail, fit_guardrail, fit_guardrails
from sae_unlearn.backbone.layers import find_decoder_layers
from sae_unlearn.evaluation import picture_guardrail, stored_picture
from sae_unlearn.evaluation.explorer import neuronpedia


TEXTS = {"forget": topic_texts("forget", 8, seed=3), "retain": topic_texts("retain", 8, seed=3)}
ID = "gemma-2-2b/3-gemmascope-res-16k"
SCRIPT = "<script>alert(1)</script>"


def fitted():
    model, tokenizer, sae = tiny_parts()
    texts = topic_texts("forget", 40), topic_texts("retain", 80)
    guarded = fit_guardrail(model, tokenizer, sae, *texts, statistic="ratio", progress=False)
    return guarded, tokenizer


@pytest.fixture(scope="module")
def parts():
    return fitted()


@pytest.fixture(scope="module")
def picture(parts):
    return picture_guardrail(*parts, **TEXTS, title="biology", progress=False)


@pytest.fixture(scope="module")
def page(picture):
    return Page(picture.to_html())


def test_it_fetches_and_runs_nothing(picture, page):
    html = picture.to_html()
    assert html.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "iframe", "img", "object", "embed", "base", "form"} & set(page.elements)
    names = dict.fromkeys(name for name, _ in page.attributes)
    assert not [name for name in names if name.startswith("on") or name in ("src", "srcset", "action", "xlink:href")]
    assert all(value.startswith("#feature-") for name, value in page.attributes if name == "href")
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"https?://", html)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_it_says_what_the_fit_recorded(parts, page):
    config = parts[0].peft_config["default"]
    calibration = config.calibration
    for role in ("forget", "retain"):
        found = calibration[f"fire_rate_{role}"]
        assert f"fires on {role} text{found['rate']:.1%}" in page.text
        assert f"{found['low']:.1%} to {found['high']:.1%}, n = {found['n']}" in page.text
        rows = calibration[f"statistic_{role}"]
        bars = [title for title in page.titles if title.endswith(f" of {len(rows)} {role} rows")]
        assert sum(int(title.split(": ")[1].split()[0]) for title in bars) == len(rows)
    assert f"threshold{config.threshold:.4g}" in page.text
    assert f"{calibration['auroc']:.3f}" in page.text
    forms = {"percentile": "g", "threshold": ".4g", "forget_rate": ".1%", "retain_rate": ".1%"}
    expected = [[f"{point[name]:{form}}" for name, form in forms.items()] for point in calibration["curve"]]
    assert page.table(["percentile of retain rows"]) == expected
    features = calibration["features"]
    for place, (feature, row) in enumerate(zip(config.feature_ids, page.table(["feature"]), strict=True)):
        ratio = features["score_forget"][place] / features["score_retain"][place]
        densities = [f"{features[f'density_{role}'][place]:.2%}" for role in TEXTS]
        assert [row[0], *row[2:5]] == [str(feature), *densities, f"{ratio:.3g}"]


def test_it_says_what_the_texts_showed(picture, page):
    for feature, row in zip(picture.contexts.features, page.table(["feature"]), strict=True):
        assert row[5:8] == [*(f"{feature.density[role]:.2%}" for role in TEXTS), f"{feature.ratio:.3g}"]
    for head, points in (("dose", picture.sweep.doses), ("threshold", picture.sweep.thresholds)):
        for point, row in zip(points, page.table([head]), strict=True):
            expected = [f"{point.setting:.4g}"]
            for role in TEXTS:
                change = point.change[role]
                expected += [f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})"]
                expected += [f"{point.fires[role]:.1%}"]
            assert row == expected
    for role, rows in picture.contexts.statistics.items():
        bars = [title for title in page.titles if title.endswith(f" of {len(rows)} {role} rows")]
        assert sum(int(title.split(": ")[1].split()[0]) for title in bars) == len(rows)


def test_texts_are_read_once_and_run_up_to_the_guarded_layer_once(parts, picture):
    guarded, tokenizer = parts
    layers, begun, ended = find_decoder_layers(guarded.get_base_model()).layers, [], []
    hooks = [
        layer.register_forward_hook(lambda module, args, output, seen=seen: seen.append(len(args[0])))
        for layer, seen in ((layers[0], begun), (layers[-1], ended))
    ]
    try:
        again = picture_guardrail(guarded, tokenizer, *map(iter, TEXTS.values()), title="biology", progress=False)
    finally:
        for hook in hooks:
            hook.remove()
    assert sum(begun) - sum(ended) == sum(map(len, TEXTS.values()))
    assert again == picture


def test_active_tokens_are_marked_with_their_activation(picture, page):
    expected = [
        [f"{activation:.4g}", token]
        for feature in picture.contexts.features
        for context in feature.contexts
        for token, activation in zip(context.tokens, context.activations, strict=True)
        if activation > 0
    ]
    assert page.hot == expected
    strengths = [float(v.removeprefix("--a:")) for n, v in page.attributes if n == "style"]
    assert len(strengths) == len(expected)
    assert max(strengths) == 1.0
    assert min(strengths) > 0


def test_texts_are_on_it_only_if_they_were_given(parts, picture, tmp_path):
    parts[0].save_pretrained(tmp_path / "biology")
    stored = stored_picture(tmp_path / "biology")
    html = stored.to_html()
    Page(html)
    assert stored.title == "biology"
    assert not re.search(r"\bw\d+\b", html)
    assert "It contains no text." in html
    assert re.search(r"\bw\d+\b", picture.to_html())
    assert "It contains parts of the given texts" in picture.to_html()
    swept = stored_picture(tmp_path / "biology", sweep=picture.sweep).to_html()
    assert "Other doses and thresholds" in swept
    assert "Other doses and thresholds" not in html


def test_tokens_and_strings_of_the_config_are_escaped():
    guarded, tokenizer = fitted()
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {"w5": SCRIPT, "w6": '"><img/src=x>', "w7": "&amp;", "w8": "\u202eabc\x1b"}
    vocabulary["model"]["vocab"] = {names.get(k, k): v for k, v in vocabulary["model"]["vocab"].items()}
    hostile = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(vocabulary)), bos_token="<bos>", unk_token="<unk>"
    )
    config = guarded.peft_config["default"]
    config.base_model_name_or_path = SCRIPT
    config.sae_source = {"id": SCRIPT, "neuronpedia_id": f"{SCRIPT}/3"}
    config.calibration["warnings"] = [SCRIPT]
    forget = [" ".join(names.get(word, word) for word in text.split()) for text in topic_texts("forget", 20, seed=3)]
    picture = picture_guardrail(guarded, hostile, forget=forget, title=SCRIPT, sweep=False, progress=False)
    html = picture.to_html()
    page = Page(html)
    assert not {"script", "img"} & set(page.elements)
    assert "<script" not in html
    shown = {found[1].strip() for found in page.hot}
    assert {SCRIPT, '"><img/src=x>', "&amp;", "\\u202eabc\\x1b"} <= shown
    assert page.text.count(SCRIPT) >= 3
    assert "href" not in [name for name, value in page.attributes if "neuronpedia" in value]


def test_links_lead_to_neuronpedia_where_the_sae_has_a_page(picture):
    linked = copy.deepcopy(picture)
    linked.config.sae_source = {"id": "org/sae", "neuronpedia_id": ID}
    html = linked.to_html()
    links = [value for name, value in Page(html).attributes if name == "href" and not value.startswith("#")]
    expected = [f"https://www.neuronpedia.org/{ID}/{feature}" for feature in picture.config.feature_ids]
    assert sorted(links) == sorted(expected * 2)
    assert set(re.findall(r"https?://[^\"< ]+", html)) == set(expected)


@pytest.mark.parametrize(
    "source",
    [
        None,
        {"id": "org/sae", "subfolder": "layer_3"},
        {"neuronpedia_id": ["a/b"]},
        {"neuronpedia_id": "no-slash"},
        {"neuronpedia_id": "a/b/../../c"},
        {"neuronpedia_id": 'a/b"onclick="x'},
        {"neuronpedia_id": "javascript:alert(1)/x"},
    ],
)
def test_without_a_sound_id_there_is_no_link(monkeypatch, source):
    monkeypatch.setattr(neuronpedia, "_listed", lambda: {("org/sae", "layer_4"): ID})
    assert neuronpedia.neuronpedia_id(source) is None
    assert neuronpedia.feature_page(None, 3) is None


def test_ids_of_published_saes_are_those_of_the_directory():
    source = {"id": "google/gemma-scope-2b-pt-res", "subfolder": "layer_3/width_16k/average_l0_59"}
    assert neuronpedia.neuronpedia_id(source) == ID
    assert neuronpedia.neuronpedia_id(source | {"subfolder": "layer_3/width_16k/average_l0_142"}) is None
    assert neuronpedia.neuronpedia_id(source | {"local": True}) is None


@pytest.mark.slow
@pytest.mark.parametrize("value", ["x", [1], [None, "a", float("inf")], {"a": 1}, 10**300, True, None])
def test_a_calibration_of_anything_gives_a_page(picture, value):
    names = ("fire_rate_forget", "auroc", "curve", "warnings", "edit_to_residual", "features", "topk")
    broken = copy.deepcopy(picture)
    broken.config.calibration = dict.fromkeys((*names, "statistic_forget", "statistic_retain"), value)
    Page(broken.to_html())
    n = len(picture.clamp)
    broken.config.calibration = {
        "fire_rate_forget": dict.fromkeys(("rate", "low", "high", "n"), value),
        "curve": [value, dict.fromkeys(("percentile", "threshold"), value)],
        "features": dict.fromkeys(("score_forget", "score_retain", "density_forget"), [value] * n),
        "statistic_forget": [value, 0.3],
    }
    Page(broken.to_html())
    broken.config.calibration = None
    assert "The fit recorded no statistics" in Page(broken.to_html()).text


def test_several_guardrails_have_a_page_each(tmp_path):
    model, tokenizer, sae = tiny_parts()
    topics = {"first": topic_texts("forget", 40), "second": topic_texts("forget", 40, seed=5)}
    guarded = fit_guardrails(model, tokenizer, sae, topics, topic_texts("retain", 80), progress=False)
    for name in topics:
        picture = picture_guardrail(
            guarded, tokenizer, **TEXTS, adapter_name=name, contexts=2, sweep=False, progress=False
        )
        html = picture.save(tmp_path / f"{name}.html").read_text(encoding="utf-8")
        ids = guarded.peft_config[name].feature_ids
        assert [row[0] for row in Page(html).table(["feature"])] == list(map(str, ids))
        assert f"<title>Guardrail {name}</title>" in html
    with pytest.raises(GuardrailError, match="adapter_name=None"):
        picture_guardrail(guarded, tokenizer, **TEXTS)


@pytest.mark.filterwarnings("ignore:The features of this topk SAE")
def test_a_topk_sae_is_said_to_be_approximated():
    model, tokenizer, sae = tiny_parts()
    topk = SparseAutoencoder(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, architecture="topk", k=60, layer=sae.layer)
    corpora = {role: topic_texts(role, 80) for role in TEXTS}
    guarded = fit_guardrail(model, tokenizer, topk, **corpora, topk="threshold", num_features=5, progress=False)
    picture = picture_guardrail(guarded, tokenizer, **TEXTS, contexts=2, progress=False)
    assert "the guardrail approximates by thresholds" in Page(picture.to_html()).text
    assert picture.contexts.features[0].contexts


def test_a_zero_shot_guardrail_has_a_page_too(parts, tmp_path):
    model, tokenizer, sae = tiny_parts()
    by_hand = {"features": [1, 2, 3], "threshold": 0.4, "clamp_value": -5.0}
    guarded = fit_guardrail(model, None, sae, **by_hand, progress=False)
    guarded.save_pretrained(tmp_path / "by-hand")
    page = Page(stored_picture(tmp_path / "by-hand").to_html())
    assert "The fit recorded no statistics" in page.text
    assert "The fit recorded no figures of single features" in page.text
    attached = attach_guardrail(tiny_parts()[0], tmp_path / "by-hand")
    picture = picture_guardrail(attached, tokenizer, **TEXTS, progress=False)
    assert picture.title == "by-hand"
    assert "Feature 2" in Page(picture.to_html()).text


def test_a_sweep_of_another_guardrail_is_refused(parts, picture, tmp_path):
    other = copy.deepcopy(picture.sweep)
    other.guardrail["layer"] = 0
    with pytest.raises(GuardrailError, match=r"sweep\.layer=0: expected 1"):
        picture_guardrail(*parts, **TEXTS, sweep=other, progress=False)
    again = picture_guardrail(*parts, **TEXTS, sweep=picture.sweep, title="biology", progress=False)
    assert again.to_html() == picture.to_html()
