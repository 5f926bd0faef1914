"""The tiny topic's tokenizer with the letters A to D in place of four words, and a chat template."""

from tiny_topic import UNKNOWN
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from zoo import BOS, EOS, PAD


LETTERS = {"A": 91, "B": 92, "C": 93, "D": 94}
QUESTION, ANSWER = 89, 90


def lettered_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": PAD, "<bos>": BOS, "<unk>": UNKNOWN, "<eos>": EOS, "Question:": QUESTION, "Answer:": ANSWER}
    vocabulary |= LETTERS | {f"w{i}": i for i in range(2, 89)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{{ bos_token }} w70 {% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} w71\n{% endif %}"
    )
    return tokenizer
