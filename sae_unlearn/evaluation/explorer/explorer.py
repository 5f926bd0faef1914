"""Picture of a guardrail: the records of its fit and its behavior on given texts, for one page."""

import os
from collections.abc import Iterable, Mapping
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
from sae_unlearn.files.untrusted import as_path
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.storage.folder import GuardrailFolder
from sae_unlearn.options.evaluation import PictureConfig
from sae_unlearn.options.field import merged, takes_options


@dataclass(frozen=True)
class GuardrailPicture:
    """Content of a guardrail's page.

    Attributes:
        title (str): Title of the page.
        config (SAEGuardrailConfig): Config of the guardrail, with its calibration.
        clamp (sequence of float): Values to which its features are clamped, `[N]`.
        contexts (FeatureContexts, *optional*): Contexts of its features in the given texts. None without texts.
        sweep (Sweep, *optional*): Losses at other doses and thresholds. None if not measured.
        labels (mapping, *optional*): Labels of the SAE's features by their ids, as from `feature_labels`.
    """

    title: str
    config: SAEGuardrailConfig
    clamp: tuple[float, ...]
    contexts: FeatureContexts | None = None
    sweep: Sweep | None = None
    labels: Mapping[int, str] | None = None

    def to_html(self) -> str:
        """Return the page: one HTML file that fetches nothing and runs no script.

        It contains text only if the picture has contexts.
        """
        return render_page(self.title, self.config, self.clamp, self.contexts, self.sweep, self.labels)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page and return its path.

        Args:
            path (str or PathLike): The file.

        Raises:
            UnlearnError: If it cannot be written. An earlier file is then unchanged.
        """
        target = as_path(path).expanduser()
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
    """Return the picture of a saved guardrail, without a model and without texts.

    Args:
        source (str, PathLike or GuardrailFolder): A local folder, a Hub repository, or an opened folder.
        title (str, *optional*): Title of the page. None takes the folder's name.
        sweep (Sweep, *optional*): A sweep that was measured earlier.
        revision (str, *optional*): Branch, tag or commit of the Hub repository.
        subfolder (str, *optional*): Folder inside the source.
        token (str or bool, *optional*): As in `huggingface_hub`.
        cache_dir (str or PathLike, *optional*): As in `huggingface_hub`.
        local_files_only (bool, *optional*, defaults to False): As in `huggingface_hub`.

    Raises:
        GuardrailError: If the source has no guardrail or a malformed one, or the sweep is of another guardrail.
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
    """Return the picture of a guardrail on a model, with its features on texts.

    **The page contains parts of the texts.**

    Args:
        model (nn.Module): A model with the guardrail. It is left as it was.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        forget, retain (iterable, *optional*): Texts of the topic and other texts, held out from fitting. At least one
            of the two is needed.
        adapter_name (str, *optional*): Name of the guardrail. None takes the only one.
        title (str, *optional*): Title of the page. None takes the folder that the guardrail was loaded from, or its
            name.
        sweep (bool or Sweep, *optional*, defaults to True): Measure the loss at other doses and thresholds (see
            `sweep_guardrail` for the cost), or use a sweep that was measured earlier.
        config (PictureConfig, *optional*): The options. None takes the defaults.
        options: Fields of `PictureConfig` by name, which override `config`.

    Raises:
        GuardrailError: If the model has no such guardrail, no texts are given, a corpus is empty, or the sweep is of
            another guardrail.
        UnlearnError: If an option is out of range.
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
