"""RWKU: knowledge of language models about 200 people (Jin et al., 2024, arXiv 2406.10890; CC BY 4.0).

Hub: `jinzhuoran/RWKU`. In a folder: `forget_level1.json` and so on, the same in `All/`, or the Hub's
`forget_level1/test/*.parquet`.
"""

from sae_unlearn.errors import UnlearnError
from sae_unlearn.evaluation.datasets.files import read_rows, text_of
from sae_unlearn.evaluation.metrics.recall import Fact


HUB_ID = "jinzhuoran/RWKU"


def rwku_facts(
    subset: str = "forget_level2", source: str = HUB_ID, people: list[str] | None = None, revision: str | None = None
) -> list[Fact]:
    """Return the probes in the authors' wording. A fact's subject is the person.

    Args:
        subset (str, *optional*, defaults to "forget_level2"): `forget_level1` (a blank to fill), `forget_level2` (a
            question), `forget_level3` (the same under attack), `neighbor_level1` or `neighbor_level2`.
        source (str, *optional*, defaults to "jinzhuoran/RWKU"): A folder, or the id of a dataset on the Hub.
        people (list of str, *optional*): Names of the people to ask about. None asks about all.
        revision (str, *optional*): Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If the source or the part does not exist.
        UnlearnError: If the subset asks about none of the people.
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
        raise UnlearnError(
            f"people={people}: expected names in {subset} of {source}, got none of its {len(rows)} probes."
        )
    return found
