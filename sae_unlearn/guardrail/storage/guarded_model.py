"""`GuardedModel`: the `PeftModel` that `fit_guardrail` and `attach_guardrail` return."""

import inspect
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from peft import PeftConfig, PeftModelForCausalLM

from sae_unlearn.cards.card import SavedReport
from sae_unlearn.errors import GuardrailError, as_guardrail_error
from sae_unlearn.files.upload import CommitOptions, make_repository
from sae_unlearn.guardrail.base_model.nesting import check_joins
from sae_unlearn.guardrail.storage.card import CardDetails, hub_licenses, write_card
from sae_unlearn.guardrail.storage.saving import saved_whole
from sae_unlearn.guardrail.storage.upload import commit_folder


# PEFT accepts any other argument and ignores it, except `state_dict`.
_PEFT_OPTIONS = {*inspect.signature(PeftModelForCausalLM.save_pretrained).parameters, "state_dict"}
_PEFT_OPTIONS -= {"self", "save_directory", "kwargs"}


class GuardedModel(PeftModelForCausalLM):
    """A `PeftModelForCausalLM` whose adapters are guardrails.

    It saves a card with measurements and limits next to the weights, and `push_to_hub` keeps it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, as PEFT does.

        PEFT's own `forward` adds steps for prompts and for adapters chosen row by row. A usual call skips them, since
        they take as long as the guardrail itself for a token on a CPU.
        """
        if len(args) < 2 and self.special_peft_forward_args.isdisjoint(kwargs):
            return self.base_model.model(*args, **kwargs)
        return super().forward(*args, **kwargs)

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, *args: Any, **kwargs: Any) -> None:
        """Add another guardrail, as PEFT does; `load_adapter` calls it, too.

        Raises:
            GuardrailError: If the adapter is of another method. Attach it to the base model before the guardrail.
        """
        check_joins(adapter_name, peft_config)
        super().add_adapter(adapter_name, peft_config, *args, **kwargs)

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
        """Save the guardrails as PEFT does, with a card for each, atomically and sealed; see `saving`.

        PEFT's search of the Hub for a changed vocabulary is skipped.

        Args:
            save_directory (str or PathLike): The folder. Guardrails with another name than "default" are saved in
                folders of their name.
            license (str, *optional*): License of the adapter for the card's metadata, by the Hub's names.
            evaluation (SavedReport, *optional*): Report of `sae_unlearn.evaluation`, shown in the card and saved with
                it.
            audit (SavedReport, *optional*): Audit of `sae_unlearn.evaluation`, shown in the card and saved with it.
            card (CardDetails, *optional*): Content of the card, in place of the three above.
            **kwargs (Any): As for `PeftModel.save_pretrained`.

        Raises:
            GuardrailError: If the folder cannot be written, which leaves it unchanged, or an argument is unknown.
        """
        _check_known(kwargs, "save_pretrained")
        card = card or CardDetails(license=license, evaluation=evaluation, audit=audit)
        with saved_whole(Path(save_directory)) as stage:
            super().save_pretrained(os.fspath(stage), **{"save_embedding_layers": False} | kwargs)
            if kwargs.get("is_main_process", True):
                for name in kwargs.get("selected_adapters") or list(self.peft_config):
                    place = _folder_of(name)
                    details = replace(card, subfolder=place) if card.subfolder is None else card
                    write_card(stage / place, self.peft_config[name], self.get_base_model(), details)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Do nothing. PEFT calls this from `save_pretrained`, which saves this package's own cards."""

    @as_guardrail_error()
    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload guardrail",
        commit_description: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
        evaluation: SavedReport | None = None,
        audit: SavedReport | None = None,
        **kwargs: Any,
    ) -> CommitInfo:
        """Save the guardrail to a temporary folder and upload it, card included, as one commit.

        Under any name on the model, it is saved in the root of the repository, where `attach_guardrail` finds it. The
        card names the licenses of the base model and the SAE on the Hub. The same commit deletes files of an earlier
        save of this package that are not in this one; see `earlier_save`.

        Args:
            repo_id (str): `user/name`, created if it does not exist.
            private (bool, *optional*): As in `huggingface_hub`.
            token (str or bool, *optional*): As in `huggingface_hub`.
            commit_message (str, *optional*, defaults to "Upload guardrail"): As in `huggingface_hub`.
            commit_description (str, *optional*): As in `huggingface_hub`.
            revision (str, *optional*): Branch to commit to, created if it does not exist. Defaults to "main".
            create_pr (bool, *optional*, defaults to False): True to open a pull request with the commit and leave
                "main" unchanged.
            license (str, *optional*): As for `save_pretrained`.
            evaluation (SavedReport, *optional*): As for `save_pretrained`.
            audit (SavedReport, *optional*): As for `save_pretrained`.
            **kwargs (Any): As for `save_pretrained`. If the model has several guardrails, `selected_adapters` must name
                one.

        Returns:
            The `CommitInfo` of `huggingface_hub`; its `oid` is the revision to pin.

        Raises:
            GuardrailError: If the Hub refuses it or cannot be reached, several guardrails are selected, or an argument
                is unknown. Nothing was committed.
        """
        _check_known(kwargs, "push_to_hub")
        name = self._pushed(kwargs.pop("selected_adapters", None))
        options = CommitOptions(commit_message, commit_description, revision, create_pr)
        api = HfApi(token=token)
        repo_id = make_repository(api, repo_id, private)
        licenses = hub_licenses(api, [self.peft_config[name]], self.get_base_model())
        card = CardDetails(repo_id, license, licenses, evaluation, audit, subfolder="")
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card, selected_adapters=[name], **kwargs)
            return commit_folder(api, repo_id, Path(folder, _folder_of(name)), options)

    def _pushed(self, selected: str | Iterable[str] | None) -> str:
        """Return the name of the guardrail to push."""
        names = [selected] if isinstance(selected, str) else list(self.peft_config if selected is None else selected)
        absent = [name for name in names if name not in self.peft_config]
        if absent:
            raise GuardrailError(f"selected_adapters={selected!r}: expected some of {list(self.peft_config)}.")
        if len(names) != 1:
            raise GuardrailError(
                f"selected_adapters: expected one guardrail, got {names}. Pass one, or push all of them as a bundle "
                "with `push_bundle`."
            )
        return names[0]


def _folder_of(name: str) -> str:
    """Return the subfolder in which PEFT saves an adapter."""
    return "" if name == "default" else name


def _check_known(options: Iterable[str], function: str) -> None:
    unknown = sorted(set(options) - _PEFT_OPTIONS)
    if unknown:
        known = ", ".join(sorted(_PEFT_OPTIONS))
        raise GuardrailError(f"{unknown[0]!r}: expected an argument of `{function}` or one of PEFT's: {known}.")
