"""A guardrail is refused on a model whose matrices transformers has split over processes."""

from pathlib import Path

import pytest
import served
import transformers
from launched import TORCHRUN, launch


@pytest.mark.slow
def test_a_model_that_is_split_over_processes_is_refused_by_name(tmp_path, monkeypatch):
    sizes = served._SHARED | served._GATED | {"num_key_value_heads": 2}
    monkeypatch.setitem(served.MODELS, "two_heads", lambda: transformers.LlamaConfig(**sizes))
    model = served.save_model(tmp_path, "two_heads")
    guardrail = served.save_guardrail(tmp_path, model)
    program = Path(__file__).with_name("split_over_processes.py")
    said, _ = launch(program, model, guardrail, launcher=TORCHRUN)
    assert said.count("refused: tp_size=2") == 2, said
