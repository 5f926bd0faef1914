"""The tokenizer of the tiny topic, with a token for a blank line in the place of the word `w94`."""

from tiny_topic import tiny_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def paragraph_tokenizer() -> PreTrainedTokenizerFast:
    """Words of the tiny topic; `\\n\\n` is one token, and a single newline is none."""
    raw: Tokenizer = tiny_tokenizer().backend_tokenizer
    vocabulary = raw.get_vocab()
    vocabulary["\n\n"] = vocabulary.pop("w94")
    changed = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    changed.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n\n", "isolated"), pre_tokenizers.Split(Regex(r" +|(?<!\n)\n(?!\n)"), "removed")]
    )
    changed.post_processor = raw.post_processor
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=changed, **names)
