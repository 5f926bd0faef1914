"""Small tokenizers of the usual kinds, built on the spot."""

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


CORPUS = [
    "The city of New York is in the country of the United States. They travelled to York and to New York City.",
    "Der Bürgermeister von São Paulo wohnt in Zürich, nicht in Malmö oder Kraków. L'Île-de-France est une région.",
    "東京は日本の首都です。京都も日本の都市です。 The city of 東京 is large. Here is a map of Łódź and Nuuk.",
    "York, Yorkshire, New Yorkers. The player O'Neill scored for the team of St. John's.",
] * 20

CHAT = (
    "{% for m in messages %}<start>{{ m['role'] }}\n{{ m['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)


def _fast(raw: Tokenizer, bos: str | None = None, eos: str | None = None, **special: str) -> PreTrainedTokenizerFast:
    """With the tokens put around every text."""
    around = [token for token in (bos, eos) if token]
    raw.add_special_tokens([*around, "<start>", "<end>", *special.values()])
    if around:
        raw.post_processor = processors.Sequence(
            [
                *([raw.post_processor] if raw.post_processor else []),
                processors.TemplateProcessing(
                    single=" ".join(filter(None, (bos, "$A", eos))),
                    special_tokens=[(token, raw.token_to_id(token)) for token in around],
                ),
            ]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=bos, eos_token=eos, chat_template=CHAT, **special)


@cache
def word_level() -> PreTrainedTokenizerFast:
    """A token for each run of letters or of other characters; closes every text with EOS."""
    words = sorted({word for text in CORPUS for word in pre_tokenizers.Whitespace().pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate(["<unk>", *dict.fromkeys(word for word, _ in words)])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return _fast(raw, "<bos>", "<eos>", unk_token="<unk>")


@cache
def byte_level(special: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2 and Llama 3: byte-level BPE; letters beyond ASCII are several tokens."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False))
    raw.post_processor = processors.ByteLevel(trim_offsets=True)
    return _fast(raw, *(("<bos>", "<eos>") if special else ()))


@cache
def word_piece() -> PreTrainedTokenizerFast:
    """As BERT: lower case, without accents, `##` before what goes on; [CLS] and [SEP] around."""
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]"], show_progress=False)
    )
    return _fast(raw, "[CLS]", "[SEP]", unk_token="[UNK]")


@cache
def unigram() -> PreTrainedTokenizerFast:
    """As T5 and ALBERT: Unigram over words that begin with `▁`; closes every text with EOS."""
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=180, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False),
    )
    return _fast(raw, None, "</s>", unk_token="<unk>")


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2 and Gemma: BPE over `▁`, letters that it does not know as bytes."""
    words = pre_tokenizers.Sequence([pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Punctuation()])
    return _sentencepiece_bpe(words, [text for text in CORPUS if "東" not in text])


@cache
def across_words() -> PreTrainedTokenizerFast:
    """BPE whose tokens go from word to word and swallow what follows a name."""
    return _sentencepiece_bpe(pre_tokenizers.Split(Regex(r"\n"), "isolated"), ["New York City", "東京は"] * 20)


def _sentencepiece_bpe(pre_tokenizer: pre_tokenizers.PreTokenizer, corpus: list[str]) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizer
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    raw.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *every_byte], show_progress=False)
    )
    return _fast(raw, "<bos>", unk_token="<unk>")


SMALL_TOKENIZERS = {
    "word_level": word_level,
    "byte_level": byte_level,
    "byte_level_bos_eos": lambda: byte_level(special=True),
    "word_piece": word_piece,
    "unigram": unigram,
    "byte_fallback": byte_fallback,
}
