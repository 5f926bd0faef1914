"""Train the SAE that the project ships for its demo model, and measure it.

    export SAE_UNLEARN_DATA=FOLDER            # mmlu/ and wikitext2/, see demo_sae_texts.py
    python train_demo_sae.py --packages FOLDER --work FOLDER --output FOLDER
    python train_demo_sae.py --packages FOLDER --work FOLDER --output FOLDER --model FOLDER_OR_ID --layer 15

The second line does the same for another model.

1. Texts: eleven sources (demo_sae_texts.py), cut into sequences of 128 tokens in one shuffled order, each of them
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
from demo_sae_texts import SOURCES, held_out_texts, train_texts
from torch.nn import functional as F
from tqdm import tqdm

from sae_unlearn.cli.inputs import load_model
from sae_unlearn.sae.training.folding import Standardization, folded, threshold_for
from sae_unlearn.sae.training.harvest import OUTLIER_FACTOR, harvest, layer_outputs, usual_tokens
from sae_unlearn.sae.training.plan import TrainingPlan
from sae_unlearn.sae.training.rows import rows_of_texts
from sae_unlearn.sae.training.trainer import train as train_weights


SEQUENCE_LENGTH = 128

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


# --- 5: measuring ----------------------------------------------------------------------------------------------


def spliced_losses(model, layer: int, input_ids: torch.Tensor, replace) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropies at every sixth position, with the layer's outputs but the first replaced by `replace(outputs)`.

    Returns:
        The losses `[batch, positions]` in nats and the outputs `[batch, seq, d_in]` as they were.
    """
    caught = []

    def splice(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        caught.append(hidden)
        if replace is None:
            return output
        new = torch.cat([hidden[:, :1], replace(hidden[:, 1:])], dim=1)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    positions = torch.arange(1, input_ids.shape[1] - 1, 6)
    handle = model.model.layers[layer].register_forward_hook(splice)
    try:
        with torch.no_grad():
            last = model.model(input_ids, use_cache=False).last_hidden_state[:, positions]
            logits = model.lm_head(last)
    finally:
        handle.remove()
    losses = F.cross_entropy(logits.transpose(1, 2), input_ids[:, positions + 1], reduction="none")
    return losses, caught[0]


def held_out_sequences(tokenizer, args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Held-out sequences `[n, 128]` by domain, at most `--eval-sequences` of each."""
    rows = {}
    for name, documents in held_out_texts(args.data, args.packages).items():
        documents = random.Random(1).sample(documents, len(documents))
        rows[name] = rows_of_texts(tokenizer, documents, SEQUENCE_LENGTH, 127 * args.eval_sequences)
    return rows


def held_out_activations(model, layer: int, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sequences' layer outputs `[tokens, d_in]` without first tokens and outliers, by domain."""
    flat = {}
    for name, ids in tqdm(rows.items(), desc="held-out activations"):
        flat[name] = torch.cat([outputs for _, outputs in layer_outputs(model, layer, ids, 16)]).flatten(0, 1)
    median = torch.cat([x.norm(dim=-1) for x in flat.values()]).median()
    return {name: x[x.norm(dim=-1) <= OUTLIER_FACTOR * median] for name, x in flat.items()}


def measure(model, rows: dict, clean: dict, saes: dict, args: argparse.Namespace) -> dict[str, dict]:
    """Quality of each SAE on held-out text, by domain: `{sae name: {domain: {figure: value}}}`.

    Explained variance is `1 - |x - x'|^2 / |x - mean|^2`; standardized, every dimension is divided by its standard
    deviation first. Loss recovered is `(mean-ablated - spliced) / (mean-ablated - loss)`; where the layer's output is
    replaced, it is replaced on all tokens but the first, outliers included.
    """
    everything = torch.cat(list(clean.values()))
    mean, scale = everything.mean(0), everything.std(0)

    def figures(sae, x: torch.Tensor) -> dict:
        features = torch.cat([sae.encode(part) for part in x.split(4096)])
        error = sae.decode(features) - x
        centred = x - x.mean(0)
        return {
            "tokens": len(x),
            "explained_variance": round(float(1 - (error**2).sum() / (centred**2).sum()), 4),
            "explained_variance_standardized": round(
                float(1 - ((error / scale) ** 2).sum() / ((centred / scale) ** 2).sum()), 4
            ),
            "l0": round(float((features > 0).float().sum(-1).mean()), 2),
        }

    results: dict[str, dict] = {name: {} for name in saes}
    for domain, ids in tqdm(rows.items(), desc="held-out losses"):
        losses = {key: [] for key in ("base", "mean", *saes)}
        for part in ids[: args.loss_sequences].split(8):
            losses["base"].append(spliced_losses(model, args.layer, part, None)[0])
            losses["mean"].append(spliced_losses(model, args.layer, part, mean.expand_as)[0])
            for name, sae in saes.items():
                losses[name].append(spliced_losses(model, args.layer, part, sae)[0])
        ce = {key: float(torch.cat(parts).mean()) for key, parts in losses.items()}
        for name, sae in saes.items():
            results[name][domain] = figures(sae, clean[domain]) | {
                "outlier_tokens_left_out": ids[:, 1:].numel() - len(clean[domain]),
                "loss_positions": sum(part.numel() for part in losses["base"]),
                "loss": round(ce["base"], 4),
                "loss_spliced": round(ce[name], 4),
                "loss_mean_ablated": round(ce["mean"], 4),
                "loss_recovered": round((ce["mean"] - ce[name]) / (ce["mean"] - ce["base"]), 4),
            }
    for name, sae in saes.items():
        domains = results[name]
        total = figures(sae, everything)
        weights = [row["loss_positions"] for row in domains.values()]
        for key in ("loss", "loss_spliced", "loss_mean_ablated"):
            pooled = np.average([row[key] for row in domains.values()], weights=weights)
            total[key] = round(float(pooled), 4)
        gap = total["loss_mean_ablated"] - total["loss"]
        total["loss_recovered"] = round((total["loss_mean_ablated"] - total["loss_spliced"]) / gap, 4)
        total["loss_positions"] = sum(weights)
        fired = torch.stack([(sae.encode(part) > 0).any(0) for part in everything.split(4096)]).any(0)
        total["features_that_never_fire"] = int((~fired).sum())
        results[name] = {"all": total, **domains}
    return results


def rounding(stored: dict, x: torch.Tensor) -> dict[str, dict]:
    """What storing W_enc and W_dec in 16 bits does to the SAE of `stored["float32"]`."""
    x = x[torch.randperm(len(x))[:20_000]]
    exact = stored["float32"].encode(x)
    centred = ((x - x.mean(0)) ** 2).sum()
    rows = {}
    for name, sae in stored.items():
        features = sae.encode(x)
        both, either = (features > 0) & (exact > 0), (features > 0) | (exact > 0)
        rows[name] = {
            "l0": round(float((features > 0).float().sum(-1).mean()), 3),
            "explained_variance": round(float(1 - ((sae.decode(features) - x) ** 2).sum() / centred), 5),
            "features_in_common": round(float(both.sum() / either.sum()), 5),
        }
    return rows


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
