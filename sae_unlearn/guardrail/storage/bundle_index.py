"""`bundle.json`, the list of what a bundle holds."""

import re
import unicodedata
from typing import Any, NamedTuple

from sae_unlearn.errors import GuardrailError


BUNDLE_NAME = "bundle.json"
BUNDLE_VERSION = 1
LARGEST_BUNDLE = 64
BUNDLE_LIMIT = 2**16  # bytes


class Bundle(NamedTuple):
    """What a bundle says that it holds.

    Attributes:
        guardrails: their names, which are their folders.
        lora: name and folder of a LoRA, if there is one.
    """

    guardrails: list[str]
    lora: str | None

    @property
    def members(self) -> list[str]:
        """The names of all of them."""
        return [*self.guardrails, *([] if self.lora is None else [self.lora])]


class BundleGiven(GuardrailError):
    """A bundle where one guardrail was asked for.

    Attributes:
        bundle: what it holds.
    """

    def __init__(self, source: str, subfolder: str, bundle: Bundle) -> None:
        where, inside = (f"{source}/{subfolder}", f"{subfolder}/") if subfolder else (source, "")
        names = ", ".join(inside + name for name in bundle.guardrails)
        super().__init__(
            f"{where} is a bundle, of the guardrails {names}: put all of them on a model with `attach_bundle`, or "
            "name one of them as `subfolder`."
        )
        self.bundle = bundle


def parse_bundle(stored: Any, where: str) -> Bundle:
    """What a `bundle.json` says, of the value that it holds; `where` is what errors call it.

    Raises:
        GuardrailError: it is malformed.
    """
    version = stored.get("format_version") if isinstance(stored, dict) else None
    if isinstance(version, bool) or not isinstance(version, int) or version != BUNDLE_VERSION:
        raise GuardrailError(f"{where} has format_version={version!r:.40}; this sae_unlearn reads {BUNDLE_VERSION}.")
    guardrails, lora = stored.get("guardrails"), stored.get("lora")
    unknown = sorted(set(stored) - {"format_version", "guardrails", "lora"})
    if unknown:
        raise GuardrailError(f"{where} has unknown key(s) {unknown[:5]}. Install a newer sae_unlearn.")
    if not isinstance(guardrails, list) or not 1 <= len(guardrails) <= LARGEST_BUNDLE:
        raise GuardrailError(f"{where} must list 1 to {LARGEST_BUNDLE} guardrails.")
    bundle = Bundle(guardrails, lora)
    for name in bundle.members:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]{1,100}", name) or _alike(bundle.members, name) > 1:
            raise GuardrailError(f"{where} lists {name!r:.120}, which is no name of a member, or is there twice.")
    return bundle


def _alike(names: list[Any], name: str) -> int:
    """How many of `names` a reader, or a file system, takes for `name`."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return sum(isinstance(n, str) and unicodedata.normalize("NFKC", n).casefold() == plain for n in names)
