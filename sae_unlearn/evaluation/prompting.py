"""How questions become prompts, for plain models and for those with a chat template."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def question_prompt(tokenizer: PreTrainedTokenizerBase, question: str, chat_template: bool = False) -> str:
    """A question up to where its answer begins: "question\\nAnswer:".

    With `chat_template` the question is the user's turn and the model's turn begins with "Answer:". Either way the
    answer's first token carries the blank before it.
    """
    if not chat_template:
        return f"{question}\nAnswer:"
    return turn_prompt(tokenizer, question) + "Answer:"


def turn_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` as the user's turn, and the beginning of the model's, as text to be tokenised in the ordinary way.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    return conversation(tokenizer, [text])


def conversation(tokenizer: PreTrainedTokenizerBase, said: Sequence[str]) -> str:
    """What user and model said in turn, the user first and last, and the beginning of the model's next turn; as text to
    be tokenised in the ordinary way. A BOS that the template writes is left out where the tokenizer writes one itself.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("chat_template=True, but this tokenizer has no chat template; leave it out.")
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    bos = tokenizer.bos_token
    if bos and rendered.startswith(bos) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        rendered = rendered[len(bos) :]
    return rendered
