"""Saving a guardrail so that a kill at any moment, or a full disk, leaves the old one or the new one.

A guardrail is two files, and no file system replaces two files at once. So everything is written into a folder beside
them, `.saving-...`, and sealed; then the config is replaced, then the weights. Once the config is there the guardrail
is the new one: as long as the weights beside the config are not those that it is sealed with, `attach_guardrail` finds
them in the folder of the unfinished save.

At last what would still be taken for the old guardrail, or for the old bundle, is removed; see `earlier_save`. Reports,
cards and members that an earlier save left stay: here, nothing brings them back.

What an earlier save left in a folder or in a Hub repository: the one rule of what is ours.

A folder is ours where it holds a guardrail, which its `adapter_config.json` says, or a bundle, a `bundle.json` that can
be read. Of such a folder, and of the members that its `bundle.json` names, those files are ours that a save writes, by
their names. Everything else is somebody else's and stays where it is: an adapter of another kind, too.
"""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sae_unlearn.cards.card import CARD_NAME, REPORT_FILES
from sae_unlearn.errors import UnlearnError, as_guardrail_error
from sae_unlearn.files.atomic import staged
from sae_unlearn.files.digest import sha256
from sae_unlearn.files.untrusted import read_foreign_json
from sae_unlearn.guardrail.layout import (
    CONFIG_LIMIT,
    CONFIG_NAME,
    CONFIG_SEAL,
    PICTURE,
    WEIGHTS_NAME,
    WEIGHTS_SEAL,
    config_digest,
)
from sae_unlearn.guardrail.peft_type import PEFT_TYPE
from sae_unlearn.guardrail.storage.bundle_index import BUNDLE_LIMIT, BUNDLE_NAME, Bundle, parse_bundle


_ENTRIES = (CONFIG_NAME, BUNDLE_NAME)


class EarlierSave(NamedTuple):
    """Files of an earlier save of ours, by their paths in the folder, there or not.

    Attributes:
        in_force: what a reader goes on taking for the guardrail, or for the bundle, as long as it lies there.
        beside: cards, pictures and reports, and the members of a bundle.
    """

    in_force: set[str]
    beside: set[str]


def earlier_save(written: Collection[str], read: Callable[[str], Path | None]) -> EarlierSave:
    """What is ours of the folders into which a new save writes a guardrail or a bundle, without the new save's files.

    Args:
        written: paths of the new save's files in the folder, with "/".
        read: gives an old file by such a path, on this machine; None where there is none.
    """
    in_force, beside = set[str](), set[str]()
    for place in {path.rpartition("/")[0] for path in written if path.rpartition("/")[2] in _ENTRIES}:
        inside = f"{place}/" if place else ""
        config, bundle = read(inside + CONFIG_NAME), _bundle(read(inside + BUNDLE_NAME))
        has_guardrail = config is not None and is_guardrail(config)
        if has_guardrail:
            in_force |= {inside + CONFIG_NAME, inside + WEIGHTS_NAME}
        if bundle is not None:
            in_force.add(inside + BUNDLE_NAME)
            beside |= {f"{inside}{name}/{file}" for name in bundle.members for file in (CONFIG_NAME, WEIGHTS_NAME)}
        if has_guardrail or bundle is not None:
            folders = [inside, *(f"{inside}{name}/" for name in (bundle.members if bundle else []))]
            beside |= {folder + file for folder in folders for file in (CARD_NAME, PICTURE, *REPORT_FILES)}
    return EarlierSave(in_force - set(written), beside - set(written))


def is_guardrail(config: Path) -> bool:
    """Whether a config is that of a guardrail."""
    try:
        stored = read_foreign_json(config, CONFIG_LIMIT, CONFIG_NAME)
    except UnlearnError:
        return False
    return isinstance(stored, dict) and stored.get("peft_type") == PEFT_TYPE.value


def _bundle(path: Path | None) -> Bundle | None:
    try:
        return None if path is None else parse_bundle(read_foreign_json(path, BUNDLE_LIMIT, BUNDLE_NAME), BUNDLE_NAME)
    except UnlearnError:
        return None


@contextmanager
def saved_whole(folder: Path) -> Iterator[Path]:
    """A folder to save into; what lies there at the end of the block is moved to `folder`, guardrails as a whole.

    Raises:
        GuardrailError: it could not be written; `folder` holds what it held before.
    """

    def old(path: str) -> Path | None:
        return folder / path if (folder / path).is_file() else None

    with as_guardrail_error():
        with staged(folder, first=(CONFIG_NAME, WEIGHTS_NAME)) as stage:
            yield stage
            for config in filter(is_guardrail, stage.rglob(CONFIG_NAME)):
                seal(config, config.with_name(WEIGHTS_NAME))
            written = [path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()]
            replaced = earlier_save(written, old).in_force
        for path in sorted(replaced):  # a config before its weights
            (folder / path).unlink(missing_ok=True)


def seal(config: Path, weights: Path) -> None:
    """Write the seal into a config that has just been saved; see `layout`."""
    stored = json.loads(config.read_text(encoding="utf-8"))
    stored[WEIGHTS_SEAL] = sha256(weights)
    stored[CONFIG_SEAL] = config_digest(stored)
    config.write_text(json.dumps(stored, indent=2, sort_keys=True), encoding="utf-8")
