"""Text of a model of text and images inside vLLM: tokens and records are those of its language model."""

import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from multiprocessing import get_context
from types import ModuleType

from served import expected, prompts, save_multimodal, serving


ROWS = prompts()
TORCHVISION = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")


def test_text_of_a_model_of_text_and_images(tiny):
    """In a process of its own, since a part of vLLM is replaced."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        assert process.submit(check, tiny).result() == "Gemma3ForConditionalGeneration"


def check(folder):
    wanted = expected(folder / "gemma3", [folder / "guard"], ROWS)
    assert {records["guard"][0] for _, records in wanted} == {True, False}
    if find_spec("torchvision") is None:
        stand_in_for_torchvision()
    options = {"language_model_only": True, "max_num_batched_tokens": 64}
    with serving(save_multimodal(folder), [folder / "guard"], **options) as engine:
        found, _ = engine.answers(ROWS)
        model = engine.guards.worker.model_runner.get_model()
    for one, other in zip(found, wanted, strict=True):
        assert one == other
    return type(model).__name__


def stand_in_for_torchvision():
    """vLLM's class of the model imports it to scale images; CPU builds of vLLM come without it."""
    from transformers.utils import is_torchvision_available
    from vllm.model_executor.models import registry

    assert not is_torchvision_available()  # which is kept
    for name in TORCHVISION:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
    sys.modules[TORCHVISION[-1]].functional = ModuleType("functional")
    registry._run_in_subprocess = lambda call: call()
