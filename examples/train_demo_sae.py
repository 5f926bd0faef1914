"""Train the SAE that the project ships for its demo model, and measure it.

    export SAE_UNLEARN_DATA=FOLDER            # mmlu/ and wikitext2/, see demo_sae_texts.py
    python train_demo_sae.py --packages FOLDER --work FOLDER --output FOLDER
    python train_demo_sae.py --packages FOLDER --work FOLDER --output FOLDER --model FOLDER_OR_ID --layer 15

The second line does the same for another model.

1. Texts: eleven sources (demo_sae_texts.py), cut into sequences of 128 tokens in one shuffled order, each of them
   beginning with BOS if the model's tokenizer puts one there.
2. Harvest: the outputs of decoder layer 9 (0-based; the forward pass stops there) go to disk as float32.
3. Training: without first tokens and without outlier tokens (norm above twice the median), every dimension standardised
   (one of the 640 carries two thirds of the variance and would rule the loss), by SAELens' BatchTopK trainer.
4. Folding: the threshold is set to the wanted L0 on training tokens; the standardisation goes into the weights,
   decoder rows get unit norm, and W_enc and W_dec are rounded to float16. The result is an ordinary JumpReLU SAE
   in SAELens' layout that reads the model's activations as they are.
5. Measuring: on held-out text, domain by domain, into `metrics.json` beside the weights. `--compare` measures
   another SAE for the same layer on the same text.

Each step leaves its result in `--work` and is skipped when that is there, so an interrupted run goes on where it
was: the harvest at its last 512 sequences, the training at its last checkpoint. Take a new folder for other settings.

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


SEQUENCE_LENGTH = 128
OUTLIER_FACTOR = 2.0
"""Tokens whose residual norm exceeds this multiple of the median are left out of training and measurement."""

logger = logging.getLogger("train_demo_sae")


class _Stop(Exception):
    """Raised in a hook: the layers above are not needed."""


def sequences(tokenizer, documents: list[str], tokens: int | None = None) -> torch.Tensor:
    """Documents end to end, at most `tokens` of them, as rows of 128 tokens, or of BOS and 127: `[n, 128]`."""
    begin = tokenizer("a").input_ids[:-1]
    ids: list[int] = []
    wanted = tokens or float("inf")
    for start in range(0, len(documents), 64):
        for encoded in tokenizer(documents[start : start + 64], add_special_tokens=False).input_ids:
            ids += encoded + tokenizer.encode("\n\n", add_special_tokens=False)
        if len(ids) >= wanted:
            break
    width = SEQUENCE_LENGTH - len(begin)
    count = min(len(ids), tokens or len(ids)) // width
    rows = torch.tensor(ids[: count * width]).view(count, width)
    return torch.cat([torch.tensor(begin, dtype=rows.dtype).expand(count, -1), rows], dim=1)


def layer_outputs(model, layer: int, input_ids: torch.Tensor) -> torch.Tensor:
    """Outputs of decoder layer `layer`, `[batch, seq, d_in]`, without running the layers above."""
    caught = []

    def catch(module, args, output):
        caught.append(output[0] if isinstance(output, tuple) else output)
        raise _Stop

    handle = model.model.layers[layer].register_forward_hook(catch)
    try:
        with torch.no_grad():
            model.model(input_ids, use_cache=False)
    except _Stop:
        pass
    finally:
        handle.remove()
    return caught[0]


# --- 1 and 2: texts and activations ----------------------------------------------------------------------------


def prepare_tokens(tokenizer, args: argparse.Namespace) -> tuple[np.ndarray, list[str]]:
    """The training sequences `[n, 128]` in one shuffled order, and the source of each."""
    tokens_path, sources_path = args.work / "tokens.npy", args.work / "sources.json"
    if not sources_path.exists():
        rows, names = [], []
        budgets = {source.name: source.tokens for source in SOURCES}
        for name, documents in train_texts(args.data, args.packages).items():
            found = sequences(tokenizer, documents, round(budgets[name] * args.scale))
            logger.info("%s: %d sequences", name, len(found))
            rows.append(found)
            names += [name] * len(found)
        order = list(range(len(names)))
        random.Random(args.seed).shuffle(order)
        np.save(tokens_path, torch.cat(rows)[order].numpy().astype(np.int32))
        sources_path.write_text(json.dumps([names[i] for i in order]))
    return np.load(tokens_path), json.loads(sources_path.read_text())


def harvest(model, tokens: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """Layer outputs without first tokens, `[n, 127, d_in]` float32, memory-mapped; at most `--harvest-minutes` long."""
    path, progress_path = args.work / "activations.npy", args.work / "harvested.txt"
    done = int(progress_path.read_text()) if progress_path.exists() else 0
    shape = (len(tokens), SEQUENCE_LENGTH - 1, model.config.hidden_size)
    if done:
        activations = np.lib.format.open_memmap(path, mode="r+")
    else:
        activations = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    deadline = time.monotonic() + 60 * args.harvest_minutes
    batch = 16
    progress = tqdm(total=len(tokens), initial=done, unit="seq", mininterval=30)
    while done < len(tokens) and time.monotonic() < deadline:
        ids = torch.from_numpy(tokens[done : done + batch].astype(np.int64))
        activations[done : done + len(ids)] = layer_outputs(model, args.layer, ids)[:, 1:].numpy()
        done += len(ids)
        progress.update(len(ids))
        if done % (32 * batch) == 0 or done == len(tokens):
            activations.flush()
            progress_path.write_text(str(done))
    progress.close()
    activations.flush()
    progress_path.write_text(str(done))
    return activations[:done]


# --- 3 and 4: training and folding -----------------------------------------------------------------------------


def usable(activations: torch.Tensor) -> torch.Tensor:
    """Which tokens are no outliers: norm at most `OUTLIER_FACTOR` times the median. `[n, d_in] -> [n]`"""
    norms = activations.norm(dim=-1)
    return norms <= OUTLIER_FACTOR * norms.median()


def train(activations: np.ndarray, args: argparse.Namespace) -> None:
    """Train a BatchTopK SAE on standardised activations; write the folded JumpReLU SAE to `args.output`."""
    from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(args.seed)
    x = torch.from_numpy(np.array(activations)).flatten(0, 1)
    kept = usable(x).nonzero().squeeze(-1)
    sample = x[kept[torch.randperm(len(kept))[:200_000]]]
    mean, scale = sample.mean(0), sample.std(0)
    scale *= ((sample - mean) / scale).norm(dim=-1).mean() / x.shape[-1] ** 0.5  # to a mean norm of sqrt(d_in)
    x.sub_(mean).div_(scale)
    logger.info("%d tokens, %d outliers left out", len(kept), len(x) - len(kept))

    def batches():
        while True:
            order = kept[torch.randperm(len(kept))]
            for start in range(0, len(order) - args.batch_size + 1, args.batch_size):
                yield x[order[start : start + args.batch_size]]

    samples = round(args.epochs * len(kept))
    config = SAETrainerConfig(
        total_training_samples=samples,
        train_batch_size_samples=args.batch_size,
        device="cpu",
        lr=args.learning_rate,
        lr_end=args.learning_rate / 10,
        lr_warm_up_steps=50,
        lr_decay_steps=samples // args.batch_size // 3,
        dead_feature_window=100,
        feature_sampling_window=200,
        n_checkpoints=4,
        checkpoint_path=str(args.work / "checkpoints"),
        logger=LoggingConfig(log_to_wandb=False),
    )
    checkpoints = sorted((args.work / "checkpoints").glob("*"), key=lambda path: int(path.name))
    if checkpoints:
        logger.info("going on from %s", checkpoints[-1])
        training_sae = BatchTopKTrainingSAE.load_from_disk(str(checkpoints[-1]), device="cpu")
    else:
        training_sae = BatchTopKTrainingSAE(
            BatchTopKTrainingSAEConfig(
                d_in=x.shape[-1],
                d_sae=args.d_sae,
                k=args.k,
                topk_threshold_lr=0.05,  # the default lags behind in so short a training
                normalize_activations="none",
                dtype="float32",
                device="cpu",
            )
        )
    trainer = SAETrainer(config, training_sae, batches())
    if checkpoints:
        trainer.load_trainer_state(checkpoints[-1])
    started = time.monotonic()
    trainer.fit()
    seconds = time.monotonic() - started
    training_sae.save_inference_model(str(args.work / "standardised"))
    sae = SAE.load_from_disk(str(args.work / "standardised"), device="cpu")

    with torch.no_grad():
        calibrate_threshold(sae, x[kept[torch.randperm(len(kept))[:16_384]]], args.k)
        fired = torch.zeros(args.d_sae)
        seen = kept[torch.randperm(len(kept))[:300_000]]
        for part in seen.split(4096):
            fired += (sae.encode(x[part]) > 0).float().sum(0)
        frequency = fired / len(seen)
        sae.W_enc.data /= scale[:, None]
        sae.W_dec.data *= scale
        sae.b_dec.data = mean + scale * sae.b_dec
        sae.fold_W_dec_norm()
    metadata = sae.cfg.metadata
    metadata.model_name = args.model_name
    metadata.hook_name = f"blocks.{args.layer}.hook_resid_post"
    metadata.hf_hook_name = f"model.layers.{args.layer}.output"
    metadata.context_size = SEQUENCE_LENGTH
    metadata.prepend_bos = args.prepend_bos
    save(sae, args.output, torch.float16)
    for dtype in (torch.float32, torch.bfloat16):  # to compare with
        save(sae, args.work / str(dtype).removeprefix("torch."), dtype)
    names = json.loads((args.work / "sources.json").read_text())[: len(activations)]
    training = {
        "tokens": len(kept),
        "outlier_tokens_left_out": len(x) - len(kept),
        "tokens_by_source": {s.name: names.count(s.name) * (SEQUENCE_LENGTH - 1) for s in SOURCES},
        "samples": samples,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "k": args.k,
        "seed": args.seed,
        "training_seconds": round(seconds),
        "features_that_never_fire": int((frequency == 0).sum()),
        "features_that_fire_on_less_than_1_in_10000": int((frequency < 1e-4).sum()),
        "features_that_fire_on_more_than_1_in_10": int((frequency > 0.1).sum()),
        "tokens_for_firing_counts": len(seen),
    }
    (args.work / "training.json").write_text(json.dumps(training, indent=2))


def calibrate_threshold(sae, x: torch.Tensor, wanted: float) -> None:
    """Scale the thresholds, by bisection, so that `wanted` features are active on an average token of `x`."""
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    low, high = 0.2, 5.0
    for _ in range(25):
        factor = (low + high) / 2
        if (pre > sae.threshold * factor).float().sum(-1).mean() > wanted:
            low = factor
        else:
            high = factor
    logger.info("threshold factor %.4f", factor)
    sae.threshold.data *= factor


def save(sae, folder: Path, dtype: torch.dtype) -> None:
    """Write SAELens' layout with W_enc and W_dec in `dtype`, the biases and thresholds in float32."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    sae.save_model(str(folder))
    weights_path = folder / "sae_weights.safetensors"
    weights = load_file(weights_path)
    for name in ("W_enc", "W_dec"):
        weights[name] = weights[name].to(dtype)
    save_file(weights, weights_path)
    weights_path.chmod(0o644)
    config_path = folder / "cfg.json"
    config_path.write_text(json.dumps(json.loads(config_path.read_text()), indent=2) + "\n")


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
        rows[name] = sequences(tokenizer, documents, 127 * args.eval_sequences)
    return rows


def held_out_activations(model, layer: int, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sequences' layer outputs `[tokens, d_in]` without first tokens and outliers, by domain."""
    flat = {}
    for name, ids in tqdm(rows.items(), desc="held-out activations"):
        flat[name] = torch.cat([layer_outputs(model, layer, part)[:, 1:] for part in ids.split(16)]).flatten(0, 1)
    median = torch.cat([x.norm(dim=-1) for x in flat.values()]).median()
    return {name: x[x.norm(dim=-1) <= OUTLIER_FACTOR * median] for name, x in flat.items()}


def measure(model, rows: dict, clean: dict, saes: dict, args: argparse.Namespace) -> dict[str, dict]:
    """Quality of each SAE on held-out text, by domain: `{sae name: {domain: {figure: value}}}`.

    Explained variance is `1 - |x - x'|^2 / |x - mean|^2`; standardised, every dimension is divided by its standard
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
            "explained_variance_standardised": round(
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
    parser.add_argument("--k", type=float, default=40)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of each source's tokens to use")
    parser.add_argument("--sequences", type=int, help="use only the first so many of the shuffled sequences")
    parser.add_argument("--harvest-minutes", type=float, default=30, help="train on what is harvested by then")
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
        train(harvest(model, tokens[: args.sequences], args), args)

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
