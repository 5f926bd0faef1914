"""Train the SAE that the project ships for its demo model, and measure it.

    export SAE_UNLEARN_DATA=FOLDER            # mmlu/ and wikitext2/, see demo_sae/texts.py
    python train_demo_sae.py --packages FOLDER --work FOLDER --output FOLDER
    python train_demo_sae.py --packages FOLDER --work FOLDER --output FOLDER --model FOLDER_OR_ID --layer 15

The second line does the same for another model.

1. Texts: eleven sources (demo_sae/texts.py), cut into sequences of 128 tokens in one shuffled order, each of them
   beginning with BOS if the model's tokenizer puts one there.
2. Harvest: the outputs of decoder layer 9 (0-based; the forward pass stops there) go to disk as float32.
3. Training: without first tokens and without outlier tokens (norm above twice the median), every dimension standardized
   (one of the 640 carries two thirds of the variance and would rule the loss), by SAELens' BatchTopK trainer.
4. Folding: the threshold is set to the wanted L0 on training tokens; the standardization goes into the weights,
   decoder rows get unit norm, and W_enc and W_dec are rounded to float16. The result is an ordinary JumpReLU SAE
   in SAELens' layout that reads the model's activations as they are.
5. Measuring: on held-out text, domain by domain, into `metrics.json` beside the weights. `--compare` measures
   another SAE for the same layer on the same text.

Steps 2 to 4 are those of `sae_unlearn.sae.train_sae`; the texts, the float16 weights and the measures by domain are
this script's. Each step leaves its result in `--work` and is skipped if that is there, so an interrupted run continues:
the harvest at its last 256 sequences, the training at its last checkpoint. Take a new folder for other settings.

Needs `pip install ".[demo]" sae-lens`, 3 GB of disk and 8 GB of memory; on two CPU cores about an hour.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
from demo_sae.measures import SEQUENCE_LENGTH, held_out_activations, held_out_sequences, measure, rounding
from demo_sae.texts import SOURCES, train_texts

from sae_unlearn.cli.inputs import load_model
from sae_unlearn.sae.training.folding import Standardization, folded, threshold_for
from sae_unlearn.sae.training.harvest import harvest, usual_tokens
from sae_unlearn.sae.training.plan import TrainingPlan
from sae_unlearn.sae.training.rows import rows_of_texts
from sae_unlearn.sae.training.trainer import train as train_weights


logger = logging.getLogger("train_demo_sae")


# --- 1 and 2: texts and activations ----------------------------------------------------------------------------


def prepare_tokens(tokenizer, args: argparse.Namespace) -> tuple[np.ndarray, list[str]]:
    """The training sequences `[n, 128]` in one shuffled order, and the source of each."""
    tokens_path, sources_path = args.work / "tokens.npy", args.work / "sources.json"
    if not sources_path.exists():
        rows, names = [], []
        budgets = {source.name: source.tokens for source in SOURCES}
        for name, documents in train_texts(args.data, args.packages).items():
            found = rows_of_texts(tokenizer, documents, SEQUENCE_LENGTH, round(budgets[name] * args.scale))
            logger.info("%s: %d sequences", name, len(found))
            rows.append(found)
            names += [name] * len(found)
        order = list(range(len(names)))
        random.Random(args.seed).shuffle(order)
        np.save(tokens_path, torch.cat(rows)[order].numpy().astype(np.int32))
        sources_path.write_text(json.dumps([names[i] for i in order]))
    return np.load(tokens_path), json.loads(sources_path.read_text())


# --- 3 and 4: training and folding -----------------------------------------------------------------------------


def train(model, tokens: np.ndarray, args: argparse.Namespace) -> None:
    """Harvest, train a BatchTopK SAE on standardized activations, and write it, folded, to `args.output`."""
    rows = torch.from_numpy(tokens.astype(np.int64))
    activations = harvest(model, args.layer, rows, args.work)
    kept = usual_tokens(activations)
    draw = torch.Generator().manual_seed(args.seed)
    sample = kept[torch.randperm(len(kept), generator=draw)[:200_000]]
    by = Standardization.of(activations.tokens(sample))
    logger.info("%d tokens, %d outliers left out", len(kept), len(activations) - len(kept))
    steps = int(args.epochs * len(kept)) // args.batch_size
    width = activations.values.shape[-1]
    plan = TrainingPlan(args.layer, width, args.d_sae, args.k, len(rows), len(kept), steps, activations.values.nbytes)
    settings = {"batch_size": args.batch_size, "learning_rate": args.learning_rate, "seed": args.seed}
    started = time.monotonic()
    weights = train_weights(activations, kept, by, plan, args.work, **settings)
    seconds = time.monotonic() - started

    with torch.no_grad():
        x = by(activations.tokens(sample[: 2**24 // args.d_sae]))
        theta = threshold_for((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"], args.k)
        sae = folded(weights, theta, by, args.layer)
        fired = torch.zeros(args.d_sae)
        for part in sample.split(4096):
            fired += (sae.encode(activations.tokens(part)) > 0).float().sum(0)
        frequency = fired / len(sample)
    about = {
        "model_name": args.model_name,
        "hf_hook_name": f"model.layers.{args.layer}.output",
        "context_size": SEQUENCE_LENGTH,
        "prepend_bos": args.prepend_bos,
    }
    save(sae, args.output, torch.float16, about)
    for dtype in (torch.float32, torch.bfloat16):  # to compare with
        save(sae, args.work / str(dtype).removeprefix("torch."), dtype, about)
    names = json.loads((args.work / "sources.json").read_text())[: len(rows)]
    training = {
        "tokens": len(kept),
        "outlier_tokens_left_out": len(activations) - len(kept),
        "tokens_by_source": {s.name: names.count(s.name) * (SEQUENCE_LENGTH - 1) for s in SOURCES},
        "samples": steps * args.batch_size,
        **settings,
        "k": args.k,
        "training_seconds": round(seconds),
        "features_that_never_fire": int((frequency == 0).sum()),
        "features_that_fire_on_less_than_1_in_10000": int((frequency < 1e-4).sum()),
        "features_that_fire_on_more_than_1_in_10": int((frequency > 0.1).sum()),
        "tokens_for_firing_counts": len(sample),
    }
    (args.work / "training.json").write_text(json.dumps(training, indent=2))


def save(sae, folder: Path, dtype: torch.dtype, about: dict) -> None:
    """Write SAELens' layout with W_enc and W_dec in `dtype`, the biases and thresholds in float32."""
    from safetensors.torch import load_file, save_file

    sae.save_pretrained(folder)
    weights_path = folder / "sae_weights.safetensors"
    weights = load_file(weights_path)
    for name in ("W_enc", "W_dec"):
        weights[name] = weights[name].to(dtype)
    save_file(weights, weights_path)
    weights_path.chmod(0o644)
    config_path = folder / "cfg.json"
    config = json.loads(config_path.read_text())
    config["metadata"] |= about
    config_path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Run the steps whose results are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data sets; default: the environment variable SAE_UNLEARN_DATA")
    parser.add_argument("--packages", type=Path, default=Path("/"), help="where the Debian packages are unpacked")
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate results (3 GB)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the finished SAE")
    parser.add_argument("--compare", type=Path, help="measure this SAE folder on the same held-out text too")
    parser.add_argument("--model", default="demo", help="another model: a folder or a Hub id")
    parser.add_argument("--layer", type=int, default=9, help="decoder layer, 0-based")
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--k", type=int, default=40)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of each source's tokens to use")
    parser.add_argument("--sequences", type=int, help="use only the first so many of the shuffled sequences")
    parser.add_argument("--eval-sequences", type=int, default=64, help="held-out sequences per domain")
    parser.add_argument("--loss-sequences", type=int, default=24, help="of these, for the loss")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.data is None:
        if "SAE_UNLEARN_DATA" not in os.environ:
            parser.error("give --data or set SAE_UNLEARN_DATA to the folder with mmlu/ and wikitext2/")
        args.data = Path(os.environ["SAE_UNLEARN_DATA"])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)

    model, tokenizer = load_model(args.model)
    args.model_name, args.prepend_bos = model.name_or_path, len(tokenizer("a").input_ids) > 1
    if not (args.work / "training.json").exists():
        tokens, _ = prepare_tokens(tokenizer, args)
        train(model, tokens[: args.sequences], args)

    from sae_unlearn.sae import SparseAutoencoder

    saes = {"trained": SparseAutoencoder.from_pretrained(args.output)}
    if args.compare:
        saes["compared"] = SparseAutoencoder.from_pretrained(args.compare)
    rows = held_out_sequences(tokenizer, args)
    clean = held_out_activations(model, args.layer, rows)
    results = measure(model, rows, clean, saes, args)
    stored = {name: SparseAutoencoder.from_pretrained(args.work / name) for name in ("float32", "bfloat16")}
    metrics = {
        "model": args.model_name,
        "layer": args.layer,
        "training": json.loads((args.work / "training.json").read_text()),
        "held_out": results["trained"],
        "storage": rounding(stored | {"float16": saes["trained"]}, torch.cat(list(clean.values()))),
    }
    (args.output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    if args.compare:
        (args.work / "compared.json").write_text(json.dumps(results["compared"], indent=2) + "\n")


if __name__ == "__main__":
    main()
