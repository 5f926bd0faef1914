"""Tests that fail for a fault of the installed versions of transformers and PEFT, each with its reason.

A mark is an `xfail(strict=True)`: the test fails as soon as upstream is mended, and the mark goes then. So the one
condition here is the fault itself, and not a list of versions.
"""

import importlib.metadata

import peft
import pytest
import transformers
from packaging.version import Version
from transformers.cache_utils import DynamicLayer
from transformers.generation.continuous_batching import cache as paged_cache
from transformers.integrations import peft as integration


NEEDED = Version(getattr(integration, "MIN_PEFT_VERSION", "0"))

adapters_of_transformers = pytest.mark.xfail(
    Version(importlib.metadata.version("peft")) < NEEDED,
    reason=(
        f"transformers {transformers.__version__} refuses peft {peft.__version__} in its own add_adapter, set_adapter, "
        f"enable_adapters and delete_adapter; it needs peft >= {NEEDED}"
    ),
    raises=ValueError,
    strict=True,
)
"""For tests of `model.add_adapter`, `set_adapter`, ... of a transformers model that is no `PeftModel`."""

dynamic_caches_are_emptied = pytest.mark.xfail(
    "reset" not in vars(DynamicLayer),
    reason=f"transformers {transformers.__version__}: `reset` of a DynamicCache leaves zeros in it (before 5.19)",
    strict=True,
)
"""For tests that use a `DynamicCache` again after its `reset`."""

multimodal_models_are_batched = pytest.mark.xfail(
    hasattr(paged_cache, "find_num_kv_heads"),
    reason=f"transformers {transformers.__version__}: generate_batch looks for heads in the whole config",
    raises=ValueError,
    strict=True,
)
"""For tests of `generate_batch` on a model of text and images."""
