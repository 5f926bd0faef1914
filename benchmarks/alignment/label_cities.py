"""Which cities Gemma 3 270M knows: candidates for the alignment benchmarks.

    python -m benchmarks.alignment.label_cities --data FOLDER --output FOLDER

The data folder holds `sae_entities/city.json`, the cities of Ferrando et al. (arXiv 2411.14257,
github.com/javiferran/sae_entities). Of the cities in the 40 commonest countries, the 500 largest and 500 random ones
below the 1,500 largest are asked for their country, in two ways; names that stand for several cities are left out.

Known: at least 3 of 10 samples are right in both ways. Unknown: none is right in either. That is stricter than the
published rule, since the guess of a common country is often right. Countries are not spread alike over known and
unknown, and `summary.json` counts them: a country that the model likes to guess is seldom that of an unknown city, and
most cities of the United States are dropped, for which it names the state as often.

A run that was cut goes on from `answers.cache.jsonl` in the output folder.
"""

import argparse
import json
import os
import random
import time
from collections import Counter
from pathlib import Path

from benchmarks.forget.topics import data_folder
from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.labeling.label import label_entities
from sae_unlearn.demo import load_demo_model


COUNTRIES, LARGEST, SMALL, SMALL_FROM = 40, 500, 500, 1500
OTHER_NAMES = {
    "United States of America": ["United States", "USA", "U.S.A.", "US", "U.S.", "America"],
    "People's Republic of China": ["China", "PRC", "P.R. China"],
    "Czech Republic": ["Czechia"],
    "Netherlands": ["Holland"],
    "Turkey": ["Türkiye"],
    "Russia": ["Russian Federation"],
    "Ivory Coast": ["Côte d'Ivoire"],
}
QUESTIONS = {
    "city": {
        "country": (
            "City: {entity}\nCountry:",
            # neither of these two countries is among the 40
            "Cities and their countries: Oslo, Norway; Nairobi, Kenya; {entity},",
        )
    }
}


def candidates(folder: Path, seed: int = 0, largest: int = LARGEST) -> EntitySet:
    """The largest cities and random small ones, with their countries."""
    rows = json.loads((folder / "sae_entities/city.json").read_text(encoding="utf-8"))
    named = Counter(row["cityLabel"].casefold() for row in rows)
    rows = [row for row in rows if named[row["cityLabel"].casefold()] == 1 and row.get("countryLabel")]
    common = {name for name, _ in Counter(row["countryLabel"] for row in rows).most_common(COUNTRIES)}
    rows = [row for row in rows if row["countryLabel"] in common]
    rows.sort(key=_population, reverse=True)
    chosen = rows[:largest] + random.Random(seed).sample(rows[SMALL_FROM:], SMALL)
    return EntitySet(
        {
            "entity": row["cityLabel"],
            "entity_type": "city",
            "attributes": {"country": [row["countryLabel"], *OTHER_NAMES.get(row["countryLabel"], [])]},
        }
        for row in chosen
    )


def _population(row: dict) -> float:
    try:
        return float(row.get("recent_population") or 0)
    except ValueError:
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="data folder; default $SAE_UNLEARN_DATA")
    parser.add_argument("--output", default=os.environ.get("SAE_UNLEARN_CITIES"), help="default $SAE_UNLEARN_CITIES")
    parser.add_argument("--limit", type=int, help="only so many of the largest and of the small ones")
    options = parser.parse_args()
    if not options.output:
        raise SystemExit("Name the output folder with --output or SAE_UNLEARN_CITIES.")
    output = Path(options.output)
    cities = candidates(data_folder(options.data))
    if options.limit:
        cities = cities[: options.limit] + cities[LARGEST : LARGEST + options.limit]
    model, tokenizer = load_demo_model()
    start = time.perf_counter()
    labeled = label_entities(
        model,
        tokenizer,
        cities,
        questions=QUESTIONS,
        min_known=1,
        max_wrong_matches=0,
        cache=output / "answers.cache.jsonl",
    )
    labeled.save(output)
    summary = labeled.summary()
    for name in ("known", "unknown", "dropped"):
        part = getattr(labeled, name)
        countries = Counter(city.attributes["country"][0] for city in part)
        lengths = sorted(len(city.entity) for city in part)
        summary[name] = {"countries": dict(countries.most_common()), "median name": lengths[len(lengths) // 2 :][:1]}
    text = json.dumps(summary, ensure_ascii=False, indent=1)
    (output / "summary.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(f"{time.perf_counter() - start:.0f} s in this run; written to {output}")


if __name__ == "__main__":
    main()
