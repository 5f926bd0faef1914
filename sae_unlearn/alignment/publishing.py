"""`PublishingTrainer`: saves the adapter of an alignment, writes its card and uploads both."""

import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from peft.utils import CONFIG_NAME
from transformers import Trainer

from sae_unlearn.alignment.card import REPORTS, AlignmentCard, card_fields, write_card
from sae_unlearn.alignment.metrics import Portrait
from sae_unlearn.alignment.plot import PICTURE, draw_portrait
from sae_unlearn.alignment.reference import AlignmentSetting
from sae_unlearn.alignment.saved_folder import TRAINING_ARGS_NAME, trained_adapter_alone, unpublished_training_args
from sae_unlearn.cards.card import SavedReport, licenses_on_the_hub
from sae_unlearn.errors import AlignmentError
from sae_unlearn.files.atomic import staged


logger = logging.getLogger(__name__)


class PublishingTrainer(Trainer):
    """The part of `SAEAlignmentTrainer` that writes to a folder and to the Hub.

    Attributes:
        setting (AlignmentSetting): The frozen references, which the card describes.
    """

    setting: AlignmentSetting
    _card: AlignmentCard

    def portrait(self) -> Portrait:
        """Return where known, unknown and target entities stand."""
        raise NotImplementedError

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        *,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload as `Trainer` does. The card names the licenses of the base model and the SAE on the Hub.

        Args:
            commit_message (str, *optional*, defaults to "End of training"): As in `Trainer.push_to_hub`.
            blocking (bool, *optional*, defaults to True): As in `Trainer.push_to_hub`.
            token (str, *optional*): As in `Trainer.push_to_hub`.
            private (bool, *optional*): Whether a repository that does not exist yet is made private. None takes
                `args.hub_private_repo`.
            kwargs: `revision` as in `Trainer.push_to_hub`, and `license` as in `create_model_card`.

        Returns:
            Any: As from `Trainer.push_to_hub`.

        Raises:
            AlignmentError: If `license` is not a name of a license.
        """
        _check_license(kwargs.get("license"))
        self._ask_for_licenses(token)
        of_settings = self.args.hub_private_repo
        if private is not None:
            # transformers 5.16: `Trainer.push_to_hub` has no such argument, and passes it to the card.
            self.args.hub_private_repo = private
        try:
            return super().push_to_hub(commit_message, blocking, token, **kwargs)
        finally:
            self.args.hub_private_repo = of_settings

    def create_model_card(self, *, license: str | None = None, model_name: str | None = None, **kwargs: Any) -> None:
        """Write the card of the alignment into the output folder.

        Args:
            license (str, *optional*): License of the adapter as the Hub names licenses, in this card and in every later
                one. None keeps that of the settings.
            model_name (str, *optional*): Argument of `Trainer`, not used: the card knows its repository.
            kwargs: Other arguments of `Trainer`, which the card does not use; a warning names them.

        Raises:
            AlignmentError: If `license` is not a name of a license.
        """
        unused = sorted(name for name, value in kwargs.items() if value)
        if unused:
            logger.warning("The card ignores %s.", ", ".join(unused))
        _check_license(license)
        if license is not None:
            self._card = replace(self._card, license=license)
        if self.is_world_process_zero():
            if self.args.world_size == 1:  # a forward pass of a single process would wait for the others forever
                with suppress(ImportError):  # without matplotlib the card has no picture
                    draw_portrait(self.portrait(), Path(self.args.output_dir) / PICTURE)
            self._write_card(self.args.output_dir)

    def add_to_card(self, **reports: SavedReport) -> None:
        """Show reports in every card that is written from now on, and save them with it.

        Args:
            reports: `evaluation=` and `audit=`, from `sae_unlearn.evaluation`.

        Raises:
            AlignmentError: If the name is another one, or the value is not a report.
        """
        unknown = sorted(set(reports) - set(REPORTS))
        if unknown:
            raise AlignmentError(f"reports={unknown}: expected {' or '.join(REPORTS)}.")
        for name, report in reports.items():
            if not callable(getattr(report, "to_card", None)):
                raise AlignmentError(
                    f"{name}: expected a report of sae_unlearn.evaluation, got {type(report).__name__}."
                )
        self._card = replace(self._card, reports={**self._card.reports, **reports})

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the trained adapter at the top of the folder, whatever its name, without other adapters.

        `Trainer` looks there for the best checkpoint, and `PeftModel.from_pretrained` for the adapter. Each file is
        replaced as a whole. No file system replaces two at once: if the adapter's config changes, a kill between them
        leaves no adapter in the folder, and never the weights of one under the config of the other.

        Raises:
            UnlearnError: If the folder cannot be written. Its content is then unchanged.
        """
        with staged(Path(output_dir or self.args.output_dir), key=CONFIG_NAME) as stage:
            super()._save(str(stage), state_dict)
            (stage / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle, which is not read
            if (stage / CONFIG_NAME).is_file() or any(stage.glob(f"*/{CONFIG_NAME}")):
                trained_adapter_alone(stage, self.accelerator.unwrap_model(self.model).active_adapters[0])
            self._write_card(str(stage))  # replaces PEFT's generic one

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero():
            if not self._card.licenses:  # requested once during training
                self._ask_for_licenses(self.args.hub_token)
            # `Trainer` uploads it with the checkpoint, except the checkpoint's card
            self._write_card(self.args.output_dir)
        with unpublished_training_args(self.args.output_dir):
            super()._push_from_checkpoint(checkpoint_folder)

    def _write_card(self, folder: str) -> None:
        last: dict[str, float] = next((log for log in reversed(self.state.log_history) if "eval_loss" in log), {})
        fields = card_fields(self.setting, self.args, self.state.global_step)
        write_card(folder, replace(self._card, repo_id=self._repo_id()), fields, last)

    def _repo_id(self) -> str | None:
        """The repository's full id, or None if its owner is unknown."""
        wanted = self.hub_model_id or self.args.hub_model_id or ""
        return wanted if "/" in wanted else None

    def _ask_for_licenses(self, token: str | None) -> None:
        """Ask the Hub for the licenses of the base model and of the SAE, for this card and later ones."""
        if self.is_world_process_zero():
            source = self._card.sae_source or {}
            names = (self._card.base.hub_id, None if source.get("local") else source.get("id"))
            found = licenses_on_the_hub(HfApi(token=token or self.args.hub_token), names)
            self._card = replace(self._card, licenses={**self._card.licenses, **found})


def _check_license(license: Any) -> None:
    if license is not None and not isinstance(license, str):
        raise AlignmentError(f"license={license!r}: expected a name as on the Hub, got {type(license).__name__}.")
