"""Atomic saving of a guardrail, and the files of an earlier save.

A kill at any moment, or a full disk, leaves the old guardrail or the new one. A guardrail has two files, and file
systems do not replace two files at once. So all files are written to a folder `.saving-...` next to them and sealed;
then the config is replaced, then the weights. With the new config the guardrail is the new one: until the weights match
its seal, `attach_guardrail` reads them from the folder of the unfinished save.

Finally the entry files of an earlier guardrail or bundle are deleted, see `earlier_save`. Its reports, cards and
members stay: without an entry file they are not read.

A folder is of this package if it holds a guardrail (by its `adapter_config.json`) or a bundle (a valid `bundle.json`).
In such a folder, and in the members that its `bundle.json` names, the files that a save writes belong to this package.
All other files stay, including adapters of another kind.
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
from sae_unlearn.guardrail.config_parts.layout import (
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
    """Files of an earlier save of this package, by path in the folder; they may not exist.

    Attributes:
        entries (set[str]): Entry files, by which a guardrail or a bundle is read as long as they exist.
        others (set[str]): Cards, pictures and reports, and the members of a bundle.
    """

    entries: set[str]
    others: set[str]


def earlier_save(written: Collection[str], read: Callable[[str], Path | None]) -> EarlierSave:
    """Return the earlier files in the folders of a new save, without the new save's own files.

    Args:
        written (Collection[str]): Paths of the new save's files in the folder, with "/".
        read (Callable[[str], Path | None]): Function from such a path to the old file on this machine; None if it does
            not exist.
    """
    entries, others = set[str](), set[str]()
    for place in {path.rpartition("/")[0] for path in written if path.rpartition("/")[2] in _ENTRIES}:
        inside = f"{place}/" if place else ""
        config, bundle = read(inside + CONFIG_NAME), _bundle(read(inside + BUNDLE_NAME))
        has_guardrail = config is not None and is_guardrail(config)
        if has_guardrail:
            entries |= {inside + CONFIG_NAME, inside + WEIGHTS_NAME}
        if bundle is not None:
            entries.add(inside + BUNDLE_NAME)
            others |= {f"{inside}{name}/{file}" for name in bundle.members for file in (CONFIG_NAME, WEIGHTS_NAME)}
        if has_guardrail or bundle is not None:
            folders = [inside, *(f"{inside}{name}/" for name in (bundle.members if bundle else []))]
            others |= {folder + file for folder in folders for file in (CARD_NAME, PICTURE, *REPORT_FILES)}
    return EarlierSave(entries - set(written), others - set(written))


def is_guardrail(config: Path) -> bool:
    """Return True if a config file is that of a guardrail."""
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
    """Yield a folder to save into, whose files are moved to `folder` after the block.

    Guardrails are sealed and replaced as a whole.

    Raises:
        GuardrailError: If it cannot be written. `folder` is unchanged then.
    """

    def old(path: str) -> Path | None:
        return folder / path if (folder / path).is_file() else None

    with as_guardrail_error():
        with staged(folder, first=(CONFIG_NAME, WEIGHTS_NAME)) as stage:
            yield stage
            for config in filter(is_guardrail, stage.rglob(CONFIG_NAME)):
                seal(config, config.with_name(WEIGHTS_NAME))
            written = [path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()]
            replaced = earlier_save(written, old).entries
        for path in sorted(replaced):  # a config before its weights
            (folder / path).unlink(missing_ok=True)


def seal(config: Path, weights: Path) -> None:
    """Add the seal to a saved config; see `layout`."""
    stored = json.loads(config.read_text(encoding="utf-8"))
    stored[WEIGHTS_SEAL] = sha256(weights)
    stored[CONFIG_SEAL] = config_digest(stored)
    config.write_text(json.dumps(stored, indent=2, sort_keys=True), encoding="utf-8")
