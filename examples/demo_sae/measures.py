"""Measures of an SAE on held-out text, domain by domain, and of what rounding its weights changes."""

from __future__ import annotations

import argparse
import random

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from sae_unlearn.sae.training.harvest import OUTLIER_FACTOR, layer_outputs
from sae_unlearn.sae.training.rows import rows_of_texts

from .texts import held_out_texts


SEQUENCE_LENGTH = 128


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
