"""`GuardedModel`: the `PeftModel` that `fit_guardrail` and `attach_guardrail` return."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from peft import PeftModelForCausalLM

from sae_unlearn.guardrail.card import CardDetails, base_of, write_card
from sae_unlearn.guardrail.saving import saved_whole
from sae_unlearn.guardrail.upload import upload_folder
from sae_unlearn.model_card import SavedReport, licences_on_the_hub


class GuardedModel(PeftModelForCausalLM):
    """A `PeftModelForCausalLM` whose adapters are guardrails. It differs in what it writes beside the weights: the card
    says what was measured and what is not protected, and `push_to_hub` keeps it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As PEFT's. What that does beyond calling the model is for prompts, and for adapters chosen row by row; the
        usual call is spared it, since it takes as long as the guardrail itself does for a token on a CPU."""
        if len(args) < 2 and self.special_peft_forward_args.isdisjoint(kwargs):
            return self.base_model.model(*args, **kwargs)
        return super().forward(*args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        license: str | None = None,
        evaluation: SavedReport | None = None,
        audit: SavedReport | None = None,
        card: CardDetails | None = None,
        **kwargs: Any,
    ) -> None:
        """As PEFT's, with a card for every guardrail, and without PEFT's search of the Hub for a changed vocabulary.

        Args:
            save_directory: the folder; guardrails with another name than "default" go into folders of that name in it.
            license: the adapter's own, as the Hub names licences, for the card's metadata.
            evaluation, audit: reports (see `sae_unlearn.evaluation`) to be shown in the card and saved beside it.
            card: all that together, and more.
            kwargs: as for `PeftModel.save_pretrained`.

        The folder holds the old guardrail or the new one at every moment, and is sealed against damage; see `saving`.

        Raises:
            GuardrailError: the folder could not be written; what was in it is as it was.
        """
        card = card or CardDetails(license=license, evaluation=evaluation, audit=audit)
        with saved_whole(Path(save_directory)) as stage:
            super().save_pretrained(os.fspath(stage), **{"save_embedding_layers": False} | kwargs)
            if kwargs.get("is_main_process", True):
                for name in kwargs.get("selected_adapters") or list(self.peft_config):
                    folder = stage / ("" if name == "default" else name)
                    write_card(folder, self.peft_config[name], self.get_base_model(), card)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Nothing: PEFT calls this from `save_pretrained`, which writes a card of our own for every guardrail."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload guardrail",
        revision: str | None = None,
        license: str | None = None,
        evaluation: SavedReport | None = None,
        audit: SavedReport | None = None,
        **kwargs: Any,
    ) -> CommitInfo:
        """Save to a temporary folder and upload it, card included, as one commit.

        The card names the licences that the base model and the SAE state on the Hub.

        Args:
            repo_id: `user/name`; made if it is not there.
            private, token, commit_message: as in `huggingface_hub`.
            revision: the branch to commit to, made if it is not there; default "main".
            license, evaluation, audit, kwargs: for `save_pretrained`.

        Returns:
            What `huggingface_hub` says of the commit; its `oid` is the revision to pin.

        Raises:
            GuardrailError: the Hub refused it or could not be reached; nothing was committed.
        """
        sources = {base_of(config, self.get_base_model()).hub_id for config in self.peft_config.values()}
        for config in self.peft_config.values():
            source = getattr(config, "sae_source", None) or {}
            sources.add(None if source.get("local") else source.get("id"))
        card = CardDetails(repo_id, license, licences_on_the_hub(HfApi(token=token), sources), evaluation, audit)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card, **kwargs)
            return upload_folder(folder, repo_id, private, token, commit_message, revision)
