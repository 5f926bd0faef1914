"""Label cities as known or unknown to Gemma 3 270M by the probability of their country, without sampling.

    python -m benchmarks.alignment.label_by_probability --data FOLDER --output FOLDER

Known: the first token of the right country has a probability of at least 0.35 after both wordings of `label_cities`.
Unknown: at most 0.03 after both. Candidates are the 900 largest cities of the 40 most common countries and 500 random
ones below the 1,500 largest. The result depends on nothing random but that draw, and takes minutes on one core.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from benchmarks.alignment import label_cities
from benchmarks.alignment.data import country_of
from benchmarks.forget.topics import data_folder
from sae_unlearn.alignment.entities import EntitySet
from sae_unlearn.alignment.entity import Entity
from sae_unlearn.backbone.logits import wanted_logits
from sae_unlearn.backbone.tokens import right_padded
from sae_unlearn.demo import load_demo_model


LARGEST = 900
KNOWN, UNKNOWN = 0.35, 0.03


@torch.no_grad()
def country_probabilities(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, cities: Sequence[Entity], question: str, batch_size: int = 48
) -> Tensor:
    """Probability of the first token of each city's country after a question: `[cities]`."""
    rows = [tokenizer(question.format(entity=city.entity)).input_ids for city in cities]
    prefix = tokenizer("Country:").input_ids
    first = torch.tensor([tokenizer(f"Country: {country_of(c)}").input_ids[len(prefix)] for c in cities])
    found = torch.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        ids, mask = right_padded([rows[i] for i in part])
        last = torch.zeros_like(mask)
        last[torch.arange(len(part)), mask.sum(dim=1) - 1] = True
        log_p = wanted_logits(model, ids, mask, last).log_softmax(dim=-1)
        found[part] = log_p[torch.arange(len(part)), first[part]].exp()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="data folder; default $SAE_UNLEARN_DATA")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    cities = label_cities.candidates(data_folder(options.data), largest=LARGEST)
    model, tokenizer = load_demo_model()
    start = time.perf_counter()
    kept = list(cities)
    lowest, highest = torch.ones(len(kept)), torch.zeros(len(kept))
    for question in label_cities.QUESTIONS["city"]["country"]:
        found = country_probabilities(model, tokenizer, kept, question)
        lowest, highest = torch.minimum(lowest, found), torch.maximum(highest, found)
        stays = ((lowest >= KNOWN) | (highest <= UNKNOWN)).nonzero().flatten()
        kept, lowest, highest = [kept[i] for i in stays.tolist()], lowest[stays], highest[stays]
    sides = {
        "known": EntitySet(city for city, p in zip(kept, lowest.tolist(), strict=True) if p >= KNOWN),
        "unknown": EntitySet(city for city, p in zip(kept, highest.tolist(), strict=True) if p <= UNKNOWN),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    for name, side in sides.items():
        rows = [
            {"entity": c.entity, "entity_type": "city", "attributes": {"country": list(c.attributes["country"])}}
            for c in side
        ]
        (options.output / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
        print(name, len(side), Counter(country_of(city) for city in side).most_common(8))
    print(f"{len(cities)} candidates, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
