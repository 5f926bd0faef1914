"""`bundle.json`, the list of what a bundle holds."""

import os
import re
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from sae_unlearn.errors import GuardrailError, as_guardrail_error
from sae_unlearn.files.hub import commit_of, fetch_file, is_local
from sae_unlearn.files.untrusted import read_foreign_json


BUNDLE_NAME = "bundle.json"
BUNDLE_VERSION = 1
LARGEST_BUNDLE = 64
_SIZE_LIMIT = 2**16


class Bundle(NamedTuple):
    """What a bundle says that it holds.

    Attributes:
        guardrails: their names, which are their folders.
        lora: name and folder of a LoRA, if there is one.
        revision: commit of the Hub repository, None for a local folder.
    """

    guardrails: list[str]
    lora: str | None
    revision: str | None

    @property
    def members(self) -> list[str]:
        """The names of all of them."""
        return [*self.guardrails, *([] if self.lora is None else [self.lora])]


class BundleGiven(GuardrailError):
    """A bundle where one guardrail was asked for.

    Attributes:
        bundle: what it holds.
    """

    def __init__(self, source: str | os.PathLike[str], bundle: Bundle) -> None:
        names = ", ".join(bundle.guardrails)
        super().__init__(
            f"{source} is a bundle, of the guardrails {names}: put all of them on a model with `attach_bundle`, or "
            "name one of them as `subfolder`."
        )
        self.bundle = bundle


def find_bundle(source: str | os.PathLike[str], **hub: Any) -> Bundle | None:
    """What `read_bundle` reads, None where there is no `bundle.json`.

    Raises:
        GuardrailError: it is malformed.
    """
    if is_local(source):
        if not (Path(source).expanduser() / BUNDLE_NAME).is_file():
            return None
    else:
        try:
            fetch_file(source, BUNDLE_NAME, hub)
        except GuardrailError:
            return None
    return read_bundle(source, **hub)


def refuse_bundle(source: str | os.PathLike[str], missing: GuardrailError, hub: dict[str, Any]) -> None:
    """To be asked where there is no guardrail, as `missing` says: is there a bundle?

    Raises:
        BundleGiven: there is.
        GuardrailError: there is, and it is malformed.
    """
    cause = missing.__cause__
    if hub.get("subfolder") or not (is_local(source) or isinstance(cause, EntryNotFoundError)):
        return  # the repository itself is not there
    hub = {key: value for key, value in hub.items() if key != "subfolder"}
    if isinstance(cause, LocalEntryNotFoundError):  # nor is the Hub
        hub["local_files_only"] = True
    bundle = find_bundle(source, **hub)
    if bundle is not None:
        raise BundleGiven(source, bundle) from missing


@as_guardrail_error()
def read_bundle(source: str | os.PathLike[str], **hub: Any) -> Bundle:
    """What a bundle holds.

    Raises:
        GuardrailError: there is no `bundle.json`, or it is malformed.
    """
    path = fetch_file(source, BUNDLE_NAME, hub)
    return parse_bundle(path, f"{BUNDLE_NAME} of {source}", None if is_local(source) else commit_of(path))


def parse_bundle(path: Path, where: str, revision: str | None) -> Bundle:
    """What a `bundle.json` on this machine says; `where` is what errors call it.

    Raises:
        UnlearnError: it is malformed.
    """
    stored = read_foreign_json(path, _SIZE_LIMIT, where)
    version = stored.get("format_version") if isinstance(stored, dict) else None
    if isinstance(version, bool) or not isinstance(version, int) or version != BUNDLE_VERSION:
        raise GuardrailError(f"{where} has format_version={version!r:.40}; this sae_unlearn reads {BUNDLE_VERSION}.")
    guardrails, lora = stored.get("guardrails"), stored.get("lora")
    unknown = sorted(set(stored) - {"format_version", "guardrails", "lora"})
    if unknown:
        raise GuardrailError(f"{where} has unknown key(s) {unknown[:5]}. Install a newer sae_unlearn.")
    if not isinstance(guardrails, list) or not 1 <= len(guardrails) <= LARGEST_BUNDLE:
        raise GuardrailError(f"{where} must list 1 to {LARGEST_BUNDLE} guardrails.")
    bundle = Bundle(guardrails, lora, revision)
    for name in bundle.members:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]{1,100}", name) or _alike(bundle.members, name) > 1:
            raise GuardrailError(f"{where} lists {name!r:.120}, which is no name of a member, or is there twice.")
    return bundle


def _alike(names: list[Any], name: str) -> int:
    """How many of `names` a reader, or a file system, takes for `name`."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return sum(isinstance(n, str) and unicodedata.normalize("NFKC", n).casefold() == plain for n in names)
