"""A bundle: several guardrails, or guardrails and a LoRA, as one folder or one Hub repository.

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
from sae_unlearn.guardrail.attach import attach_guardrail, detach_guardrail, free_name
from sae_unlearn.guardrail.bundles.card import write_bundle_card, write_lora_card
from sae_unlearn.guardrail.bundles.lora import as_bundled, check_lora_config, put_lora, take_lora_off, trained
from sae_unlearn.guardrail.layout import CONFIG_NAME, WEIGHTS_NAME
from sae_unlearn.guardrail.model import guard_layers
from sae_unlearn.guardrail.storage.bundle_index import BUNDLE_NAME, BUNDLE_VERSION, Bundle
from sae_unlearn.guardrail.storage.card import CardDetails, hub_licenses, write_card
from sae_unlearn.guardrail.storage.folder import GuardrailFolder
from sae_unlearn.guardrail.storage.saving import saved_whole
from sae_unlearn.guardrail.storage.upload import CommitOptions, commit_folder, make_repository


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
    """Save all guardrails on a model, and its LoRA if there is one, as a bundle.

    Args:
        model: a `PeftModel` with guardrails.
        folder: where to; what lies there is replaced only once all of it is written.
        license: of the bundle, as the Hub names licenses.
        evaluation, audit: reports of the whole, such as `interference`; shown in the card and saved beside it.
        repo_id: the repository that the cards name.
        members: what the members' own cards say, by name: the `license`, `evaluation` and `audit` of each. Reports that
            lie in the folders that the members came from are not read.

    Raises:
        GuardrailError: there is no guardrail, more than one other adapter, `members` names another than those, or the
            folder cannot be written.
    """
    model = uncompiled(model)
    held = _held(model, members)
    _save(model, held, Path(folder), CardDetails(repo_id, license, {}, evaluation, audit), members or {})


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
        model, license, evaluation, audit, members: as for `save_bundle`.
        repo_id, private, token, commit_message, commit_description, revision, create_pr: as for
            `GuardedModel.push_to_hub`.

    Returns:
        What `huggingface_hub` says of the commit; its `oid` is the revision to pin.

    Raises:
        GuardrailError: as `save_bundle`; or the Hub refused it or could not be reached. Nothing was committed.
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
    """Put the members of a bundle on a model under their own names, all of them active, or none at all.

    Args:
        model: as for `attach_guardrail`; a bundle with a LoRA needs a model without adapters.
        source: a local folder, a Hub repository, or a `GuardrailFolder`.
        names: which members; default all.
        subfolder: folder in the repository or folder that holds the bundle.
        revision, check_base, token, cache_dir, local_files_only: as for `attach_guardrail`.

    Raises:
        GuardrailError: a member is missing or malformed, or does not belong to this model, or its name is taken. The
            model is then as it was.
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
        folder.member(name).artefact()  # whatever is wrong with a member shows before any is put on
    lora_folder = _lora_folder(model, folder.member(lora), lora) if lora else None
    placed: list[str] = []
    guarded, trainable = model, trained(model)
    try:
        if lora_folder is not None and lora is not None:
            guarded = put_lora(model, lora_folder, lora, str(folder.member(lora)))
        for name in guardrails:
            guarded = attach_guardrail(guarded, folder.member(name), adapter_name=name, check_base=check_base)
            placed.append(name)
    except BaseException:
        for name in placed:
            detach_guardrail(guarded, name)
        if lora_folder is not None:
            take_lora_off(model, trainable)
        raise
    return guarded


def members_of(model: nn.Module) -> Bundle:
    """What a bundle of this model would hold.

    Raises:
        GuardrailError: there is no guardrail, or there are adapters that a bundle cannot hold.
    """
    guardrails = [name for layer in guard_layers(model) for name in layer.guard_config]
    if not guardrails or not isinstance(model, PeftModel):
        raise GuardrailError(f"There is no guardrail on this {type(model).__name__}; attach one first.")
    others = {name: config for name, config in model.peft_config.items() if name not in guardrails}
    if len(others) > 1 or any(_kind(config) != "LORA" for config in others.values()):
        raise GuardrailError(f"A bundle holds guardrails and one LoRA, but the model has {sorted(others)} beside them.")
    for name, config in others.items():
        check_lora_config(as_bundled(config).to_dict(), f"The config of {name!r}")
    wrong = [name for name in [*guardrails, *others] if not re.fullmatch(r"[\w-]{1,100}", name)]
    if wrong:
        raise GuardrailError(f"{wrong[0]!r} cannot be the folder of a member; use letters, digits, '_' and '-'.")
    return Bundle(guardrails, next(iter(others), None))


def _held(model: nn.Module, cards: Mapping[str, CardDetails] | None) -> Bundle:
    """What a bundle of this model would hold, and whether `cards` are of those."""
    held = members_of(model)
    for name, card in (cards or {}).items():
        if name not in held.members or not isinstance(card, CardDetails):
            raise GuardrailError(
                f"members has a {type(card).__name__} for {name!r}; expected a `CardDetails` for any of {held.members}."
            )
    return held


def _save(model: nn.Module, held: Bundle, folder: Path, details: CardDetails, cards: Mapping[str, CardDetails]) -> None:
    """Save the members with their cards, `cards` by their names, and then the bundle's list and its card."""
    bare, configs = bare_model(model), cast(PeftModel, model).peft_config
    with saved_whole(folder) as stage:
        for name in held.members:
            # PEFT puts "default" into the folder itself, and others into one of their name
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
    """The LoRA's config as a bundle saves it, inside the block."""
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
        raise GuardrailError(f"names={names!r}: the bundle {folder} holds {bundle.members}.")
    return [name for name in bundle.guardrails if name in names], bundle.lora if bundle.lora in names else None


def _lora_folder(model: nn.Module, folder: GuardrailFolder, name: str) -> Path:
    """The folder of a bundle's LoRA on this machine."""
    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise GuardrailError(
            f"The bundle's LoRA {name!r} can only go on a model without adapters; attach the bundle to the base model, "
            "or name its guardrails alone."
        )
    config, _ = (folder.path(file) for file in (CONFIG_NAME, WEIGHTS_NAME))
    return config.parent


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))
