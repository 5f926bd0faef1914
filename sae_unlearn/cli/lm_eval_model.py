"""The model "sae-unlearn" of the LM evaluation harness: a base, a guarded or a LoRA model.

Importing this needs `lm_eval` and registers the model there.
"""

from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from sae_unlearn.cli.inputs import load_model, with_adapter
from sae_unlearn.evaluation.metrics.likelihood import continuation_likelihoods


@register_model("sae-unlearn")
class HarnessModel(HFLM):
    """As the harness' "hf", but for the adapter, and for how options are scored.

    The harness pads rows and gives no mask for it, and leaves out each row's last token; a gate would judge the padding
    as text. Here every row is read as it is, by the function that scores options in `evaluate`, so that the two agree.

    Args:
        pretrained: Hub id or folder of a causal language model, or "demo".
        adapter: folder or Hub id of a guardrail, or of a PEFT adapter such as a LoRA; None for none.
        adapter_revision, revision: branch, tag or commit.
        device, dtype: as in `sae-unlearn evaluate`.
        batch_size: rows per forward pass, a number.
        options: of the harness' "hf".

    Raises:
        OSError, ValueError: a model or an adapter that is not there or does not belong, or another batch size.
    """

    def __init__(
        self,
        pretrained: str,
        adapter: str | None = None,
        adapter_revision: str | None = None,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 8,
        **options: Any,
    ) -> None:
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size}; the model sae-unlearn needs a number, 1 or more.")
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            device = None  # the harness asks for "cuda:0" where nobody said anything
        model, tokenizer = load_model(pretrained, revision, device, dtype)
        if adapter:
            model = with_adapter(model, adapter, adapter_revision)
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=int(batch_size), **options)

    @property
    def max_length(self) -> int:
        """One less than the model reads: the harness counts what goes in, a row less its last token, and here the whole
        row does."""
        return int(super().max_length) - 1

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether it is the greedy one. Rows that are too long lose their
        first tokens."""
        rows = [(context + continuation)[-self.max_length - 1 :] for _, context, continuation in requests]
        tokens = [
            min(len(continuation), len(row) - 1) for (_, _, continuation), row in zip(requests, rows, strict=True)
        ]
        bar = None if disable_tqdm else "sae-unlearn: log-likelihoods"
        log_probs, greedy = continuation_likelihoods(self.model, rows, tokens, override_bs or self.batch_size, bar)
        answers = list(zip(log_probs.tolist(), greedy.tolist(), strict=True))
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers
