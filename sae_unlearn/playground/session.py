"""Bare and guarded answers to one prompt, token by token, and the gate's view, without an interface.

Prompts are not kept: a `Session` holds the model and the guardrail.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.backbone.adapters_off import guards_off
from sae_unlearn.backbone.call_arguments import cache_name, cache_of
from sae_unlearn.backbone.layers import bare_model, input_device
from sae_unlearn.backbone.residual_stream import ResidualBatch, evaluation_mode
from sae_unlearn.backbone.tokens import turn_prompt
from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.explorer.texts import clamp_of, the_guardrail
from sae_unlearn.guardrail.gate.offline import content_tokens, read_batch, unguarded_residuals
from sae_unlearn.playground.settings import LONGEST, Settings


MESSAGE = "I cannot help with that."
"""Refusal of a guardrail that has none of its own."""
GATE_POINTS = 64  # of the curve; each is a prefix of the row
_PREFIXES = 16  # judged at a time


@dataclass(frozen=True)
class TokenView:
    """A token as the gate sees it.

    Attributes:
        text: The token.
        evidence: What its active features say for the topic; negative if they say otherwise, 0 if none is active.
        features: Ids and activations of the features active there, the largest first.
    """

    text: str
    evidence: float
    features: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class GateView:
    """The gate's view of a row.

    Attributes:
        tokens: The row.
        places: Numbers of the tokens at which the statistic was read.
        values: The statistic of the row up to there.
        threshold: The gate fires above it.
        decides_from: Number of the token from which on the gate decides: the last one of the prompt, which is judged
            as a whole, or the first one with `gate_scope="prefix"`.
        sticky: Whether a row that fired once stays fired.
        answer_from: Number of the first token of the answer; None if the row is a prompt alone.
    """

    tokens: tuple[TokenView, ...]
    places: tuple[int, ...]
    values: tuple[float, ...]
    threshold: float
    decides_from: int = 0
    sticky: bool = True
    answer_from: int | None = None

    @property
    def deciding(self) -> float:
        """Largest value from `decides_from` on, or the last value if the gate is not sticky."""
        found = [v for place, v in zip(self.places, self.values, strict=True) if place >= self.decides_from]
        return (max(found) if self.sticky else found[-1]) if found else 0.0

    @property
    def fired(self) -> bool:
        """True if the gate fires."""
        return bool(self.values) and self.deciding > self.threshold


@dataclass(frozen=True)
class Answers:
    """The answers so far.

    Attributes:
        bare, guarded: The texts.
        done: Whether both are complete.
        gate: What the gate sees in the prompt, and at the end in prompt and guarded answer.
    """

    bare: str = ""
    guarded: str = ""
    done: bool = False
    gate: GateView | None = None


@dataclass
class _Stream:
    """One answer that is being decoded."""

    ids: list[int]
    cache: Any = None
    answer: list[int] = field(default_factory=list)
    done: bool = False


class Session:
    """A model with a guardrail, to be tried; one prompt at a time.

    Args:
        model (nn.Module): With the guardrail attached.
        tokenizer (PreTrainedTokenizerBase): The model's.
        adapter_name (str, *optional*): The guardrail. Not needed if there is one.

    Raises:
        GuardrailError: If the guardrail does not exist.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, adapter_name: str | None = None) -> None:
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self.name, self.layer = the_guardrail(model, adapter_name)
        self.config = self.layer.guard_config[self.name]
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        name = cache_name(bare_model(model))
        if name is None:
            raise UnlearnError(f"model: expected one with a cache, got {type(model).__name__}. Use `generate`.")
        self._cache_name: str = name
        self._lock = threading.Lock()

    def answers(self, prompt: str, settings: Settings | None = None) -> Iterator[Answers]:
        """Yield the answers as they grow, the gate's view of the prompt first; both advance token by token.

        Decoding is greedy, so that the two differ by the guardrail alone.

        Raises:
            UnlearnError: If the prompt is empty or too long.
        """
        settings = settings or Settings()
        ids = self.prompt_ids(prompt, settings.chat_template)
        with self._lock, torch.no_grad(), evaluation_mode(self.model), self._with(settings):
            gate = self.gate(ids)
            yield Answers(gate=gate)
            bare, guarded = _Stream(ids), _Stream(ids)
            for _ in range(settings.max_new_tokens):
                self._step(bare, guarded=False)
                self._step(guarded, guarded=settings.enabled)
                yield Answers(self._text(bare), self._text(guarded), gate=gate)
                if bare.done and guarded.done:
                    break
            yield Answers(self._text(bare), self._text(guarded), True, self.gate(ids + guarded.answer, len(ids)))

    def prompt_ids(self, prompt: str, chat_template: bool = True) -> list[int]:
        """The token ids of a prompt, in the chat template if there is one and it is asked for.

        Raises:
            UnlearnError: If it is empty or too long.
        """
        if not prompt.strip():
            raise UnlearnError("prompt: expected a text, got nothing. Type one.")
        if chat_template and self.has_template:
            ids = self.tokenizer(turn_prompt(self.tokenizer, prompt)).input_ids
        else:
            ids = self.tokenizer(prompt).input_ids
        if len(ids) > LONGEST:
            raise UnlearnError(f"prompt: expected at most {LONGEST} tokens, got {len(ids)}. Shorten it.")
        return list(ids)

    @torch.no_grad()
    def gate(self, ids: list[int], prompt: int | None = None) -> GateView:
        """Return the gate's view of a row of token ids, read on the model without guardrails.

        Args:
            ids (list[int]): Prompt and answer.
            prompt (int, *optional*): Number of tokens of the prompt; all without it.
        """
        [batch] = list(unguarded_residuals(bare_model(self.model), [ids], self.config.layer, 1))
        encoder: Any = self.layer.sae_guardrail_encoder[self.name]
        activations = encoder.to(batch.residual.device)(batch.residual)
        activations = activations.where(content_tokens(batch, self.config)[..., None], 0)
        evidence = self.config.feature_evidence
        active = (activations[0] != 0).float().cpu()
        hits = (active.amax(dim=-1) if evidence is None else active @ torch.tensor([*evidence])).tolist()
        tokens = tuple(
            TokenView(self.tokenizer.decode([i]), hit, self._features(row))
            for i, hit, row in zip(ids, hits, activations[0].float().cpu(), strict=True)
        )
        begin = 0 if self.config.gate_scope == "prefix" else (prompt or len(ids)) - 1
        drawn = {round(i) for i in torch.linspace(0, len(ids) - 1, min(GATE_POINTS, len(ids))).tolist()}
        places = sorted(drawn | {*range(begin, len(ids))})
        values = tuple(self._values(batch, places))
        return GateView(tokens, tuple(places), values, self.config.tau, begin, self.config.sticky, prompt)

    def _values(self, batch: ResidualBatch, places: list[int]) -> list[float]:
        encoder: Any = self.layer.sae_guardrail_encoder[self.name]
        found: list[float] = []
        for start in range(0, len(places), _PREFIXES):
            part = places[start : start + _PREFIXES]
            longest = part[-1] + 1
            kept = torch.arange(longest) <= torch.tensor(part)[:, None]
            many = ResidualBatch(
                batch.residual[:, :longest].expand(len(part), -1, -1),
                batch.input_ids[:, :longest].expand(len(part), -1),
                kept.to(batch.kept.device),
                list(range(len(part))),
            )
            found += read_batch(many, encoder, self.config).statistics.tolist()
        return found

    def _features(self, row: Tensor) -> tuple[tuple[int, float], ...]:
        ids = [*(self.config.feature_ids or ()), *(self.config.gate_feature_ids or ())]
        active = [(ids[i], round(float(row[i]), 3)) for i in row[: len(ids)].nonzero().flatten().tolist()]
        return tuple(sorted(active, key=lambda pair: -pair[1])[:5])

    def _step(self, stream: _Stream, guarded: bool) -> None:
        if stream.done:
            return
        new = stream.ids if stream.cache is None else stream.answer[-1:]
        device = input_device(bare_model(self.model))
        mask = torch.ones(1, len(stream.ids) + len(stream.answer), dtype=torch.long, device=device)
        with nullcontext() if guarded else guards_off(self.model):
            past = {} if stream.cache is None else {self._cache_name: stream.cache}
            ids = torch.tensor([new], device=device)
            out = self.model(input_ids=ids, attention_mask=mask, use_cache=True, **past)
        stream.cache = cache_of(out)
        token = int(out.logits[0, -1].argmax())
        if token in self._ends():
            stream.done = True
        else:
            stream.answer.append(token)

    def _ends(self) -> set[int]:
        found: set[int] = set()
        for owner in (self.tokenizer, getattr(bare_model(self.model), "generation_config", None)):
            value = getattr(owner, "eos_token_id", None)
            found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
        return found

    def _text(self, stream: _Stream) -> str:
        return str(self.tokenizer.decode(stream.answer, skip_special_tokens=True))

    @contextmanager
    def _with(self, settings: Settings) -> Iterator[None]:
        """The guardrail with these settings; afterwards it is as it was."""
        config, clamp = self.config, clamp_of(self.layer, self.name)
        own, before = (config.threshold, config.action), clamp.detach().clone()
        refusal = (config.refusal, config.refusal_ids, config.refusal_compared)
        with ExitStack() as stack:
            stack.callback(self._restore, own, before, refusal)
            if settings.threshold is not None:
                config.threshold = settings.threshold
            if settings.dose != 1:
                clamp.copy_(before * settings.dose)
            if settings.action is not None and settings.action != config.action:
                self._act(settings.action)
            yield

    def _act(self, action: str) -> None:
        from sae_unlearn.guardrail.tuning.action import set_action

        message = MESSAGE if action == "refuse" and self.config.refusal_ids is None else None
        set_action(self.model, self.name, action, message=message, tokenizer=self.tokenizer)

    def _restore(self, own: tuple[Any, str], before: Tensor, refusal: tuple[Any, Any, bool]) -> None:
        with torch.no_grad():
            clamp_of(self.layer, self.name).copy_(before)
        self.config.threshold, self.config.action = own
        self.config.refusal, self.config.refusal_ids, compared = refusal
        self.config.refusal_compared = compared  # type: ignore[misc]  # a ClassVar, so that it is not a field
