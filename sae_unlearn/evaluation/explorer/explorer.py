"""The picture of a guardrail: what its fit recorded, and what it does on texts that are given, for one page."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.explorer.feature_contexts import FeatureContexts, contexts_in
from sae_unlearn.evaluation.explorer.page import render_page
from sae_unlearn.evaluation.explorer.sweep import Sweep, swept
from sae_unlearn.evaluation.explorer.texts import GuardedTexts, clamp_of
from sae_unlearn.files.atomic import write_whole
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.storage.folder import GuardrailFolder
from sae_unlearn.options.evaluation import PictureConfig
from sae_unlearn.options.field import merged, takes_options


@dataclass(frozen=True)
class GuardrailPicture:
    """What a guardrail's page shows.

    Attributes:
        title: of the page.
        config: the guardrail's, with its calibration.
        clamp: the values its features are clamped to, `[N]`.
        contexts: of its features on the texts that were given; None if there were none.
        sweep: the loss at other doses and thresholds; None if it was not measured.
    """

    title: str
    config: SAEGuardrailConfig
    clamp: tuple[float, ...]
    contexts: FeatureContexts | None = None
    sweep: Sweep | None = None

    def to_html(self) -> str:
        """The page: one HTML file that fetches nothing and runs no script. Without contexts no text is on it."""
        return render_page(self.title, self.config, self.clamp, self.contexts, self.sweep)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, and say where it is."""
        target = Path(path).expanduser()
        write_whole(target, self.to_html())
        return target


def stored_picture(
    source: str | os.PathLike[str] | GuardrailFolder,
    *,
    title: str | None = None,
    sweep: Sweep | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> GuardrailPicture:
    """The picture of a guardrail's folder by itself: no model is needed, and no text of anybody's is on the page.

    Args:
        source: a local folder, a Hub repository, or a `GuardrailFolder`.
        title: of the page; None takes the folder's name.
        sweep: one that was measured earlier.
        revision: branch, tag or commit of the Hub repository.
        subfolder: folder in the repository or folder.
        token, cache_dir, local_files_only: as in `huggingface_hub`.

    Raises:
        GuardrailError: there is no guardrail, it is malformed, or the sweep is of another one.
    """
    folder = GuardrailFolder.open(
        source,
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    artefact = folder.artefact()
    if sweep is not None:
        sweep.check_is_of(artefact.config)
    clamp = tuple(artefact.tensors["decoder.clamp"].tolist())
    return GuardrailPicture(title or _name(folder.source, folder.subfolder), artefact.config, clamp, None, sweep)


@takes_options(PictureConfig)
def picture_guardrail(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: Iterable[Any] | None = None,
    retain: Iterable[Any] | None = None,
    *,
    adapter_name: str | None = None,
    title: str | None = None,
    sweep: bool | Sweep = True,
    config: PictureConfig | None = None,
    **options: Any,
) -> GuardrailPicture:
    """The picture of a guardrail that is on a model, with its features on texts. **The page holds pieces of them.**

    Args:
        model: a model with the guardrail. It is left as it was.
        tokenizer: the model's.
        forget, retain: texts of the topic, and others, held out from fitting. One of the two may be left out.
        adapter_name: which guardrail; None takes the only one. Several have a page each.
        title: of the page; None takes the folder that the guardrail came from, or else its name.
        sweep: whether to measure the loss at other doses and thresholds (see `sweep_guardrail` for the cost), or one
            that was measured earlier.
        config: the options; None takes the defaults.
        options: any field of `PictureConfig` by its name, in place of its value in `config`.

    Raises:
        GuardrailError: there is no such guardrail, no text, an empty corpus, or the sweep is of another guardrail.
        UnlearnError: an option is out of range.
    """
    given = merged(PictureConfig, config, options, UnlearnError)
    reading = (given.text_column, given.batch_size, given.progress)
    texts = GuardedTexts(model, tokenizer, forget, retain, adapter_name, *reading)
    if isinstance(sweep, Sweep):
        sweep.check_is_of(texts.config)
    found = contexts_in(texts, given.contexts, given.around)
    if sweep is True:
        sweep = swept(texts)
    origin = texts.config.origin or {}
    source = origin.get("id")
    title = title or (_name(source, origin.get("subfolder")) if source else texts.name)
    clamp = clamp_of(texts.layer, texts.name).detach().float().cpu().tolist()
    return GuardrailPicture(title, texts.config, tuple(clamp), found, sweep or None)


def _name(source: str, subfolder: str | None) -> str:
    path = Path(source).expanduser()
    name = path.resolve().name if path.exists() else str(source)
    return f"{name}/{subfolder}" if subfolder else name
