"""Saving a guardrail so that a kill at any moment, or a full disk, leaves the old one or the new one.

A guardrail is two files, and no file system replaces two files at once. So everything is written into a folder beside
them, `.saving-...`, and sealed; then the config is replaced, then the weights. Once the config is there the guardrail
is the new one: as long as the weights beside the config are not those that it is sealed with, `attach_guardrail` finds
them in the folder of the unfinished save.

At last what would still be taken for the old guardrail, or for the old bundle, is removed; see `earlier_save`. Reports,
cards and members that an earlier save left stay: here, nothing brings them back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_unlearn.files.atomic import STAGE, staged
from sae_unlearn.guardrail.earlier_save import earlier_save, is_guardrail
from sae_unlearn.guardrail.errors import as_guardrail_error
from sae_unlearn.guardrail.layout import CONFIG_NAME, WEIGHTS_NAME, file_digest, seal


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


def staged_weights(config: Path, digest: str, largest: int) -> Path | None:
    """The weights that `config` is sealed with, in what a save left behind that did not come to its end. Larger files
    than `largest` bytes, and what lies behind a link, are not looked at."""
    for root in (config.parent, config.parent.parent):
        for stage in sorted(root.glob(f"{STAGE}*")):
            found = stage / config.parent.relative_to(root) / WEIGHTS_NAME
            linked = any(part.is_symlink() for part in (found, *found.parents) if part.is_relative_to(stage))
            if not linked and found.is_file() and found.stat().st_size <= largest and file_digest(found) == digest:
                return found
    return None
