"""Make the table of published SAEs that is shipped, and the page that shows it, from SAELens' registry.

pip install sae-lens && python -m benchmarks.published_saes
"""

from collections import Counter
from importlib.metadata import version
from pathlib import Path

from sae_unlearn.sae.directory.entry import PublishedSAE
from sae_unlearn.sae.directory.lookup import CHECKPOINT, published_saes, suggested_sae
from sae_unlearn.sae.directory.registry import read_registry, registry_file
from sae_unlearn.sae.directory.table import SHIPPED, Directory, from_registry, read_shipped, to_bytes


PAGE = Path(__file__).parents[1] / "docs" / "saes.md"
START, END = "<!-- made by benchmarks/published_saes.py -->", "<!-- end -->"


def main() -> None:
    """Write the table and the page."""
    file = registry_file()
    if file is None:
        raise SystemExit("SAELens is not installed. Run pip install sae-lens.")
    saelens = version("sae-lens")
    SHIPPED.write_bytes(to_bytes(from_registry(read_registry(file), ""), saelens))
    found, made_from = read_shipped()
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(START)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n\n{tables(found, made_from)}\n\n{END}{after}", encoding="utf-8")


def tables(found: Directory, made_from: str) -> str:
    """The generated part of the page."""
    everything = [entry for saes in found.saes.values() for entry in saes.values()]
    families = Counter(entry.family for entry in everything)
    unfinished = sum(bool(CHECKPOINT.search(entry.id)) for entry in everything)
    lines = [
        f"{len(everything):,} SAEs of the residual stream, from the registry of sae-lens {made_from};",
        f"{unfinished} of them are states of unfinished trainings.",
        "",
        "| family | SAEs | models |",
        "|---|---|---|",
    ]
    for family, count in sorted(families.items(), key=lambda item: -item[1]):
        models = {entry.model for entry in everything if entry.family == family}
        lines.append(f"| {family} | {count:,} | {len(models)} |")
    lines += ["", "| model | families | layers | SAEs | suggested |", "|---|---|---|---|---|"]
    for model in sorted({entry.model for entry in everything}, key=str.lower):
        lines.append(_model_row(published_saes(model)))
    return "\n".join(lines)


def _model_row(entries: list[PublishedSAE]) -> str:
    layers = sorted({entry.layer for entry in entries})
    chosen = suggested_sae(entries)
    assert chosen is not None
    shown = f"{layers[0]} to {layers[-1]}" if len(layers) > 6 else ", ".join(map(str, layers))
    families = ", ".join(sorted({entry.family for entry in entries}))
    return f"| {chosen.model} | {families} | {shown} | {len(entries)} | `{chosen.name}` |"


if __name__ == "__main__":
    main()
