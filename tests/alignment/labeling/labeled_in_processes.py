"""Labels of a tiny model's words, which each process writes down; also run by `accelerate launch`."""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from labeled_words import label

from sae_unlearn.backbone.distributed import leaving_launch


def labeled(cache: Path | None = None) -> dict:
    """The labels, and every answer."""
    found = label(batch_size=4, samples=5, min_matches=2, cache=cache)
    parts = {name: [entity.entity for entity in getattr(found, name)] for name in ("known", "unknown", "dropped")}
    return parts | {"answers": [asked.to_line() for asked in found.answers]}


if __name__ == "__main__":
    with leaving_launch():
        state, out = PartialState(cpu=True), Path(sys.argv[1])
        found = labeled(out / "cache.jsonl") | {"processes": state.num_processes}
        again = labeled(out / "cache.jsonl")  # all of it from the cache
        assert again == {name: value for name, value in found.items() if name != "processes"}
        (out / f"{state.process_index}.json").write_text(json.dumps(found))
