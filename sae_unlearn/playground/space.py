"""A folder that runs the playground as a Space of the Hugging Face Hub."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id

from sae_unlearn.errors import UnlearnError
from sae_unlearn.files.atomic import staged
from sae_unlearn.install import install_requirement


GUARDRAIL = "guardrail"
_APP = '''"""The playground of a guardrail, as a Space."""

from sae_unlearn.cli.inputs import load_model, with_adapter
from sae_unlearn.playground.page import build_page, serve
from sae_unlearn.playground.session import Session


EXAMPLES = {examples!r}
LABELS = {labels!r}

model, tokenizer = load_model({model!r}, revision={model_revision!r})
guarded = with_adapter(model, {adapter!r}, revision={adapter_revision!r}, subfolder={adapter_subfolder!r})
page = build_page(Session(guarded, tokenizer), {title!r}, EXAMPLES, LABELS)

if __name__ == "__main__":
    serve(page)
'''
_README = """---
title: {title}
sdk: gradio
app_file: app.py
pinned: false
---

# {heading}

The model `{model}` with a guardrail of sae_unlearn: each prompt is answered with and without it, and the page shows
what the gate reads in every token. Nothing of what is typed is stored.
"""


def write_space(
    folder: Path,
    model: str,
    adapter: str,
    title: str,
    examples: list[str],
    labels: Mapping[int, str] | None = None,
    *,
    model_revision: str | None = None,
    adapter_revision: str | None = None,
    adapter_subfolder: str | None = None,
) -> None:
    """Write `app.py`, `requirements.txt` and `README.md`; a local guardrail is copied into `guardrail/`.

    Args:
        folder (Path): To write to.
        model (str): Hub id of the model.
        adapter (str): Folder or Hub id of the guardrail.
        title (str): Of the page.
        examples (list[str]): Prompts to click on.
        labels (Mapping[int, str], *optional*): Labels of the SAE's features, by their ids.
        model_revision (str, *optional*): Branch, tag or commit of the model.
        adapter_revision (str, *optional*): Branch, tag or commit of the guardrail.
        adapter_subfolder (str, *optional*): Folder of the guardrail inside `adapter`.

    Raises:
        UnlearnError: If the model is a local folder, which a Space cannot read, or `folder` is the guardrail's own.
        HFValidationError: If the guardrail is neither a folder nor a Hub id.
    """
    if Path(model).expanduser().exists() or model == "demo":
        raise UnlearnError(f"model={model!r:.80}: expected a Hub id, which a Space can load. Upload the model first.")
    local = Path(adapter).expanduser()
    if folder.absolute() == local.absolute():
        raise UnlearnError(f"folder={str(folder)!r:.80}: expected a new one, got the guardrail's own. Pass another.")
    if not local.is_dir():
        validate_repo_id(adapter)
    about: dict[str, Any] = {"model": model, "title": title, "examples": examples, "labels": dict(labels or {})}
    about |= {"adapter_revision": None if local.is_dir() else adapter_revision, "model_revision": model_revision}
    about["adapter_subfolder"] = adapter_subfolder
    with staged(folder) as stage:
        if local.is_dir():
            shutil.copytree(local, stage / GUARDRAIL, ignore=shutil.ignore_patterns(".*"))
        about["adapter"] = GUARDRAIL if local.is_dir() else adapter
        (stage / "app.py").write_text(_APP.format(**about), encoding="utf-8")
        (stage / "requirements.txt").write_text(install_requirement("playground") + "\n", encoding="utf-8")
        heading = " ".join(title.split())
        readme = _README.format(title=json.dumps(heading), heading=heading, model=model)
        (stage / "README.md").write_text(readme, encoding="utf-8")
