"""Settings of a server's operator, and those that a request may have."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import PurePath
from typing import Any

from sae_unlearn.errors import GuardrailError
from sae_unlearn.files.digest import sha256
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


KEY = "sae_guardrail"
"""Key in vLLM's `additional_config`, and in a request's `extra_args` or `vllm_xargs`."""


@dataclass(frozen=True)
class Settings:
    """The entry `sae_guardrail` of vLLM's `additional_config`.

    Attributes:
        paths (sequence of str): Folders of guardrails. Each is known by the last part of its path.
        per_request (bool, *optional*, defaults to False): Let requests choose among the guardrails.
        log (str, *optional*): File to which the record of each request is added, as a line of JSON.
        check_base (bool, *optional*, defaults to True): Refuse a model that is not the one a guardrail was fitted on.
        untested (bool, *optional*, defaults to False): Allow what was written from vLLM's source and never run: the
            second model runner, and piecewise CUDA graphs.

    Raises:
        GuardrailError: If a field is malformed, or two guardrails have one name.
    """

    paths: Sequence[str]
    per_request: bool = False
    log: str | None = None
    check_base: bool = True
    untested: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.paths, str) or not self.paths or not all(isinstance(path, str) for path in self.paths):
            raise GuardrailError(f"{KEY}.paths={self.paths!r:.80}: expected a list of folders. Give at least one.")
        for name, kind in (("per_request", bool), ("check_base", bool), ("untested", bool), ("log", (str, type(None)))):
            if not isinstance(getattr(self, name), kind):
                raise GuardrailError(f"{KEY}.{name}={getattr(self, name)!r:.80}: expected another type. See the docs.")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise GuardrailError(f"{KEY}.paths: expected different names, got {repeated} twice. Rename a folder.")
        for name in self.names:
            if not name or (self.per_request and ("," in name or name != name.strip())):
                raise GuardrailError(f"{KEY}.paths: expected names that a request can list, got {name!r}. Rename it.")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the guardrails, in the order of `paths`."""
        return tuple(PurePath(path).name for path in self.paths)

    @classmethod
    def of(cls, vllm_config: Any) -> "Settings | None":
        """Return the settings of an engine, and None if it asks for no guardrail.

        Raises:
            GuardrailError: If they are malformed.
        """
        given = getattr(vllm_config, "additional_config", None)
        stored = given.get(KEY) if isinstance(given, dict) else None
        if stored is None:
            return None
        known = {field.name for field in fields(cls)}
        if not isinstance(stored, dict) or "paths" not in stored or not set(stored) <= known:
            raise GuardrailError(f"{KEY}={stored!r:.120}: expected a mapping with paths, got other keys than {known}.")
        return cls(**stored)


@functools.lru_cache(maxsize=8)
def _actions(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(GuardrailFolder.open(path).config().action for path in paths)


def actions(settings: Settings) -> dict[str, str]:
    """Return the action of each guardrail by name, as its folder had it when this process first asked.

    Raises:
        GuardrailError: If a folder cannot be read.
    """
    return dict(zip(settings.names, _actions(tuple(settings.paths)), strict=True))


def chosen_names(params: Any, settings: Settings) -> tuple[str, ...]:
    """Return the guardrails that a request asks for, all of them by default.

    Args:
        params (SamplingParams): The request's; its `extra_args["sae_guardrail"]` is a list of names, or a text of names
            with commas between them. The empty text asks for none.
        settings (Settings): The server's.

    Raises:
        GuardrailError: If a name is unknown, or requests may not choose.
    """
    asked = (getattr(params, "extra_args", None) or {}).get(KEY)
    if asked is None:
        return settings.names
    if isinstance(asked, str):
        asked = [name.strip() for name in asked.split(",")] if asked.strip() else []
    unknown = [name for name in asked if name not in settings.names] if isinstance(asked, list) else [asked]
    if unknown:
        raise GuardrailError(f"{KEY}={unknown[0]!r:.80}: expected names among {list(settings.names)}. Correct it.")
    names = tuple(name for name in settings.names if name in asked)
    if names != settings.names and not settings.per_request:
        raise GuardrailError(f"{KEY}={','.join(names)!r}: expected all guardrails, since per_request is off. Leave it.")
    return names


def seed_of(names: tuple[str, ...], settings: Settings) -> int:
    """Return the seed of the stamps of rows with these guardrails: 0 for all of them."""
    if names == settings.names:
        return 0
    return int(sha256("|".join(names).encode())[:14], 16)
