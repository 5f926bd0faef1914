"""Readers of published SAE formats: one file per format, registered here.

To add one, write a file with a `READER` and list it below; a user's own is added with `register_reader`.
"""

from sae_unlearn.sae.formats import (
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    llama_scope,
    llama_scope_r1,
    openai,
    qwen_scope,
    saelens,
    sparsify,
)
from sae_unlearn.sae.formats.base import (
    READERS,
    Reader,
    find_reader,
    matching_readers,
    needs,
    one_of,
    register_reader,
)


__all__ = ["READERS", "Reader", "find_reader", "matching_readers", "needs", "one_of", "register_reader"]

for module in (
    saelens,
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    llama_scope_r1,
    qwen_scope,
    sparsify,
    dictionary_learning,
    goodfire,
    openai,
):
    register_reader(module.READER)
