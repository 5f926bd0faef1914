"""`PretrainedSAE`: the part of `SparseAutoencoder` that reads and writes files and talks to the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from huggingface_hub import CommitInfo, HfApi
from torch import nn

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.files.untrusted import clean_subfolder
from sae_unlearn.files.upload import CommitOptions, commit_files, make_repository
from sae_unlearn.sae.loading import StoredSAE, read_pretrained, read_saelens
from sae_unlearn.sae.saving import save_saelens
from sae_unlearn.sae.validate import check_dtype


class PretrainedSAE(nn.Module):
    """Loading, saving and upload of an SAE."""

    architecture: str
    k: int | None
    layer: int | None
    input_norm: str | None
    source: dict[str, Any]

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        revision: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load an SAE from a local folder or a repository of the Hugging Face Hub.

        The format is detected from the files.

        Args:
            id_or_path (str or PathLike): A folder, a repository id such as "google/gemma-scope-2b-pt-res", or a release
                and an id of SAELens such as "gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical".
            subfolder (str, *optional*): The folder inside it that holds the SAE, e.g.
                "layer_3/width_16k/average_l0_142"; or the file if a folder holds one per layer, e.g. "layer9.sae.pt".
            revision (str, *optional*): Branch, tag or commit of the repository. `source` keeps the commit.
            device (device or str, *optional*, defaults to the CPU): Device of the weights.
            dtype (dtype, *optional*, defaults to torch.float32): Dtype of the weights in memory, whatever the file's
                is. Folding is done in float64 before.
            cache_dir (str or PathLike, *optional*): As in `huggingface_hub`.
            token (str or bool, *optional*): As in `huggingface_hub`.
            local_files_only (bool, *optional*, defaults to False): As in `huggingface_hub`.

        Raises:
            SAEFormatError: If the format is unknown, a file is malformed, or the SAE cannot be represented exactly.
            FileNotFoundError: If `id_or_path` is neither a folder nor a repository id.
        """
        check_dtype(dtype)
        stored = read_pretrained(id_or_path, subfolder, revision, cache_dir, token, local_files_only)
        return cls._from_stored(stored, device, dtype)

    @classmethod
    def from_saelens(
        cls, sae: Any, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Self:
        """Convert a `sae_lens.SAE` in memory. `sae` is unchanged, and no weights are shared with it.

        Args:
            sae (Any): The SAE, with its `cfg` and `state_dict()`; also one in training.
            device (device or str, *optional*, defaults to the CPU): Device of the weights.
            dtype (dtype, *optional*, defaults to torch.float32): Dtype of the weights.

        Raises:
            UnlearnError: If `sae` has no `cfg.to_dict()` and `state_dict()`.
            SAEFormatError: If it does not read the residual stream, or a setting cannot be represented exactly.
        """
        check_dtype(dtype)
        return cls._from_stored(read_saelens(sae), device, dtype)

    @classmethod
    def _from_stored(cls, stored: StoredSAE, device: torch.device | str | None, dtype: torch.dtype) -> Self:
        """Return an SAE of the folded weights, rounded to `dtype` once and checked."""

        def placed(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtype).to(device)

        weights = stored.weights
        try:
            return cls(
                placed(weights.W_enc),
                placed(weights.b_enc),
                placed(weights.W_dec),
                placed(weights.b_dec),
                architecture=weights.architecture,
                threshold=None if weights.threshold is None else placed(weights.threshold),
                k=weights.k,
                layer=weights.layer,
                source=stored.source,
                input_norm=weights.input_norm,
            )
        except ValueError as error:
            raise SAEFormatError(f"{stored.where}: {error}") from error

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the SAE in SAELens' on-disk format: `cfg.json` and `sae_weights.safetensors`.

        The folded form is saved, so SAELens gives the same numbers. Gated and batchtopk become `jumprelu` there, with
        their own name in the metadata. Weights keep the SAE's dtype. Files are saved atomically.

        Args:
            save_directory (str or PathLike): The folder, created if need be.

        Raises:
            UnlearnError: If the disk is full, or the folder cannot be written.
        """
        save_saelens(
            save_directory,
            dict(self.named_parameters()),
            architecture=self.architecture,
            k=self.k,
            layer=self.layer,
            input_norm=self.input_norm,
            neuronpedia_id=self.source.get("neuronpedia_id"),
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        subfolder: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload SAE",
        commit_description: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Upload what `save_pretrained` writes as one commit. Other files of the repository stay as they are.

        `from_pretrained` with the same repository and subfolder loads it again. No card is written.

        Args:
            repo_id (str): `user/name`, created if it does not exist.
            subfolder (str, *optional*): Folder in the repository, for several SAEs in one. None is its root.
            private (bool, *optional*): As in `huggingface_hub`.
            token (str or bool, *optional*): As in `huggingface_hub`.
            commit_message (str, *optional*, defaults to "Upload SAE"): As in `huggingface_hub`.
            commit_description (str, *optional*): As in `huggingface_hub`.
            revision (str, *optional*): Branch to commit to, created if it does not exist. Defaults to "main".
            create_pr (bool, *optional*, defaults to False): True to open a pull request with the commit and leave
                "main" unchanged.

        Returns:
            The `CommitInfo` of `huggingface_hub`; its `oid` is the revision to pin.

        Raises:
            UnlearnError: If the Hub refuses it or cannot be reached, or an argument does not fit. Nothing was
                committed.
        """
        options = CommitOptions(commit_message, commit_description, revision, create_pr)
        inside = clean_subfolder(subfolder)
        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            files = {f"{inside}/{path.name}" if inside else path.name: path for path in sorted(Path(folder).iterdir())}
            return commit_files(api, make_repository(api, repo_id, private), files, options)
