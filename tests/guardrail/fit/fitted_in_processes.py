"""A fit of a tiny guardrail, whose parts the first process writes down; also run by `accelerate launch`."""

import sys
import warnings
from pathlib import Path

import torch
from accelerate import PartialState
from fitting import FORGET, RETAIN, config_of, fit, random_sae, tensors
from tiny_topic import topic_texts

from sae_unlearn.backbone.distributed import leaving_launch


WORDS = 60  # a row; enough tokens for the median to be known before the forget text ends


def texts(side: str, number: int) -> list[str]:
    return topic_texts(side, number, seed=5, words=WORDS)


def fitted(kind: str) -> dict:
    """What comes out of a fit: features, threshold, tensors, and everything that was measured."""
    options = {}
    if kind == "topk":
        options = {"sae": random_sae(architecture="topk", k=12), "topk": "threshold"}
    if kind == "windowed":
        options = {"statistic": "windowed", "num_gate_features": 12}
    corpora = {"forget": FORGET, "retain": RETAIN} if kind == "short" else {}
    corpora = corpora or {"forget": texts("forget", 70), "retain": texts("retain", 90)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fit(batch_size=3, **options, **corpora)
    config = config_of(model)
    weights = {name: tensor.detach().clone() for name, tensor in tensors(model).items()}
    return {
        "features": config.feature_ids,
        "threshold": config.threshold,
        "tensors": weights,
        "calibration": config.calibration,
    }


if __name__ == "__main__":
    with leaving_launch():
        state = PartialState(cpu=True)
        found = {kind: fitted(kind) for kind in ("usual", "short", "topk", "windowed")} | {
            "processes": state.num_processes
        }
        torch.save(found, Path(sys.argv[1]) / f"{state.process_index}.pt")
