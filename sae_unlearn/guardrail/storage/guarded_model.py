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
from peft.tuners.tuners_utils import BaseTuner

from sae_unlearn.cards.card import SavedReport
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.nesting import check_joins
from sae_unlearn.guardrail.runtime.hooks import ModelHooks, hooks_of
from sae_unlearn.guardrail.storage.card import CardDetails, hub_licenses, write_card
from sae_unlearn.guardrail.storage.saving import saved_whole
from sae_unlearn.guardrail.storage.upload import CommitOptions, commit_folder, make_repository


# PEFT takes any others, and lets them vanish; `state_dict` is the one that it reads from among them.
_PEFT_OPTIONS = {*inspect.signature(PeftModelForCausalLM.save_pretrained).parameters, "state_dict"}
_PEFT_OPTIONS -= {"self", "save_directory", "kwargs"}


class GuardedModel(PeftModelForCausalLM):
    """A `PeftModelForCausalLM` whose adapters are guardrails. It differs in what it writes beside the weights: the card
    says what was measured and what is not protected, and `push_to_hub` keeps it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As PEFT's. What that does beyond calling the model is for prompts, and for adapters chosen row by row; the
        usual call is spared it, since it takes as long as the guardrail itself does for a token on a CPU."""
        if len(args) < 2 and self.special_peft_forward_args.isdisjoint(kwargs):
            return self.base_model.model(*args, **kwargs)
        return super().forward(*args, **kwargs)

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, *args: Any, **kwargs: Any) -> None:
        """As PEFT's, for another guardrail; `load_adapter` comes here too.

        Raises:
            GuardrailError: the adapter is of another method. It goes on the base model first, the guardrail after it.
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
        """As PEFT's, with a card for every guardrail, and without PEFT's search of the Hub for a changed vocabulary.

        Args:
            save_directory: the folder; guardrails with another name than "default" go into folders of that name in it.
            license: the adapter's own, as the Hub names licenses, for the card's metadata.
            evaluation, audit: reports (see `sae_unlearn.evaluation`) to be shown in the card and saved beside it.
            card: all that together, and more.
            kwargs: as for `PeftModel.save_pretrained`.

        The folder holds the old guardrail or the new one at every moment, and is sealed against damage; see `saving`.

        Raises:
            GuardrailError: the folder could not be written, and what was in it is as it was; or there is no such
                argument.
        """
        _check_known(kwargs, "save_pretrained")
        card = card or CardDetails(license=license, evaluation=evaluation, audit=audit)
        hooks = hooks_of(self.get_base_model(), ModelHooks)
        if hooks is not None and not hasattr(BaseTuner, "_get_adapter_state_dict"):  # PEFT 0.20 asks no tuner
            hooks.base.warn_if_changed(self)
        with saved_whole(Path(save_directory)) as stage:
            super().save_pretrained(os.fspath(stage), **{"save_embedding_layers": False} | kwargs)
            if kwargs.get("is_main_process", True):
                for name in kwargs.get("selected_adapters") or list(self.peft_config):
                    place = _folder_of(name)
                    details = replace(card, subfolder=place) if card.subfolder is None else card
                    write_card(stage / place, self.peft_config[name], self.get_base_model(), details)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Nothing: PEFT calls this from `save_pretrained`, which writes a card of our own for every guardrail."""

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

        Whatever its name on the model, it lies in the repository itself, so that `attach_guardrail` finds it. The card
        names the licenses that the base model and the SAE state on the Hub. What an earlier save of this package left
        in the repository, and is not in this one, is removed in the same commit; see `earlier_save`.

        Args:
            repo_id: `user/name`; made if it is not there.
            private, token, commit_message, commit_description: as in `huggingface_hub`.
            revision: the branch to commit to, made if it is not there; default "main".
            create_pr: open a pull request with the commit, and leave "main" as it is.
            license, evaluation, audit, kwargs: for `save_pretrained`. Of several guardrails on the model
                `selected_adapters` must name one.

        Returns:
            What `huggingface_hub` says of the commit; its `oid` is the revision to pin.

        Raises:
            GuardrailError: the Hub refused it or could not be reached; or there are several guardrails, or no such
                argument. Nothing was committed.
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
        """The name of the one guardrail that is pushed."""
        names = [selected] if isinstance(selected, str) else list(self.peft_config if selected is None else selected)
        absent = [name for name in names if name not in self.peft_config]
        if absent:
            raise GuardrailError(f"selected_adapters={selected!r}, but the model has {list(self.peft_config)}.")
        if len(names) != 1:
            raise GuardrailError(
                f"`push_to_hub` pushes one guardrail, but these are {names}: name one as `selected_adapters=[...]`, or "
                "push all of them as a bundle with `push_bundle`."
            )
        return names[0]


def _folder_of(name: str) -> str:
    """Where PEFT saves an adapter in the folder that it is given."""
    return "" if name == "default" else name


def _check_known(options: Iterable[str], function: str) -> None:
    unknown = sorted(set(options) - _PEFT_OPTIONS)
    if unknown:
        known = ", ".join(sorted(_PEFT_OPTIONS))
        raise GuardrailError(f"{unknown[0]!r} is no argument of `{function}`; beside its own it takes PEFT's: {known}.")
