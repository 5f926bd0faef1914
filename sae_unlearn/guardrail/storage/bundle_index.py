"""`bundle.json`, the index of a bundle's members."""

import re
import unicodedata
from typing import Any, NamedTuple

from sae_unlearn.errors import GuardrailError


BUNDLE_NAME = "bundle.json"
BUNDLE_VERSION = 1
LARGEST_BUNDLE = 64
BUNDLE_LIMIT = 2**16  # bytes


class Bundle(NamedTuple):
    """Members of a bundle.

    Attributes:
        guardrails (list[str]): Names of the guardrails, which are their folders.
        lora (str or None): Name and folder of a LoRA; None without one.
    """

    guardrails: list[str]
    lora: str | None

    @property
    def members(self) -> list[str]:
        """Names of all members."""
        return [*self.guardrails, *([] if self.lora is None else [self.lora])]


class BundleGiven(GuardrailError):
    """The folder holds a bundle, but the call needs one guardrail.

    Attributes:
        bundle (Bundle): Its members.
    """

    def __init__(self, source: str, subfolder: str, bundle: Bundle) -> None:
        where, inside = (f"{source}/{subfolder}", f"{subfolder}/") if subfolder else (source, "")
        names = ", ".join(inside + name for name in bundle.guardrails)
        super().__init__(
            f"{where} is a bundle of the guardrails {names}. Attach all of them with `attach_bundle`, or pass one as "
            "`subfolder`."
        )
        self.bundle = bundle


def parse_bundle(stored: Any, where: str) -> Bundle:
    """Return the members that a `bundle.json` lists.

    Args:
        stored (Any): Content of the file.
        where (str): Name of the file in errors.

    Raises:
        GuardrailError: If it is malformed.
    """
    version = stored.get("format_version") if isinstance(stored, dict) else None
    if isinstance(version, bool) or not isinstance(version, int) or version != BUNDLE_VERSION:
        raise GuardrailError(f"{where} has format_version={version!r:.40}: expected {BUNDLE_VERSION}.")
    guardrails, lora = stored.get("guardrails"), stored.get("lora")
    unknown = sorted(set(stored) - {"format_version", "guardrails", "lora"})
    if unknown:
        raise GuardrailError(f"{where} has unknown key(s) {unknown[:5]}. Install a newer sae_unlearn.")
    if not isinstance(guardrails, list) or not 1 <= len(guardrails) <= LARGEST_BUNDLE:
        raise GuardrailError(f"{where}: expected a list of 1 to {LARGEST_BUNDLE} guardrails.")
    bundle = Bundle(guardrails, lora)
    for name in bundle.members:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]{1,100}", name) or _alike(bundle.members, name) > 1:
            raise GuardrailError(f"{where} lists {name!r:.120}: expected a valid name that occurs once.")
    return bundle


def _alike(names: list[Any], name: str) -> int:
    """Return how many of `names` look like `name`, or are the same to some file systems."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return sum(isinstance(n, str) and unicodedata.normalize("NFKC", n).casefold() == plain for n in names)
