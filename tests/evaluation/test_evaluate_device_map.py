"""A model that accelerate has spread with `device_map` is measured like any other."""

import pytest
from lettered_words import lettered_tokenizer
from peft import PeftModel
from spread import partly_on_disk, spread
from test_evaluate_models import ANSWERS, EXAM, FACTS, TEXTS
from tiny_topic import save_adapters, tiny_parts

from sae_unlearn import attach_guardrail
from sae_unlearn.evaluation import evaluate


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    save_adapters(folder)
    return folder


def with_adapter(kind, model, adapters):
    if kind == "guardrail":
        return attach_guardrail(model, adapters / kind)
    return model if kind == "bare" else PeftModel.from_pretrained(model, adapters / kind).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "places"),
    [("guardrail", "auto"), ("lora", "auto"), ("bare", partly_on_disk()), ("guardrail", partly_on_disk())],
    ids=["guardrail, auto", "lora, auto", "bare, disk", "guardrail, disk"],  # PEFT leaves a LoRA without weights there
)
def test_the_figures_are_the_same(adapters, tmp_path, kind, places):
    sides = {"forget": [*FACTS, *ANSWERS, *TEXTS[:2]], "retain": {"exam": EXAM, "text": TEXTS}}
    usual, other = (
        evaluate(with_adapter(kind, model, adapters), lettered_tokenizer(), **sides, progress=False).to_dict()
        for model in (tiny_parts()[0], spread(tiny_parts()[0], tmp_path, places))
    )
    assert len(usual["figures"]) > 5
    assert other["figures"] == usual["figures"]
