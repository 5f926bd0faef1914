"""The messages of the page are those that are said, word for word, and what it advises works."""

import re
import subprocess
import sys

import pytest
import transformers
from pages import DOCS, blocks_of
from tiny_topic import tiny_tokenizer
from zoo import base_model, guarded, logits_of, token_ids

from sae_unlearn import guardrail_status


PAGE = DOCS / "troubleshooting.md"
HEADINGS = re.findall(r"^## `(.+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
LOADERS = {
    "PeftConfig.from_pretrained": "peft.PeftConfig.from_pretrained(folder)",
    "PeftModel.from_pretrained": "peft.PeftModel.from_pretrained(model, folder)",
    "AutoPeftModelForCausalLM.from_pretrained": "peft.AutoPeftModelForCausalLM.from_pretrained(folder)",
    "AutoModelForCausalLM.from_pretrained": "transformers.AutoModelForCausalLM.from_pretrained(folder)",
    "model.load_adapter": "model.load_adapter(folder)",
}
PROGRAM = """
import sys, peft, transformers
base, folder = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(base)
for call in {calls}:
    try:
        eval(call)
    except Exception as error:
        print(f"{{type(error).__name__}}: {{error}}")
"""


def test_without_the_import_every_loader_says_what_the_page_says(tmp_path):
    model = guarded("llama")
    base_model("llama").save_pretrained(tmp_path / "base")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "guardrail")
    program = PROGRAM.format(calls=list(LOADERS.values()))
    arguments = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "base"), str(tmp_path / "guardrail")]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [HEADINGS[0]] * len(LOADERS)
    assert all(f"`{name}`" in PAGE.read_text() or f"`{name}` of" in PAGE.read_text() for name in LOADERS)


def test_a_pipeline_says_what_the_page_says_and_is_quiet_with_the_model_inside(caplog):
    model, tokenizer = guarded("llama"), tiny_tokenizer()
    logger = transformers.logging.get_logger("transformers")
    logger.propagate, level = True, logger.level
    logger.setLevel("ERROR")
    try:
        transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
        said = [record.message for record in caplog.records]
        caplog.clear()
        names = {"guarded": model, "tokenizer": tokenizer}
        exec(next(block.text for block in blocks_of(PAGE) if "pipeline(" in block.text), names)
    finally:
        logger.propagate = False
        logger.setLevel(level)
    beginning = HEADINGS[1].removesuffix("[...]")
    if not said:
        pytest.skip("this transformers says nothing of it; shorten the page once no supported version does")
    assert any(message.startswith(beginning) for message in said)
    assert not caplog.records
    bare = model.get_base_model()
    assert guardrail_status(bare).verdict == "guarded"
    ids = token_ids(4, 12)
    assert (logits_of(bare, input_ids=ids) == logits_of(model, input_ids=ids)).all()
    assert names["pipe"].model is bare
