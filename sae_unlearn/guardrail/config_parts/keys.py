"""Unknown keys of a stored config: refused if they are ours, ignored if they are of another PEFT.

The version that wrote a file and later versions know every field of ours. So an unknown key in a file of this version,
or of an earlier one, is not a field of ours. It is PEFT's if another PEFT wrote the file. Whatever PEFT wrote it, a key
that a hand could have meant as a field of ours, such as `treshold`, `threshold_2` or a group's field outside of its
group, is refused, and so is one with a word that only guardrails have.
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

import peft
from packaging.version import InvalidVersion, Version

from sae_unlearn.errors import GuardrailError
from sae_unlearn.version import __version__


_ALIKE = 0.8  # ratio of `difflib`; one wrong letter in ten gives 0.9
_OURS = {"sae", "unlearn", "guard", "guardrail", "gate", "feature", "features", "clamp", "refusal", "firing"}


def unknown_of_peft(stored: Mapping[str, Any], known: Collection[str], grouped: Collection[str] = ()) -> list[str]:
    """Return the unknown keys of a stored config that come from another PEFT, and warn if there are some.

    Args:
        stored (mapping): The fields in the file.
        known (collection of str): Names of the fields of this version of both packages.
        grouped (collection of str, *optional*): Names of the fields of ours that are stored in groups.

    Raises:
        GuardrailError: If an unknown key is not PEFT's. The message names what to install.
    """
    unknown = sorted(set(stored) - set(known))
    if not unknown:
        return []
    names = f"{unknown[:5]}"[:80]
    writer = stored.get("sae_unlearn_version")
    if _newer(writer, __version__):
        raise GuardrailError(
            f"Unknown key(s) {names}: expected fields of sae_unlearn {__version__}, got those of {writer:.40}. Install "
            "a newer sae_unlearn."
        )
    version = stored.get("peft_version")
    if not _differs(version, peft.__version__):
        raise GuardrailError(
            f"Unknown key(s) {names}: expected fields of sae_unlearn {__version__} and PEFT {peft.__version__}. Remove "
            "them, or install a newer sae_unlearn."
        )
    for key in unknown:
        if (meant := _meant(key, known, grouped)) is not None:
            hint = (
                f"Write {meant!r}{' in its group' if meant in grouped else ''}, or remove it" if meant else "Remove it"
            )
            raise GuardrailError(
                f"Unknown key {key:.40}: expected fields of sae_unlearn {__version__}, since PEFT has none of such a "
                f"name. {hint}, or install a newer sae_unlearn."
            )
    warnings.warn(
        f"Unknown key(s) {names} of PEFT {version:.40} are ignored by PEFT {peft.__version__}, which is installed.",
        stacklevel=3,
    )
    return unknown


def _meant(key: str, known: Collection[str], grouped: Collection[str]) -> str | None:
    """Return the field of ours that a key may stand for, "" if none is near, None for another key.

    A field that is part of a name of PEFT's, such as `base_model`, is not looked for inside of others.
    """
    of_peft = {field.name for field in fields(peft.PeftConfig)}
    ours = sorted({*known, *grouped} - of_peft)
    words = f"_{key.lower()}_"
    inside = [name for name in ours if f"_{name}_" in words and not any(name in other for other in of_peft)]
    alike = get_close_matches(key.lower(), ours, n=1, cutoff=_ALIKE)
    if inside or alike:
        return max(inside, key=len) if inside else alike[0]
    return None if _OURS.isdisjoint(key.lower().split("_")) else ""


def _version(text: Any) -> Version | None:
    try:
        return Version(text) if isinstance(text, str) else None
    except InvalidVersion:
        return None


def _newer(text: Any, than: str) -> bool:
    found = _version(text)
    return found is not None and found > Version(than)


def _differs(text: Any, other: str) -> bool:
    """True if both are versions and differ. A build from source has its name after an `@`."""
    found = _version(text.partition("@")[0]) if isinstance(text, str) else None
    return found is not None and (found != _version(other) or "@" in text)
