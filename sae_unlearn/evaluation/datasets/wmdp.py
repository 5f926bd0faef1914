"""WMDP: multiple-choice questions on hazardous knowledge (Li et al., 2024, arXiv 2403.03218).

MIT license. Hub: `cais/wmdp`. In a folder: `bio_questions.json` (the authors' release), `wmdp-bio.json`, or the Hub's
`wmdp-bio/test-*.parquet`; `chem` and `cyber` alike.
"""

from sae_unlearn.evaluation.datasets.files import read_rows
from sae_unlearn.evaluation.datasets.mmlu import exam_choices
from sae_unlearn.evaluation.metrics.choices import Choice


HUB_ID = "cais/wmdp"


def wmdp_choices(subject: str = "bio", source: str = HUB_ID, revision: str | None = None) -> list[Choice]:
    """Return the questions of a subject, with their options.

    Args:
        subject (str, *optional*, defaults to "bio"): `bio`, `chem` or `cyber`.
        source (str, *optional*, defaults to "cais/wmdp"): A folder, or the id of a dataset on the Hub.
        revision (str, *optional*): Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If the source or the part does not exist.
    """
    name = f"wmdp-{subject.removeprefix('wmdp-')}"
    short = name.removeprefix("wmdp-")
    files = [f"{short}_questions.json", f"{name}.json", f"{name}.jsonl", f"{name}/test*.parquet", f"{name}/test.json*"]
    return exam_choices(read_rows(source, files, name, "test", revision), source)
