"""The directory of published SAEs: what is listed, suggested, found by its name, and refused."""

import json
import re
import warnings

import pytest
import torch
from hub_requests import OWNER
from huggingface_hub import HfApi
from sae_folders import write_gemma_scope_2

from benchmarks.published_saes import PAGE, tables
from sae_unlearn.cli.main import main
from sae_unlearn.sae import SAEFormatError, SparseAutoencoder, published_saes
from sae_unlearn.sae.choice import sae_for, saes_for
from sae_unlearn.sae.directory import lookup, table
from sae_unlearn.sae.directory.entry import REFUSED_PLACES, PublishedSAE
from sae_unlearn.sae.directory.lookup import find_sae, suggest, suggest_layers, suggested_sae
from sae_unlearn.sae.directory.registry import entries_of, read_registry, registry_file
from sae_unlearn.sae.directory.table import SHIPPED, Directory, from_registry, read_shipped, to_bytes
from sae_unlearn.sae.formats.saelens_config import architecture_of


CANONICAL = "gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical"


@pytest.fixture(autouse=True)
def shipped(monkeypatch):
    """The table that is shipped, whatever version of SAELens is installed."""
    monkeypatch.setattr(table, "_other_registry", lambda: None)
    table.directory.cache_clear()
    yield
    table.directory.cache_clear()


def test_a_release_and_an_id_of_saelens_name_the_files():
    found = find_sae(CANONICAL)
    assert (found.repository, found.subfolder) == ("google/gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82")
    assert (found.model, found.layer, found.width, found.l0) == ("google/gemma-2-2b", 12, 16384, 82)
    assert (found.license, found.neuronpedia_id) == ("CC-BY-4.0", "gemma-2-2b/12-gemmascope-res-16k")
    assert found.name == CANONICAL


@pytest.mark.parametrize(
    ("name", "layer", "width"),
    [
        ("gpt2-small-res-jb/blocks.8.hook_resid_pre", 7, None),  # before block 8 is after block 7
        ("gpt2-small-resid-post-v5-32k/blocks.6.hook_resid_post", 6, 32768),
        ("llama_scope_lxr_8x/l15r_8x", 15, 32768),
        ("gemma-scope-2-270m-pt-res/layer_9_width_65k_l0_medium", 9, 65536),
        ("qwen-scope-3.5-27b-w80k-l50/layer31", 31, 81920),
        ("goodfire-llama-3.1-8b-instruct/layer_19", 19, None),
        ("sae_bench_gemma-2-2b_topk_width-2pow14_date-1109/blocks.12.hook_resid_post__trainer_0", 12, 16384),
        ("llama_scope_r1_distill/l15r_800m_slimpajama", 15, 32768),
        ("sae-llama-3-8b-32x/layers.15", 15, 131072),
    ],
)
def test_layers_and_widths_are_read_from_the_names(name, layer, width):
    found = find_sae(name)
    assert (found.layer, found.width) == (layer, width)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma-scope-2b-pt-mlp-canonical/layer_12/width_16k/canonical", "output of an MLP"),
        ("gemma-scope-2b-pt-att/layer_0/width_16k/average_l0_104", "output of the attention"),
        ("gemma-scope-2-4b-it-mlp/layer_17_width_16k_l0_big", "output of an MLP"),
        ("llama_scope_lxa_8x/l0a_8x", "output of the attention"),
        ("gpt2-small-hook-z-kk/blocks.0.hook_z", "output of the attention"),
        ("gpt2-small-resid-mid-v5-32k/blocks.0.hook_resid_mid", "between attention and MLP"),
        ("gpt2-small-res-jb/blocks.0.hook_resid_pre", "the embedding"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "the embedding"),
        ("gemma-scope-2-4b-pt-transcoders/transcoder/layer_17_width_16k_l0_big", "a transcoder"),
        ("mntss-gemma-2-2b-2.5m-clt-as-per-layer/layer_0", "a transcoder"),
        ("temporal-sae-gemma-2-2b/blocks.12.hook_resid_post", "a temporal SAE"),
        ("mistral-7b-res-wg/blocks.8.hook_resid_pre", "scaled by each token's own norm"),
    ],
)
def test_other_places_are_refused_by_name(name, reason):
    with pytest.raises(SAEFormatError, match=reason):
        SparseAutoencoder.from_pretrained(name)


def test_every_other_place_of_the_directory_is_refused_with_its_reason():
    known = table.directory()
    assert {place for ids in known.refused.values() for place in ids.values()} <= {*REFUSED_PLACES}
    for release, ids in known.refused.items():
        for id, place in ids.items():
            if id not in known.saes.get(release, {}):
                with pytest.raises(SAEFormatError, match=re.escape(REFUSED_PLACES[place])):
                    find_sae(f"{release}/{id or 'anything'}")
    listed = [entry for saes in known.saes.values() for entry in saes.values()]
    assert not [entry.name for entry in listed if re.search(r"mlp_out|attn_out|hook_z|transcoder", entry.name)]
    assert all(entry.layer >= 0 for entry in listed)  # what `auto` chooses from


def test_an_id_that_is_not_there_names_near_ones():
    with pytest.raises(SAEFormatError, match="layer_12/width_16k/canonical"):
        find_sae("gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonica")
    assert find_sae("google/gemma-scope-2b-pt-res") is None
    assert find_sae("no-such-release/layer_1") is None


@pytest.mark.parametrize("model", ["google/gemma-2-2b", "mirror/Gemma-2-2b", "/models/gemma-2-2b/"])
def test_copies_and_folders_of_a_model_are_recognized(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = published_saes(model)
    assert {entry.model for entry in found} == {"google/gemma-2-2b"}
    assert len({(e.repository, e.subfolder) for e in found}) == len(found)  # one name for the same files
    assert found == sorted(found, key=lambda e: e.layer)
    assert not any("_step_" in entry.id for entry in found)
    assert len(published_saes(model, checkpoints=True)) > len(found)


@pytest.mark.parametrize(
    ("chat", "base"),
    [
        ("google/gemma-2-2b-it", "google/gemma-2-2b"),
        ("unsloth/gemma-2-2b-it-bnb-4bit", "google/gemma-2-2b"),
        ("unsloth/gemma-2-9b-it-bnb-4bit", "google/gemma-2-9b-it"),
        ("unsloth/gemma-3-4b-it-bnb-4bit", "google/gemma-3-4b-it"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base"),
        ("mistralai/Mistral-7B-Instruct-v0.2", None),
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", None),
    ],
)
def test_chat_models_find_their_base_models_saes_with_a_warning(chat, base):
    if base is None:
        assert published_saes(chat) == []
        return
    with pytest.warns(UserWarning, match=f" {base}, "):
        found = published_saes(chat)
    assert {entry.model for entry in found} == {base}


def test_chat_models_with_saes_of_their_own_get_those():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {e.model for e in published_saes("google/gemma-3-4b-it")} == {"google/gemma-3-4b-it"}


def test_the_suggestion_is_exact_in_slices_in_the_middle_and_of_usual_size():
    assert suggest("google/gemma-2-2b").name == CANONICAL
    assert suggest("google/gemma-2-2b", layer=3).layer == 3
    assert suggest("demo").name == "gemma-scope-2-270m-pt-res/layer_9_width_16k_l0_medium"
    assert "topk" not in suggest("EleutherAI/pythia-70m-deduped").release

    def entry(**given):
        usual = {"model": "a/b", "family": "SAELens", "release": "r", "id": "i", "repository": "a/s", "subfolder": "s"}
        return PublishedSAE(**{**usual, "layer": 5, "width": 16384, "l0": 64.0, **given})

    best = entry()
    worse = [entry(layer=9), entry(width=131072), entry(l0=200.0), entry(layer=5, family="Qwen-Scope"), entry(layer=0)]
    assert suggested_sae([*worse, best], layer=5) == best
    assert suggested_sae([]) is None
    with pytest.raises(SAEFormatError, match="train-sae"):
        suggest("HuggingFaceTB/SmolLM2-135M-Instruct")


def test_a_search_gets_the_suggestion_first_and_then_other_depths():
    assert [e.layer for e in suggest_layers("google/gemma-2-2b")] == [12, 8, 17]
    assert [e.layer for e in suggest_layers("google/gemma-2-9b-it")] == [20, 9, 31]
    assert [e.layer for e in suggest_layers("google/gemma-2-2b", layer=3)] == [3]
    assert [e.layer for e in suggest_layers("google/gemma-2b-it")] == [12]  # the only one
    assert suggest_layers("google/gemma-2-2b")[0] == suggest("google/gemma-2-2b")


def test_a_release_of_saelens_loads_from_the_hub_and_auto_takes_it(stand_in, tmp_path, monkeypatch, tiny_named_model):
    sub = "resid_post/layer_9_width_16k_l0_small"
    write_gemma_scope_2(tmp_path / "served" / sub, config={"hf_hook_point_in": "model.layers.9.output"})
    api = HfApi(token=OWNER)
    api.create_repo("me/sae")
    api.upload_folder(repo_id="me/sae", folder_path=tmp_path / "served")
    entry = PublishedSAE("me/tiny", "SAELens", "mine", "the-id", "me/sae", sub, 9, neuronpedia_id="tiny/9-mine")
    monkeypatch.setattr(table, "_shipped", lambda: (Directory("a test", {"mine": {"the-id": entry}}, {}), "0"))
    sae = SparseAutoencoder.from_pretrained("mine/the-id")
    assert (sae.source["id"], sae.source["subfolder"], sae.layer) == ("me/sae", sub, 9)
    assert sae.source["neuronpedia_id"] == "tiny/9-mine"
    assert torch.equal(SparseAutoencoder.from_pretrained("mine", subfolder="the-id").W_enc, sae.W_enc)
    assert torch.equal(sae_for("auto", tiny_named_model).W_enc, sae.W_enc)
    assert [each.layer for each in saes_for(["auto", sae], tiny_named_model)] == [9, 9]
    assert sae_for(sae, tiny_named_model) is sae


@pytest.fixture
def tiny_named_model():
    model = torch.nn.Linear(1, 1)
    model.name_or_path = "me/tiny"
    return model


def test_a_folder_of_that_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_gemma_scope_2(
        tmp_path / "gemma-scope-2b-pt-res/layer_1", config={"hf_hook_point_in": "model.layers.9.output"}
    )
    assert SparseAutoencoder.from_pretrained("gemma-scope-2b-pt-res", subfolder="layer_1").layer == 9


def test_the_shipped_table_holds_what_was_written():
    found, saelens = read_shipped()
    assert to_bytes(found, saelens) == SHIPPED.read_bytes()
    assert sum(map(len, found.saes.values())) > 4000


def test_a_registry_is_read_as_the_shipped_table_was(tmp_path):
    file = registry_file()
    if file is None:
        pytest.skip("needs sae-lens")
    text = file.read_text(encoding="utf-8")
    release = "gemma-scope-27b-pt-res-canonical"
    start = text.index(f"\n{release}:") + 1
    short = tmp_path / "short.yaml"  # reading the whole of it takes seconds
    short.write_text(text[start : start + 600].rpartition("\n  - ")[0])
    [(id, place, entry), *_] = entries_of(release, read_registry(short)[release])
    assert place == "residual"
    assert entry == find_sae(f"{release}/{id}")


def test_the_command_lists_and_suggests(capsys):
    assert main(["saes", "google/gemma-2-2b-it"]) == 0
    shown = capsys.readouterr().out
    assert "these are of google/gemma-2-2b" in shown
    assert f"Suggested: {CANONICAL}" in shown
    assert "CC-BY-4.0" in shown
    assert f"Next: sae-unlearn fit --model google/gemma-2-2b-it --sae {CANONICAL}" in shown

    with pytest.warns(UserWarning, match=" Qwen/Qwen3-8B-Base, "):
        approximate = suggest("Qwen/Qwen3-8B")
    assert main(["saes", "Qwen/Qwen3-8B"]) == 0
    assert f"--sae {approximate.name} --topk threshold --forget" in capsys.readouterr().out
    assert main(["saes", "demo"]) == 0
    assert "Next: sae-unlearn fit --model demo --sae demo --forget" in capsys.readouterr().out

    assert main(["saes", "google/gemma-2-2b", "--layer", "3"]) == 0
    assert "gemma-scope-2b-pt-res-canonical/layer_3/width_16k/canonical" in capsys.readouterr().out

    assert main(["saes", "google/gemma-2-2b", "--layer", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["layer"] for row in rows} == {3}
    assert all(find_sae(row["name"]).to_dict() == row for row in rows)


def test_the_command_says_if_there_is_none(capsys):
    assert main(["saes", "HuggingFaceTB/SmolLM2-135M-Instruct"]) == 1
    assert "train-sae" in capsys.readouterr().out
    assert main(["saes", "google/gemma-2-27b", "--layer", "1"]) == 1
    assert "10, 22, 34" in capsys.readouterr().out


def test_another_version_of_saelens_is_read_itself(monkeypatch, tmp_path):
    file = tmp_path / "pretrained_saes.yaml"
    file.write_text(
        "new-release:\n  model: gemma-2-2b\n  repo_id: me/new\n  conversion_func: null\n  saes:\n"
        "  - id: blocks.3.hook_resid_post\n    path: layer-3\n"
    )
    monkeypatch.setattr(table, "_other_registry", lambda: file)
    monkeypatch.setattr(table, "version", lambda name: "99")
    assert find_sae(CANONICAL) is None
    assert find_sae("new-release/blocks.3.hook_resid_post").subfolder == "layer-3"
    assert find_sae("sae-llama-3-8b-32x/layers.3").layer == 3
    assert lookup.directory().source == "the registry of sae-lens 99"
    assert from_registry({}, "").saes.keys() == {"sae-llama-3-8b-32x"}


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("abstopk", "may be negative"), ("matching_pursuit", "one after the other"), ("transcoder", "another place")],
)
def test_architectures_that_no_guardrail_can_use_are_refused_with_the_reason(architecture, reason):
    with pytest.raises(SAEFormatError, match=f"architecture='{architecture}' in cfg.*{reason}"):
        architecture_of({"architecture": architecture}, "cfg")


def test_the_page_shows_the_shipped_table():
    text = PAGE.read_text(encoding="utf-8")
    assert tables(*read_shipped()) in text
