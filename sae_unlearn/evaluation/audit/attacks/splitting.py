"""Attack: spread the question over several turns of one conversation, or start with harmless turns.

A server keeps the cache of a conversation and does not compute earlier turns again. A gate that did not fire in the
first turns left their tokens unedited, and a gate that loses its state between calls would judge each turn alone.

Budget: black box, one conversation per fact, way and number of turns.
"""

import random
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import DynamicCache, LogitsProcessorList, PreTrainedTokenizerBase

from sae_unlearn.backbone.call_arguments import cache_name, knows_length
from sae_unlearn.backbone.layers import base_model_of, input_device, text_config
from sae_unlearn.backbone.logits import FiniteLogits
from sae_unlearn.backbone.residual_stream import evaluation_mode
from sae_unlearn.backbone.tokens import conversation, padding_id, prompt_ids
from sae_unlearn.checks import check_choice, check_integer
from sae_unlearn.evaluation.audit.attacks.base import AttackPoint, split_cue, with_cue
from sae_unlearn.evaluation.audit.attacks.dilution import FILLER, filler_words
from sae_unlearn.evaluation.metrics.recall import Fact, Recall, is_right
from sae_unlearn.guardrail import guard_layers, record_firings


Way = Literal["in parts", "harmless first"]

_WORDS = 40  # of a harmless turn


class Conversations(NamedTuple):
    """Results of one conversation for each fact.

    Attributes:
        found (list of Recall): Completions of the last turns.
        fired (dict): `[n]` bool by guardrail: it fired in at least one turn. Empty without guardrails.
    """

    found: list[Recall]
    fired: dict[str, Tensor]


def splitting_attack(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    turns: Sequence[int] = (2, 3),
    ways: Sequence[Way] = get_args(Way),
    filler: Sequence[str] = FILLER,
    max_new_tokens: int = 8,
    reply_tokens: int = 16,
    chat_template: bool = False,
    seed: int = 0,
    progress: str | None = None,
) -> list[AttackPoint[Conversations]]:
    """Ask each fact in several turns on one cache.

    With a chat template every part is a user turn, and the model replies to each. Without one the parts follow each
    other, as from a client that keeps a cache, and together they are the whole prompt.

    Controls: the same conversations with the base model, and harmless facts split alike. Without a template, an adapter
    of the weights computes the same in one turn as in several, up to rounding.

    Args:
        model (nn.Module): The model to ask.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        facts (sequence of Fact): The facts.
        turns (sequence of int, *optional*, defaults to (2, 3)): Numbers of turns, the strengths of the points. A fact
            with fewer words has as many turns as words.
        ways (sequence of str, *optional*, defaults to ("in parts", "harmless first")): Variants of the points. "in
            parts" cuts the question between words. "harmless first" asks the whole question in the last turn, with 40
            words of filler in each earlier turn.
        filler (sequence of str, *optional*, defaults to FILLER): Harmless paragraphs.
        max_new_tokens (int, *optional*, defaults to 8): Tokens of the last reply.
        reply_tokens (int, *optional*, defaults to 16): Tokens of earlier replies, with a chat template.
        chat_template (bool, *optional*, defaults to False): Use the tokenizer's chat template.
        seed (int, *optional*, defaults to 0): Seed of the filler. The parts are not random.
        progress (str, *optional*): Title of a progress bar. None shows no bar.

    Raises:
        UnlearnError: If `turns` is below 1, a way is unknown, or the tokenizer has no chat template.
    """
    for way in ways:
        check_choice("ways", way, get_args(Way))
    points = []
    with (
        evaluation_mode(model),
        tqdm(total=len(ways) * len(turns) * len(facts), desc=progress, unit="talk", disable=progress is None) as bar,
    ):
        for way, number in [(way, number) for way in ways for number in turns]:
            found: list[Any] = []
            fired: dict[str, Any] = {}
            for index, fact in enumerate(facts):
                parts = in_parts(fact.prompt, number)
                if way == "harmless first":
                    parts = harmless_first(fact.prompt, number, filler, random.Random(f"{seed} {index}"))
                with record_firings(model) if guard_layers(model) else nullcontext(()) as firings:
                    text = converse(model, tokenizer, parts, max_new_tokens, reply_tokens, chat_template)
                    of_fact: dict[str, bool] = {}
                    for firing in firings:
                        of_fact[firing.adapter] = of_fact.get(firing.adapter, False) or firing.fired
                for name, hit in of_fact.items():
                    fired.setdefault(name, []).append(hit)
                found.append(Recall(fact, text, is_right(text, fact.answers)))
                bar.update()
            rates = {name: torch.tensor(hits, dtype=torch.bool) for name, hits in fired.items()}
            points.append(AttackPoint(float(number), Conversations(found, rates), way))
    return points


def in_parts(prompt: str, turns: int) -> list[str]:
    """Return a prompt cut between words into `turns` parts of similar length, which joined are the prompt.

    Every part except the first begins with its blank. The cue ("Answer:") stays with the last part.
    """
    check_integer("turns", turns, 1)
    stem, cue = split_cue(prompt)
    words = stem.split(" ")
    turns = min(turns, len(words))
    ends = [round(i * len(words) / turns) for i in range(turns + 1)]
    parts = [" ".join(words[a:b]) for a, b in pairwise(ends)]
    return [parts[0], *(f" {part}" for part in parts[1:-1]), with_cue(f" {parts[-1]}", cue)] if turns > 1 else [prompt]


def harmless_first(prompt: str, turns: int, filler: Sequence[str], draw: random.Random) -> list[str]:
    """Return `turns` - 1 turns of filler, each a paragraph, and the prompt."""
    words = filler_words(_WORDS * (turns - 1), filler, draw)
    return [*(" ".join(words[i : i + _WORDS]) + "\n\n" for i in range(0, len(words), _WORDS)), prompt]


@torch.no_grad()
def converse(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[str],
    max_new_tokens: int,
    reply_tokens: int = 16,
    chat_template: bool = False,
) -> str:
    """Return the greedy completion of the last turn, all turns on one cache.

    If a template or a tokenizer encodes the beginning differently after the next turn, the cache no longer matches.
    Then the conversation is read again, as a server does.
    """
    known: list[int] = []
    name = cache_name(base_model_of(model))
    cache, text = _new_cache(model, name), ""
    said: list[str] = []
    for number, turn in enumerate(turns, 1):
        said.append(turn.strip() if chat_template else turn)
        whole = conversation(tokenizer, said) if chat_template else "".join(said)
        ids = _continued(tokenizer, known, text, whole)
        if ids[: len(known)] != known or not cache:
            cache = _new_cache(model, name)
        if number < len(turns) and not chat_template:
            seen = next(iter(cache.values())).get_seq_length() if cache else len(ids)
            if seen < len(ids):  # a turn of blanks may add no token
                _read(model, ids, seen, cache)
            known, text = ids, whole
            continue
        new = max_new_tokens if number == len(turns) else reply_tokens
        row = torch.tensor([ids], device=input_device(model))
        mask = torch.ones_like(row)
        out = cast(Any, model).generate(
            input_ids=row,
            attention_mask=mask,
            **cache,
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=padding_id(tokenizer),
            logits_processor=LogitsProcessorList([FiniteLogits()]),
        )
        reply = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        known, text = out[0].tolist(), whole + tokenizer.decode(out[0, len(ids) :])
        said.append(reply)
    return reply


def _read(model: nn.Module, ids: list[int], seen: int, cache: dict[str, DynamicCache]) -> None:
    """Run the tokens from `seen` on through the model, which extends the cache."""
    row = torch.tensor([ids], device=input_device(model))
    model(
        input_ids=row[:, seen:],
        attention_mask=torch.ones_like(row),
        **cache,
        use_cache=True,
    )


def _new_cache(model: nn.Module, name: str | None) -> dict[str, DynamicCache]:
    """An empty cache under the name of the model's argument for it.

    Empty if the model takes no cache, or one that does not count its tokens (Mamba). Each turn then reads the whole
    conversation.
    """
    cache = DynamicCache(config=text_config(model))
    return {} if name is None or not knows_length(cache) else {name: cache}


def _continued(tokenizer: PreTrainedTokenizerBase, known: list[int], text: str, whole: str) -> list[int]:
    """The ids of `whole`. If it continues `text`, whose ids are `known`, only the rest is tokenized."""
    ids = prompt_ids(tokenizer, whole)
    if ids[: len(known)] == known or not whole.startswith(text):
        return ids
    return known + tokenizer(whole[len(text) :], add_special_tokens=False)["input_ids"]
