"""The model "sae-unlearn" of the LM evaluation harness: a base, a guarded or a LoRA model.

Importing this needs `lm_eval` and registers the model there.
"""

from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from sae_unlearn.checks import check_integer
from sae_unlearn.cli.inputs import load_model, with_adapter
from sae_unlearn.evaluation.metrics.likelihood import continuation_likelihoods


@register_model("sae-unlearn")
class HarnessModel(HFLM):
    """The harness' "hf" with an adapter, and with the scoring of `evaluate`.

    The harness pads rows without a mask and leaves out each row's last token, so a gate would read the padding as text.
    This model reads every row without padding, with the function that scores options in `evaluate`, so the two agree.

    Args:
        pretrained (str): Hub id or folder of a causal language model, or "demo".
        adapter (str, *optional*): Folder or Hub id of a guardrail, or of a PEFT adapter such as a LoRA; None for none.
        adapter_revision (str, *optional*): Branch, tag or commit of the adapter.
        revision (str, *optional*): Branch, tag or commit of the model.
        device (str, *optional*): As in `sae-unlearn evaluate`.
        dtype (str, *optional*, defaults to "auto"): As in `sae-unlearn evaluate`.
        batch_size (int or str, *optional*, defaults to 8): Rows per forward pass, a number.
        **options (Any): Options of the harness' "hf".

    Raises:
        OSError: If the model or the adapter cannot be found.
        UnlearnError: If the adapter does not belong to the model, or `batch_size` is not a number above 0.
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
        check_integer("batch_size", int(batch_size) if str(batch_size).isdecimal() else batch_size, 1)
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            device = None  # the harness passes "cuda:0" by default
        model, tokenizer = load_model(pretrained, revision, device, dtype)
        if adapter:
            model = with_adapter(model, adapter, adapter_revision)
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=int(batch_size), **options)

    @property
    def max_length(self) -> int:
        """The model's length less one: the harness leaves out a row's last token, and this model reads it."""
        return int(super().max_length) - 1

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and True if it is the greedy one.

        Rows that are too long lose their first tokens.
        """
        rows = [(context + continuation)[-self.max_length - 1 :] for _, context, continuation in requests]
        tokens = [
            min(len(continuation), len(row) - 1) for (_, _, continuation), row in zip(requests, rows, strict=True)
        ]
        bar = None if disable_tqdm else "sae-unlearn: log-likelihoods"
        log_probs, greedy = continuation_likelihoods(
            self.model, rows, tokens, batch_size=override_bs or self.batch_size, progress=bar
        )
        answers = list(zip(log_probs.tolist(), greedy.tolist(), strict=True))
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers
