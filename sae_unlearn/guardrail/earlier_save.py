"""What an earlier save left in a folder or in a Hub repository: the one rule of what is ours.

A folder is ours where it holds a guardrail, which its `adapter_config.json` says, or a bundle, a `bundle.json` that can
be read. Of such a folder, and of the members that its `bundle.json` names, those files are ours that a save writes, by
their names. Everything else is somebody else's and stays where it is: an adapter of another kind, too.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from sae_unlearn.cards.card import CARD_NAME, REPORT_FILES
from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.untrusted import read_foreign_json
from sae_unlearn.guardrail.layout import CONFIG_LIMIT, CONFIG_NAME, WEIGHTS_NAME
from sae_unlearn.guardrail.peft_type import PEFT_TYPE
from sae_unlearn.guardrail.storage.bundle_index import BUNDLE_NAME, Bundle, parse_bundle
from sae_unlearn.guardrail.storage.calibration_plot import PICTURE


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
        return None if path is None else parse_bundle(path, BUNDLE_NAME, None)
    except UnlearnError:
        return None
