"""A tokenizer made on the spot: the zoo's 97 ids, whole words, BOS first, PAD on the left, a chat template."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from zoo import BOS, EOS, PAD, VOCAB


TURN, UNKNOWN = 2, 3
TEMPLATE = "<s>{% for message in messages %}<turn> {{ message.role }} {{ message.content }}{% endfor %}<turn> model"


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words are `w4` to `w93`, `user` and `model`."""
    vocabulary = {"<pad>": PAD, "<s>": BOS, "<turn>": TURN, "<unk>": UNKNOWN, "user": 94, "model": 95, "</s>": EOS}
    vocabulary |= {f"w{i}": i for i in range(VOCAB) if i not in vocabulary.values()}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<turn>"],
        padding_side="left",
        chat_template=TEMPLATE,
    )
