"""`GuardrailFolder`: the folder of a guardrail or a bundle, local or on the Hub, opened once."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub.errors import EntryNotFoundError

from sae_unlearn.errors import GuardrailError, UnlearnError, as_guardrail_error
from sae_unlearn.files.digest import sha256
from sae_unlearn.files.hub import FileTree, explain_download
from sae_unlearn.files.untrusted import clean_subfolder, open_regular, read_foreign_json
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.layout import CONFIG_LIMIT, CONFIG_NAME, WEIGHTS_NAME, WEIGHTS_SEAL
from sae_unlearn.guardrail.storage.bundle_index import BUNDLE_LIMIT, BUNDLE_NAME, Bundle, BundleGiven, parse_bundle
from sae_unlearn.guardrail.storage.reading import (
    Artefact,
    check_complete,
    damage_of,
    largest_weights,
    parse_config,
    parse_tensors,
    sealed_weights,
)


class GuardrailFolder:
    """The folder of a guardrail or of a bundle: local, or in a Hub repository at one commit.

    `open` creates one. It resolves source, subfolder and commit once, so that all files are of one commit. No file is
    trusted: each is checked as in `docs/format.md`.

    Args:
        tree (FileTree): The files.
        subfolder (str): The folder inside it, "" for none.

    Attributes:
        source (str): The local folder or the repository, as passed.
        subfolder (str): The folder inside it, "" for none.
    """

    def __init__(self, tree: FileTree, subfolder: str) -> None:
        self._tree = tree
        self.source, self.subfolder = tree.source, subfolder

    @classmethod
    @as_guardrail_error()
    def open(
        cls,
        source: "str | os.PathLike[str] | GuardrailFolder",
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> "GuardrailFolder":
        """Open a local folder or a Hub repository. Nothing is read yet.

        Args:
            source (str, PathLike or GuardrailFolder): A local folder or the id of a Hub repository. An open folder is
                returned as it is; the other arguments must not be set then.
            revision (str, *optional*): Branch, tag or commit of the repository. Defaults to its main branch.
            subfolder (str, *optional*): Folder inside it, for instance the name of a bundle's member.
            token (str or bool, *optional*): As in `huggingface_hub`.
            cache_dir (str or PathLike, *optional*): The Hub's cache. Defaults to that of `huggingface_hub`.
            local_files_only (bool, *optional*, defaults to False): Read the cache and do not ask the Hub.

        Raises:
            GuardrailError: If an argument is malformed, or `revision` is set for a local folder.
        """
        if isinstance(source, GuardrailFolder):
            options = {"revision": revision, "subfolder": subfolder, "token": token, "cache_dir": cache_dir}
            given = [name for name, value in options.items() if value is not None]
            given += ["local_files_only"] if local_files_only else []
            if given:
                raise GuardrailError(f"{given[0]}: expected None for an open folder. Pass it to `open`.")
            return source
        inside = clean_subfolder(subfolder)
        tree = FileTree(source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
        return cls(tree, inside)

    def __str__(self) -> str:
        return f"{self.source}/{self.subfolder}" if self.subfolder else self.source

    @property
    def is_local(self) -> bool:
        """True if it is a folder on this machine."""
        return self._tree.root is not None

    @property
    def commit(self) -> str | None:
        """The commit of the Hub repository. None for a local folder, and before the first file is read."""
        return self._tree.commit

    def member(self, name: str) -> "GuardrailFolder":
        """Return a folder inside this one, of the same commit.

        Args:
            name (str): The folder, relative to this one.

        Raises:
            GuardrailError: If `name` leads out of this folder.
        """
        with as_guardrail_error():
            return GuardrailFolder(self._tree, clean_subfolder(f"{self.subfolder}/{name}" if self.subfolder else name))

    @as_guardrail_error()
    def path(self, name: str) -> Path:
        """Return the path of a file on this machine, downloaded if needed.

        Args:
            name (str): The file, relative to this folder.

        Raises:
            GuardrailError: If the file does not exist or is a link out of the folder, or the Hub cannot be reached.
        """
        inside = f"{self.subfolder}/{name}" if self.subfolder else name
        if self._tree.root is not None:
            self._check_there(self._tree.root / self.subfolder, name)
        try:
            return self._tree.fetch(inside)
        except UnlearnError:
            raise
        except (
            Exception
        ) as error:  # also what the HTTP client raises, whose classes depend on huggingface_hub's version
            revision = self._tree.commit or self._tree.revision
            raise GuardrailError(explain_download(error, self.source, inside, revision)) from error

    def _check_there(self, folder: Path, name: str) -> None:
        if (folder / name).is_file():
            return
        inside = sorted(path.parent.name for path in folder.glob(f"*/{name}"))
        if inside:
            raise GuardrailError(f"{folder} has no {name}, but its subfolders have: {inside[:5]}. Pass subfolder=.")
        raise GuardrailError(f"{folder} has no {name}. Pass the folder of a guardrail.")

    @as_guardrail_error()
    def read(self, name: str, limit: int) -> bytes:
        """Return the first bytes of a file, in one reading.

        Args:
            name (str): The file's name.
            limit (int): Largest number of bytes to read.

        Raises:
            GuardrailError: If the file is missing or not a regular file.
        """
        with open_regular(self.path(name)) as file:
            return file.read(limit)

    @as_guardrail_error()
    def read_json(self, name: str, limit: int) -> Any:
        """Return the content of a JSON file, checked by `read_foreign_json`.

        Args:
            name (str): The file's name.
            limit (int): Largest size in bytes.

        Raises:
            GuardrailError: If the file is missing, too large, or not valid JSON.
        """
        return read_foreign_json(self.path(name), limit, f"{name} of {self}")

    @as_guardrail_error()
    def bundle(self) -> Bundle:
        """Return the index of the bundle in this folder.

        Raises:
            GuardrailError: If `bundle.json` is missing or malformed.
        """
        return parse_bundle(self.read_json(BUNDLE_NAME, BUNDLE_LIMIT), f"{BUNDLE_NAME} of {self}")

    def find_bundle(self) -> Bundle | None:
        """Return the index of the bundle in this folder, or None without a `bundle.json`.

        Raises:
            GuardrailError: If it is malformed.
        """
        if self._tree.root is not None:
            if not (self._tree.root / self.subfolder / BUNDLE_NAME).is_file():
                return None
        else:
            try:
                self.path(BUNDLE_NAME)
            except GuardrailError:
                return None
        return self.bundle()

    def config(self) -> SAEGuardrailConfig:
        """Return the config of the guardrail in this folder.

        Raises:
            BundleGiven: If the folder holds a bundle.
            GuardrailError: If the folder has no guardrail, or its config is malformed.
        """
        with as_guardrail_error():
            return parse_config(self._stored_config(), str(self))

    @as_guardrail_error()
    def artefact(self) -> Artefact:
        """Return the guardrail in this folder, checked.

        Raises:
            BundleGiven: If the folder holds a bundle.
            GuardrailError: If it is missing or malformed, or has a config without weights, which `config` reads.
        """
        stored = self._stored_config()
        config = parse_config(stored, str(self))
        check_complete(config, str(self))
        limit, sealed = largest_weights(config), stored.get(WEIGHTS_SEAL)
        data = self.read(WEIGHTS_NAME, limit + 1)
        digest = sha256(data)
        if self.is_local and isinstance(sealed, str) and digest != sealed:
            found = sealed_weights(self.path(WEIGHTS_NAME), limit, sealed)
            data, digest = (data, digest) if found is None else (found, sealed)
        config.origin = {  # type: ignore[misc]  # a ClassVar, so that it is not a field
            "id": self.source,
            "subfolder": self.subfolder or None,
            "revision": self.commit,
        }
        return Artefact(config, parse_tensors(data, str(self), config), self.commit, damage_of(stored, digest))

    def _stored_config(self) -> dict[str, Any]:
        """Return the content of the config's file."""
        try:
            self.path(CONFIG_NAME)
        except GuardrailError as missing:
            # If the repository itself cannot be read, do not search for a bundle.
            bundle = self.find_bundle() if self.is_local or isinstance(missing.__cause__, EntryNotFoundError) else None
            if bundle is not None:
                raise BundleGiven(self.source, self.subfolder, bundle) from missing
            raise
        stored = self.read_json(CONFIG_NAME, CONFIG_LIMIT)
        if not isinstance(stored, dict):
            raise GuardrailError(f"{CONFIG_NAME} of {self}: expected a mapping, got {type(stored).__name__}.")
        return stored
