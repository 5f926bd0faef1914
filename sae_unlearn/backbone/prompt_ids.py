"""Token ids of a text that something is to follow."""

from transformers import PreTrainedTokenizerBase


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """`text` as the tokenizer makes it, less an EOS or SEP with which some tokenizers close every text: nothing would
    follow that. One that stands at the end of the text itself stays."""
    ids = list(tokenizer(text)["input_ids"])
    closing = [getattr(tokenizer, name, None) for name in ("eos_token_id", "sep_token_id")]
    if len(ids) > 1 and ids[-1] in closing:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[:-1] if ids[-1 - len(own) : -1] == own else ids
    return ids
