"""RWKU: what language models know of 200 famous people (Jin et al., 2024, arXiv 2406.10890; CC BY 4.0).

Hub: `jinzhuoran/RWKU`. In a folder: `forget_level1.json` and so on, the same in `All/`, or the Hub's
`forget_level1/test/*.parquet`.
"""

from sae_unlearn.evaluation.datasets.files import read_rows, text_of
from sae_unlearn.evaluation.metrics.recall import Fact


HUB_ID = "jinzhuoran/RWKU"


def rwku_facts(
    subset: str = "forget_level2", source: str = HUB_ID, people: list[str] | None = None, revision: str | None = None
) -> list[Fact]:
    """Probes, worded as the authors word them; a fact's subject is the person.

    Args:
        subset: `forget_level1` (a blank to fill), `forget_level2` (a question), `forget_level3` (the same under
            attack), `neighbor_level1`, `neighbor_level2`.
        source: a folder, or a dataset's id on the Hub.
        people: names of those to ask about; None for all.

    Raises:
        FileNotFoundError: there is none.
        ValueError: none of the people is in it.
    """
    files = [f"{subset}.json", f"All/{subset}.json", f"{subset}/test/*.parquet", f"{subset}/test*.parquet"]
    task = "Please complete the blank in" if subset.endswith("1") else "Please briefly answer"
    rows = read_rows(source, files, subset, "test", revision)
    found = [
        Fact(
            f"{task} the following question.\nQuestion: {text_of(row, 'query', source).strip()}\nAnswer:",
            (text_of(row, "answer", source).strip(),),
            str(row.get("subject") or ""),
        )
        for row in rows
        if people is None or row.get("subject") in people
    ]
    if not found:
        raise ValueError(
            f"{subset} of {source} asks about none of {people}; it has {len(rows)} probes of other people."
        )
    return found
