"""The LM evaluation harness on a guarded model, by name: its score is the one of our own evaluation."""

import json
import sys
from types import SimpleNamespace

import pytest
from tiny_topic import save_adapters, tiny_parts, topic_texts

from sae_unlearn import attach_guardrail
from sae_unlearn.cli import lm_eval as command
from sae_unlearn.evaluation import Choice, option_likelihoods, right_by_likelihood


TASK = """task: local_words
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/words.json
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: right
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with `model`, a guardrail, a LoRA, and a task of the harness."""
    folder = tmp_path_factory.mktemp("parts")
    save_adapters(folder)
    rows = [
        {"question": text, "options": [f"w{20 + i}", f"w{30 + i} w31 w{40 + i}", f"w{50 + i} w3"], "right": i % 3}
        for i, text in enumerate([*topic_texts("forget", 12, words=4), *topic_texts("retain", 12, words=4)])
    ]
    (folder / "words.json").write_text("\n".join(map(json.dumps, rows)))
    (folder / "local_words.yaml").write_text(TASK.format(folder=folder))
    return folder


@pytest.mark.parametrize("words", [20, 127, 128, 300])
def test_every_token_of_a_long_text_counts(parts, words):
    """As with the harness' own model, in windows of one token less than the model reads."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from sae_unlearn.cli.lm_eval_model import HarnessModel

    folder = str(parts / "model")
    text = " ".join(f"w{2 + i * 7 % 90}" for i in range(words))
    plain = huggingface.HFLM(pretrained=folder, device="cpu", dtype="float32", max_length=127)
    found = [
        model.loglikelihood_rolling([SimpleNamespace(args=(text,))], disable_tqdm=True)[0]
        for model in (plain, HarnessModel(pretrained=folder, device="cpu"))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("adapter", [None, "guardrail", "lora"])
def test_the_harness_gives_our_own_score(parts, tmp_path, monkeypatch, adapter):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    named = f"pretrained={parts / 'model'}" + (f",adapter={parts / adapter}" if adapter else "")
    line = ["--model", "sae-unlearn", "--model_args", named, "--tasks", "local_words", "--include_path", str(parts)]
    line += ["--batch_size", "5", "--device", "cpu", "--output_path", str(tmp_path / "out"), "--log_samples"]
    monkeypatch.setattr(sys, "argv", ["sae-unlearn-lm-eval", *line])
    assert command.main() == 0
    [written] = (tmp_path / "out").rglob("results*.json")
    found = json.loads(written.read_text())["results"]["local_words"]

    model, tokenizer, _ = tiny_parts()
    if adapter == "guardrail":
        model = attach_guardrail(model, parts / adapter)
    elif adapter == "lora":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, parts / adapter).eval()
    rows = [json.loads(line) for line in (parts / "words.json").read_text().splitlines()]
    choices = [Choice(row["question"], tuple(row["options"]), row["right"]) for row in rows]
    likelihoods = option_likelihoods(model, tokenizer, choices)
    [samples] = (tmp_path / "out").rglob("samples*.jsonl")
    samples = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    for sample, likelihood in zip(samples, likelihoods, strict=True):
        scored = [float(option[0][0]) for option in sample["resps"]]
        assert scored == pytest.approx(likelihood.log_probs.tolist(), abs=1e-4)
    for metric, per_character in (("acc,none", False), ("acc_norm,none", True)):
        expected = right_by_likelihood(choices, likelihoods, per_character=per_character).double().mean()
        assert found[metric] == pytest.approx(float(expected))


def test_a_harness_that_is_missing_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    assert command.main() == 2
    assert 'pip install ".[harness]"' in capsys.readouterr().err
