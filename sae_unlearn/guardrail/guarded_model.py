"""`GuardedModel`: the `PeftModel` that `fit_guardrail` and `attach_guardrail` return."""

import os
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo
from peft import PeftModelForCausalLM

from sae_unlearn.guardrail.card import write_card
from sae_unlearn.guardrail.upload import upload_folder


class GuardedModel(PeftModelForCausalLM):
    """A `PeftModelForCausalLM` whose adapters are guardrails. It differs in what it writes beside the weights: the card
    says what was measured and what is not protected, and `push_to_hub` keeps it."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """As PEFT's, without its search of the Hub for a changed vocabulary: a guardrail holds no embeddings."""
        super().save_pretrained(os.fspath(save_directory), **{"save_embedding_layers": False} | kwargs)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write the card of the first guardrail that is saved there; PEFT calls this from `save_pretrained`."""
        write_card(output_dir, next(iter(self.peft_config.values())), self.get_base_model())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload guardrail",
        revision: str | None = None,
        **kwargs: Any,
    ) -> CommitInfo:
        """Save to a temporary folder and upload it, card included, as one commit.

        Args:
            repo_id: `user/name`; made if it is not there.
            private, token, commit_message: as in `huggingface_hub`.
            revision: the branch to commit to, made if it is not there; default "main".
            kwargs: for `save_pretrained`.

        Returns:
            What `huggingface_hub` says of the commit; its `oid` is the revision to pin.

        Raises:
            GuardrailError: the Hub refused it or could not be reached; nothing was committed.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            return upload_folder(folder, repo_id, private, token, commit_message, revision)
