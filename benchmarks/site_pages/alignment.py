"""Tables of the alignment: ten cities of a real model, and a synthetic world."""

from .markdown_text import number, table
from .results import estimate, read_json, text_tables


REAL, SYNTHETIC = "alignment_real.txt", "alignment_synthetic.json"
METHODS = {
    "base": "base",
    "ours": "**alignment**",
    "ours, raw states": "the same, `sae=None`",
    "ours, centroid": 'the same, `preset="centroid"`',
    "gradient ascent": "gradient ascent",
    "GradDiff": "GradDiff",
    "NPO": "NPO",
    "RMU": "RMU",
    "I don't know": '"I don\'t know" tuning',
}
WORLD = {
    "base": "base",
    "gold": "never read of the targets",
    "ours": "**alignment**",
    "ours_raw": "the same, `sae=None`",
    "ours_centroid": 'the same, `preset="centroid"`',
    "ga": "gradient ascent",
    "grad_diff": "GradDiff",
    "npo": "NPO",
    "rmu": "RMU",
    "refusal": '"I don\'t know" tuning',
}


def real(**columns: str) -> str:
    """A table of methods by measures: `header=name of the row in the file`, "_" for a blank."""
    cells = [
        [label, *(real_cell(measure, method) for measure in columns.values())] for method, label in METHODS.items()
    ]
    return table(["method", *(name.replace("_", " ") for name in columns)], cells)


def forgetting() -> str:
    """What is still known of ten cities, and what is kept."""
    return real(
        picks_the_country="targets, new form",
        says_it="answered rightly",
        neighbors="neighbors",
        near_facts="near facts",
        text_KL="text KL",
    )


def representation() -> str:
    """How far the state at the name moves."""
    return real(
        P_known="P(known)",
        refitted_probe="re-fitted kernel AUC",
        floor="floor (2)",
        variance="variance",
        known_latents="held-out known latents",
    )


def leaks() -> str:
    """Facts reached without the name, and what brings the fact back."""
    return real(
        capital="leak: capital",
        largest="leak: largest",
        offices="leak: headquarters",
        relearned="relearnt, 20 steps",
        direction="direction x1",
        int4="int4",
    )


def cell(measure: str, method: str = "ours") -> str:
    """Return a value, without its range."""
    return real_cell(measure, method).split(" (")[0]


def value(measure: str, method: str = "ours") -> float:
    return estimate(real_cell(measure, method))[0]


def leak_range(method: str = "ours") -> str:
    """Return the smallest and largest share of facts that are still reached without the name."""
    found = [value(measure, method) for measure in ("leak: capital", "leak: largest", "leak: headquarters")]
    return f"{number(min(found))} to {number(max(found))}"


def seeds_of(method: str = "ours") -> str:
    """Return the number of seeds of a method: "3 seeds"."""
    return f"{real_cell('seeds', method)} seeds"


def budget() -> str:
    return f"{read_json('alignment_real.json')['budget']:g}"


def exchange() -> str:
    """Recall before and after the state at the name is exchanged, by seed."""
    cells = [
        [
            str(e["seed"]),
            number(e["whole unseen"]["value"], 1),
            number(e["exchanged unseen"]["value"], 1),
            str(e["whole unseen"]["n"]),
        ]
        for e in read_json("alignment_real.json")["exchange"]
    ]
    return table(["seed", "recall", "with the state of an unknown city", "n"], cells)


def synthetic() -> str:
    """Mean and standard deviation over seeds in the synthetic world."""
    measures = {
        "recall": "recall",
        "neighbors": "neighbors",
        "damage": "damage",
        "KL to gold": "KL to gold",
        "probe": "kernel AUC",
        "relearned": "relearnt after 40 steps",
    }
    cells = []
    for name, label in WORLD.items():
        found = read_json(SYNTHETIC)["methods"][name]
        cells.append([label, *(_spread(found, measure) for measure in measures.values())])
    return table(["method", *measures], cells)


def world(method: str, measure: str = "recall", which: str = "mean") -> float:
    """Return a mean or standard deviation of the synthetic world."""
    return read_json(SYNTHETIC)["methods"][method][measure][which]


def seeds(method: str, measure: str = "recall") -> list[float]:
    """Return the values of all seeds."""
    return read_json(SYNTHETIC)["methods"][method][measure]["values"]


def _spread(found: dict, measure: str) -> str:
    if measure not in found:
        return "–"
    return f"{number(found[measure]['mean'])} ± {number(found[measure]['sd'])}"


def real_cell(measure: str, method: str = "ours") -> str:
    """Return a cell of the table, with its range over seeds."""
    rows = next(iter(text_tables(REAL).values()))
    name = measure.removesuffix(" (2)")  # "floor" and "ceiling" stand once for each probe
    found = [r for r in rows if r["method"] == name]
    return found[int(measure != name)][method] or "–"
