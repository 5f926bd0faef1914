"""A bundle: several guardrails, or guardrails and a LoRA, as one folder or one Hub repository.

    bundle.json      {"format_version": 1, "guardrails": [names], "lora": name or null}
    README.md        the card of the bundle
    <name>/          each member as it is saved alone, with its own card

The members of a bundle from the Hub are all of one commit.
"""

import json
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from huggingface_hub import CommitInfo
from peft import PeftModel
from torch import nn

from sae_unlearn.backbone.decoder_layers import uncompiled
from sae_unlearn.guardrail.artefact import read_artefact
from sae_unlearn.guardrail.attach import attach_guardrail, bare_model, detach_guardrail, free_name
from sae_unlearn.guardrail.bundle_card import write_bundle_card
from sae_unlearn.guardrail.bundle_list import BUNDLE_NAME, BUNDLE_VERSION, Bundle, read_bundle
from sae_unlearn.guardrail.bundle_lora import check_lora_config, put_lora, take_lora_off, trained
from sae_unlearn.guardrail.card import CardDetails, write_card
from sae_unlearn.guardrail.errors import GuardrailError, as_guardrail_error
from sae_unlearn.guardrail.model import guard_layers
from sae_unlearn.guardrail.seal import CONFIG_NAME, WEIGHTS_NAME, seal
from sae_unlearn.guardrail.source import fetch_file
from sae_unlearn.guardrail.upload import upload_folder
from sae_unlearn.model_card import SavedReport
from sae_unlearn.staging import staged


@as_guardrail_error()
def save_bundle(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    license: str | None = None,
    evaluation: SavedReport | None = None,
    audit: SavedReport | None = None,
    repo_id: str | None = None,
) -> None:
    """Save all guardrails on a model, and its LoRA if there is one, as a bundle.

    Args:
        model: a `PeftModel` with guardrails.
        folder: where to; what lies there is replaced only once all of it is written.
        license: of the bundle, as the Hub names licences.
        evaluation, audit: reports of the whole, such as `interference`; shown in the card and saved beside it.
        repo_id: the repository that the cards name.

    Raises:
        GuardrailError: there is no guardrail, more than one other adapter, or the folder cannot be written.
    """
    model = uncompiled(model)
    members = members_of(model)
    bare, configs = bare_model(model), cast(PeftModel, model).peft_config
    with staged(Path(folder), first=(CONFIG_NAME, WEIGHTS_NAME)) as stage:
        for name in [*members.guardrails, *([members.lora] if members.lora else [])]:
            # PEFT puts "default" into the folder itself, and others into one of their name
            place = stage / name if name == "default" else stage
            PeftModel.save_pretrained(model, os.fspath(place), selected_adapters=[name], save_embedding_layers=False)
            if name in members.guardrails:
                write_card(stage / name, configs[name], bare, CardDetails(repo_id, license))
                seal(stage / name / CONFIG_NAME, stage / name / WEIGHTS_NAME)
        stored = {"format_version": BUNDLE_VERSION, "guardrails": members.guardrails, "lora": members.lora}
        (stage / BUNDLE_NAME).write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
        of_guardrails = {name: configs[name] for name in members.guardrails}
        write_bundle_card(
            stage, of_guardrails, members.lora, bare, CardDetails(repo_id, license, {}, evaluation, audit)
        )


def push_bundle(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload bundle",
    revision: str | None = None,
    **card: Any,
) -> CommitInfo:
    """Save a bundle to a temporary folder and upload it as one commit; see `save_bundle` and `push_to_hub`.

    Args:
        card: `license`, `evaluation`, `audit`.

    Raises:
        GuardrailError: the Hub refused it or could not be reached; nothing was committed.
    """
    with TemporaryDirectory() as folder:
        save_bundle(model, folder, repo_id=repo_id, **card)
        return upload_folder(folder, repo_id, private, token, commit_message, revision)


@as_guardrail_error()
def attach_bundle(
    model: nn.Module,
    source: str | os.PathLike[str],
    *,
    names: list[str] | None = None,
    revision: str | None = None,
    check_base: bool = True,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> PeftModel:
    """Put the members of a bundle on a model under their own names, all of them active, or none at all.

    Args:
        model: as for `attach_guardrail`; a bundle with a LoRA needs a model without adapters.
        source: a local folder, or a Hub repository.
        names: which members; default all.
        revision, check_base, token, cache_dir, local_files_only: as for `attach_guardrail`.

    Raises:
        GuardrailError: a member is missing or malformed, or does not belong to this model, or its name is taken. The
            model is then as it was.
    """
    hub: dict[str, Any] = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    model = uncompiled(model)
    bundle = read_bundle(source, **hub)
    hub["revision"] = bundle.revision or revision
    guardrails, lora = _chosen(bundle, names, source)
    for name in guardrails:
        free_name(model, name)
        read_artefact(source, subfolder=name, **hub)  # whatever is wrong with a member shows before any is put on
    lora_folder = _lora_folder(model, source, lora, hub) if lora else None
    placed: list[str] = []
    guarded, trainable = model, trained(model)
    try:
        if lora_folder is not None and lora is not None:
            guarded = put_lora(model, lora_folder, lora, f"{source}/{lora}")
        for name in guardrails:
            guarded = attach_guardrail(guarded, source, adapter_name=name, subfolder=name, check_base=check_base, **hub)
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
        check_lora_config(config.to_dict(), f"The config of {name!r}")
    wrong = [name for name in [*guardrails, *others] if not re.fullmatch(r"[\w-]{1,100}", name)]
    if wrong:
        raise GuardrailError(f"{wrong[0]!r} cannot be the folder of a member; use letters, digits, '_' and '-'.")
    return Bundle(guardrails, next(iter(others), None), None)


def _chosen(bundle: Bundle, names: list[str] | None, source: Any) -> tuple[list[str], str | None]:
    if names is None:
        return bundle.guardrails, bundle.lora
    there = [*bundle.guardrails, *([bundle.lora] if bundle.lora else [])]
    absent = [name for name in names if name not in there]
    if absent or not names:
        raise GuardrailError(f"names={names!r}: the bundle {source} holds {there}.")
    return [name for name in bundle.guardrails if name in names], bundle.lora if bundle.lora in names else None


def _lora_folder(model: nn.Module, source: Any, name: str, hub: dict[str, Any]) -> Path:
    """The folder of a bundle's LoRA on this machine."""
    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise GuardrailError(
            f"The bundle's LoRA {name!r} can only go on a model without adapters; attach the bundle to the base model, "
            "or name its guardrails alone."
        )
    config, _ = (fetch_file(source, file, hub | {"subfolder": name}) for file in (CONFIG_NAME, WEIGHTS_NAME))
    return config.parent


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))
