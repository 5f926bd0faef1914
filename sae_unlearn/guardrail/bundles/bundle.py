"""Saving, pushing and attaching of a bundle: guardrails and optionally a LoRA in one folder.

    bundle.json      {"format_version": 1, "guardrails": [names], "lora": name or null}
    README.md        the card of the bundle
    <name>/          each member as it is saved alone, with its own card

The members of a bundle from the Hub are all of one commit.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from huggingface_hub import CommitInfo, HfApi
from peft import PeftModel
from torch import nn

from sae_unlearn.backbone.layers import bare_model, uncompiled
from sae_unlearn.cards.card import SavedReport
from sae_unlearn.errors import GuardrailError, as_guardrail_error
from sae_unlearn.files.upload import CommitOptions, make_repository
from sae_unlearn.guardrail.adapter_names import free_name
from sae_unlearn.guardrail.attach import attach_guardrail, detach_guardrail
from sae_unlearn.guardrail.bundles.card import write_bundle_card, write_lora_card
from sae_unlearn.guardrail.bundles.lora import as_bundled, attach_lora, check_lora_config, detach_lora, trained
from sae_unlearn.guardrail.config_parts.layout import CONFIG_NAME, WEIGHTS_NAME
from sae_unlearn.guardrail.model import guard_layers
from sae_unlearn.guardrail.storage.bundle_index import BUNDLE_NAME, BUNDLE_VERSION, Bundle
from sae_unlearn.guardrail.storage.card import CardDetails, hub_licenses, write_card
from sae_unlearn.guardrail.storage.folder import GuardrailFolder
from sae_unlearn.guardrail.storage.saving import saved_whole
from sae_unlearn.guardrail.storage.upload import commit_folder


@as_guardrail_error()
def save_bundle(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    license: str | None = None,
    evaluation: SavedReport | None = None,
    audit: SavedReport | None = None,
    repo_id: str | None = None,
    members: Mapping[str, CardDetails] | None = None,
) -> None:
    """Save all guardrails on a model, and its LoRA if it has one, as a bundle.

    Args:
        model (Module): A `PeftModel` with guardrails.
        folder (str or PathLike): Folder of the bundle. Its files are replaced only once all new ones are written.
        license (str, *optional*): License of the bundle, by the Hub's names.
        evaluation (SavedReport, *optional*): Report on the whole, such as `interference`, shown in the card and saved
            with it.
        audit (SavedReport, *optional*): Audit of the whole, shown in the card and saved with it.
        repo_id (str, *optional*): The repository that the cards name.
        members (Mapping[str, CardDetails], *optional*): Content of the members' own cards by name: the `license`,
            `evaluation` and `audit` of each. Reports in the folders that the members were loaded from are not read.

    Raises:
        GuardrailError: If the model has no guardrail or more than one other adapter, `members` has another name, or the
            folder cannot be written.
    """
    model = uncompiled(model)
    held = _held(model, members)
    _save(model, held, Path(folder), CardDetails(repo_id, license, {}, evaluation, audit), members or {})


@as_guardrail_error()
def push_bundle(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload bundle",
    commit_description: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    evaluation: SavedReport | None = None,
    audit: SavedReport | None = None,
    members: Mapping[str, CardDetails] | None = None,
) -> CommitInfo:
    """Save a bundle to a temporary folder and upload it as one commit.

    Args:
        model (Module): As for `save_bundle`.
        repo_id (str): As for `GuardedModel.push_to_hub`.
        private (bool, *optional*): As for `GuardedModel.push_to_hub`.
        token (str or bool, *optional*): As for `GuardedModel.push_to_hub`.
        commit_message (str, *optional*, defaults to "Upload bundle"): As for `GuardedModel.push_to_hub`.
        commit_description (str, *optional*): As for `GuardedModel.push_to_hub`.
        revision (str, *optional*): As for `GuardedModel.push_to_hub`.
        create_pr (bool, *optional*, defaults to False): As for `GuardedModel.push_to_hub`.
        license (str, *optional*): As for `save_bundle`.
        evaluation (SavedReport, *optional*): As for `save_bundle`.
        audit (SavedReport, *optional*): As for `save_bundle`.
        members (Mapping[str, CardDetails], *optional*): As for `save_bundle`.

    Returns:
        The `CommitInfo` of `huggingface_hub`; its `oid` is the revision to pin.

    Raises:
        GuardrailError: As for `save_bundle`; or if the Hub refuses it or cannot be reached. Nothing was committed.
    """
    model = uncompiled(model)
    held = _held(model, members)
    options = CommitOptions(commit_message, commit_description, revision, create_pr)
    api = HfApi(token=token)
    repo_id = make_repository(api, repo_id, private)
    configs = cast(PeftModel, model).peft_config
    licenses = hub_licenses(api, [configs[name] for name in held.guardrails], bare_model(model))
    with TemporaryDirectory() as folder:
        _save(model, held, Path(folder), CardDetails(repo_id, license, licenses, evaluation, audit), members or {})
        return commit_folder(api, repo_id, folder, options)


@as_guardrail_error()
def attach_bundle(
    model: nn.Module,
    source: str | os.PathLike[str] | GuardrailFolder,
    *,
    names: list[str] | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    check_base: bool = True,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> PeftModel:
    """Attach the members of a bundle to a model under their own names, all of them active.

    Args:
        model (Module): As for `attach_guardrail`; a bundle with a LoRA needs a model without adapters.
        source (str, PathLike or GuardrailFolder): A local folder, a Hub repository, or a `GuardrailFolder`.
        names (list[str], *optional*): Names of the members to attach. Defaults to all.
        revision (str, *optional*): As for `attach_guardrail`.
        subfolder (str, *optional*): Folder inside the source that holds the bundle.
        check_base (bool, *optional*, defaults to True): As for `attach_guardrail`.
        token (str or bool, *optional*): As for `attach_guardrail`.
        cache_dir (str or PathLike, *optional*): As for `attach_guardrail`.
        local_files_only (bool, *optional*, defaults to False): As for `attach_guardrail`.

    Returns:
        PeftModel: The model with the members.

    Raises:
        GuardrailError: If a member is missing or malformed, does not belong to this model, or its name is taken. The
            model is unchanged then: no member is attached.
    """
    folder = GuardrailFolder.open(
        source,
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    model = uncompiled(model)
    guardrails, lora = _chosen(folder.bundle(), names, folder)
    for name in guardrails:
        free_name(model, name)
        folder.member(name).artefact()  # check all members before one is attached
    lora_folder = _lora_folder(model, folder.member(lora), lora) if lora else None
    placed: list[str] = []
    guarded, trainable = model, trained(model)
    try:
        if lora_folder is not None and lora is not None:
            guarded = attach_lora(model, lora_folder, lora, str(folder.member(lora)))
        for name in guardrails:
            guarded = attach_guardrail(guarded, folder.member(name), adapter_name=name, check_base=check_base)
            placed.append(name)
    except BaseException:
        for name in placed:
            detach_guardrail(guarded, name)
        if lora_folder is not None:
            detach_lora(model, trainable)
        raise
    return guarded


def members_of(model: nn.Module) -> Bundle:
    """Return the index of a bundle of this model.

    Raises:
        GuardrailError: If the model has no guardrail, or adapters that a bundle cannot hold.
    """
    guardrails = [name for layer in guard_layers(model) for name in layer.guard_config]
    if not guardrails or not isinstance(model, PeftModel):
        raise GuardrailError(f"model: expected guardrails on this {type(model).__name__}, got none. Attach one first.")
    others = {name: config for name, config in model.peft_config.items() if name not in guardrails}
    if len(others) > 1 or any(_kind(config) != "LORA" for config in others.values()):
        raise GuardrailError(f"model: expected guardrails and at most one LoRA, got also {sorted(others)}.")
    for name, config in others.items():
        check_lora_config(as_bundled(config).to_dict(), f"The config of {name!r}")
    wrong = [name for name in [*guardrails, *others] if not re.fullmatch(r"[\w-]{1,100}", name)]
    if wrong:
        raise GuardrailError(f"{wrong[0]!r} cannot be the folder of a member. Use letters, digits, '_' and '-'.")
    return Bundle(guardrails, next(iter(others), None))


def _held(model: nn.Module, cards: Mapping[str, CardDetails] | None) -> Bundle:
    """Return the index of a bundle of this model. Raise unless `cards` are of its members."""
    held = members_of(model)
    for name, card in (cards or {}).items():
        if name not in held.members or not isinstance(card, CardDetails):
            raise GuardrailError(
                f"members: expected a `CardDetails` for any of {held.members}, got {type(card).__name__} for {name!r}."
            )
    return held


def _save(model: nn.Module, held: Bundle, folder: Path, details: CardDetails, cards: Mapping[str, CardDetails]) -> None:
    """Save the members with their cards (`cards`, by name), and then the bundle's index and its card."""
    bare, configs = bare_model(model), cast(PeftModel, model).peft_config
    with saved_whole(folder) as stage:
        for name in held.members:
            # PEFT saves "default" in the folder itself, and others in a folder of their name
            place = stage / name if name == "default" else stage
            with _bundled_config(configs, held.lora):
                PeftModel.save_pretrained(
                    model, os.fspath(place), selected_adapters=[name], save_embedding_layers=False
                )
            card = cards.get(name, CardDetails())
            card = replace(
                card,
                repo_id=details.repo_id,
                license=card.license or details.license,
                licenses={**details.licenses, **card.licenses},
                subfolder=name,
            )
            if name == held.lora:
                write_lora_card(stage / name, configs[name], bare, card)
            else:
                write_card(stage / name, configs[name], bare, card)
        stored = {"format_version": BUNDLE_VERSION, "guardrails": held.guardrails, "lora": held.lora}
        (stage / BUNDLE_NAME).write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
        write_bundle_card(stage, {name: configs[name] for name in held.guardrails}, held.lora, bare, details)


@contextmanager
def _bundled_config(configs: dict[str, Any], lora: str | None) -> Iterator[None]:
    """Replace the LoRA's config by the one that a bundle saves, in the block."""
    if lora is None:
        yield
        return
    config = configs[lora]
    configs[lora] = as_bundled(config)
    try:
        yield
    finally:
        configs[lora] = config


def _chosen(bundle: Bundle, names: list[str] | None, folder: GuardrailFolder) -> tuple[list[str], str | None]:
    if names is None:
        return bundle.guardrails, bundle.lora
    absent = [name for name in names if name not in bundle.members]
    if absent or not names:
        raise GuardrailError(f"names={names!r}: expected some of {bundle.members}, the members of {folder}.")
    return [name for name in bundle.guardrails if name in names], bundle.lora if bundle.lora in names else None


def _lora_folder(model: nn.Module, folder: GuardrailFolder, name: str) -> Path:
    """Return the folder of a bundle's LoRA on this machine."""
    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise GuardrailError(
            f"model: expected one without adapters for the bundle's LoRA {name!r}. Attach the bundle to the base "
            "model, or pass only its guardrails as `names`."
        )
    config, _ = (folder.path(file) for file in (CONFIG_NAME, WEIGHTS_NAME))
    return config.parent


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))
