"""Tables of many sets of ten cities, pooled: the closed form of the alignment beside training."""

from typing import Any

from . import results
from .markdown_text import figure, number, table
from .results import read_json


RESULTS, RELEARNING = "alignment_pooled.json", "alignment_relearning.json"
NAMES = {
    "base": "base",
    "closed_form": "closed form",
    "gradient": "training, decayed rate, question forms",
    "gradient, constant rate, no questions": "training, as before",
}
ENOUGH = 6
"""Sets that two recipes must share, see `benchmarks/alignment/pooled_plan.md`."""
WITHIN = 0.03
"""Of damage, and of the share of other cities, from the same plan."""
ENDS = (0.028, 0.04)
"""Damage at which the search of `solve_alignment` ends at its first weight."""
KEPT = {
    "other cities": "others unseen",
    "near facts": "near",
    "other facts, relation held": "unrelated, relation held",
    "other facts, relation not held": "unrelated, relation not held",
}
MEASURES = {"picks the country": "targets unseen", "says it": "targets said", **KEPT}
PAIRED = {**MEASURES, "damage": "damage", "refitted probe": "probe targets"}


def recipes() -> dict[str, Any]:
    """Return the figures of each recipe that was run, in the order of `NAMES`."""
    found = read_json(RESULTS)["recipes"]
    return {name: found[name] for name in NAMES if name in found}


def forgetting() -> str:
    """What is still known of the targets, pooled over sets."""
    columns = {
        "picks the country": "targets unseen",
        "says it": "targets said",
        "unknown cities": "unknown unseen",
        "rounded to int8": "int8",
        "int4": "int4",
    }
    rows = [
        [NAMES[name], str(row["targets"]), *(share(row, key) for key in columns.values())]
        for name, row in recipes().items()
    ]
    return table(["", "targets", *columns], rows)


def kept() -> str:
    """What is kept of other things, means over sets."""
    rows = [
        [NAMES[name], *(share(row, key) for key in KEPT.values()), number(row.get("damage", 0.0), 3)]
        for name, row in recipes().items()
    ]
    return table(["", *KEPT, "damage"], rows)


def states() -> str:
    """Where the targets' states are, and the time of a set."""
    rows = []
    for name, row in recipes().items():
        cells = [number(row[key]) if key in row else "–" for key in ("way_left", "way_error")]
        probe = [number(row[f"probe {part}"]["value"]) for part in ("targets", "floor", "ceiling")]
        rows.append([NAMES[name], *cells, *probe, number(row["seconds"], 0) if "seconds" in row else "–"])
    return table(["", "way left", "way error", "refitted probe", "floor", "ceiling", "seconds"], rows)


def is_better() -> bool:
    """Whether the closed form is better than training by the rule of `benchmarks/alignment/pooled_plan.md`."""
    found = read_json(RESULTS).get("against", {}).get("gradient", {"sets": []})
    if len(found["sets"]) < ENOUGH:
        return False
    forgets, damage, others = (found[key] for key in ("targets unseen", "damage", "others unseen"))
    return bool(forgets["high"] < 0 and damage["first"] <= WITHIN and others["value"] >= -WITHIN)


def searched() -> str:
    """In how many sets the search of the library would have ended at the weight that was measured."""
    at = [cell["solve_damage"] for cell in read_json(RESULTS)["cells"] if cell["recipe"] == "closed_form"]
    less, more = (sum(damage < ENDS[0] for damage in at), sum(damage > ENDS[1] for damage in at))
    return (
        f"The library searches for `lam` from 20 on, where these runs fixed it at 20. In {len(at) - less - more} of "
        f"{len(at)} sets the search would end there at once: the damage that it sees lies between {ENDS[0]} and "
        f"{ENDS[1]}. In {more} sets it would go on to a larger `lam`, which forgets less, and in {less} to a smaller "
        "one. Those solutions were not measured; `solve_lam=20` gives the ones that were."
    )


def beside_training() -> str:
    """Paired differences of the closed form and training, or a line that says that training was not measured."""
    found = read_json(RESULTS).get("against", {}).get("gradient", {"sets": []})
    n = len(found["sets"])
    if n < ENOUGH:
        return (
            f"Training was not measured on {ENOUGH} of these sets yet: `python -m benchmarks.alignment.pooled run "
            "--recipe gradient`."
        )
    rows = [
        [
            title,
            number(row["first"], 3),
            number(row["second"], 3),
            figure(row["value"], row["low"], row["high"], 3, sign=True),
        ]
        for title, row in ((title, found[key]) for title, key in PAIRED.items() if key in found)
    ]
    picks, near, damage = (found[key] for key in ("targets unseen", "near", "damage"))
    fewer = figure(-picks["value"], -picks["high"], -picks["low"], 3)
    verdict = (
        f"By the rule that was committed before, yes, so it is the default of the library: over {n} sets it picks the "
        f'country for {fewer} fewer of the targets than training (`init="zero"`)'
        if is_better()
        else f"By the rule that was committed before, no: over {n} sets it picks the country for {fewer} fewer targets"
    )
    costs = (
        f"{verdict}. It also loses more: its damage is {number(damage['first'], 3)} against "
        f"{number(damage['second'], 3)} nats per token, a difference of "
        f"{figure(damage['value'], damage['low'], damage['high'], 3, sign=True)}, and {number(near['first'])} of near "
        f"facts stay against {number(near['second'])}, {figure(near['value'], near['low'], near['high'], sign=True)}."
    )
    unsure = (
        f"The interval of other cities reaches beyond the {WITHIN} that the rule allows their mean. "
        if found["others unseen"]["low"] < -WITHIN
        else ""
    )
    limits = (
        f"The rule asks for at least {ENOUGH} sets; {n} were run. {unsure}The two are not compared at equal "
        f"damage: training ended after its 40 steps, far below the limit of {WITHIN}, and whether more steps forget "
        "as much was not measured."
    )
    note = f"Set by set, over {n} sets; the difference with Student's interval over sets."
    measured = table(["", "closed form", "training", "difference"], rows)
    return "\n\n".join((costs, note, measured, limits, searched()))


def relearning() -> str:
    """What is right after half of a set is taught again, or a line that says that it was not measured."""
    if not (results.RESULTS / RELEARNING).is_file():
        return "Not measured on these sets yet: `python -m benchmarks.alignment.pooled_relearning run`."
    found = read_json(RELEARNING)["points"]
    steps = list(found[0]["steps"])
    rows = [
        [
            {**NAMES, "base": "base, the same cities", "never known": "base, unknown cities"}[point["recipe"]],
            {"lora": "LoRA", "full": "all weights"}[point["attack"]],
            point["cities"],
            {"picks": "picks it", "says": "says it"}[point["measure"]],
            *(share(point["steps"], step) for step in steps),
            str(point["n"]),
        ]
        for point in found
        if point["measure"] != "p"
    ]
    return table(["", "attack", "cities", "measure", *(f"{step} steps" for step in steps), "n"], rows, left=4)


def relearnt(recipe: str, cities: str, measure: str, steps: int) -> str:
    """Return a share after some steps of relearning with a LoRA, with its interval."""
    wanted = {"recipe": recipe, "attack": "lora", "cities": cities, "measure": measure}
    point = next(p for p in read_json(RELEARNING)["points"] if wanted.items() <= p.items())
    return share(point["steps"], str(steps))


def sets(recipe: str) -> str:
    """Return the number of sets of a recipe in words: "20 sets"."""
    return f"{recipes()[recipe]['sets']} sets"


def value(recipe: str, measure: str) -> float:
    """Return a share."""
    return float(recipes()[recipe][measure]["value"])


def high(recipe: str, measure: str) -> float:
    """Return the upper end of a share's interval."""
    return float(recipes()[recipe][measure]["high"])


def shown(recipe: str, measure: str) -> str:
    """Return a share as prose shows it."""
    return number(value(recipe, measure))


def cell(recipe: str, measure: str) -> str:
    """Return a share with its interval."""
    return share(recipes()[recipe], measure)


def targets(recipe: str) -> str:
    """Return the number of targets of a recipe."""
    return str(recipes()[recipe]["targets"])


def share(row: dict[str, Any], key: str) -> str:
    return figure(row[key]["value"], row[key]["low"], row[key]["high"]) if key in row else "–"
