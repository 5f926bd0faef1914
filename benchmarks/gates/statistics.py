"""The gate's statistics against dilution at one false-positive rate, and what the split-conformal threshold promises.

    python -m benchmarks.gates.statistics run --data FOLDER --results FOLDER       # goes on where it was cut
    python -m benchmarks.gates.statistics summary --results FOLDER

Texts of the topic, and other texts, are read as they are and with so many words of yet other texts around them. The
threshold of every statistic is set on one half of the other texts, of all lengths alike, at the same percentile; the
other half says how often the gate then fires on them, and the topic's texts how often it still fires on the topic.
From so few texts a percentile gives every statistic another rate; so a second table puts each threshold where the gate
fires on one and the same share of all other texts of the topic, and that table decides. Only truncated passes are run;
features are those of the default settings, and for "weighed, 40" of num_features=40. Tokens that are weighed count what
their features say for the topic (`evidence="log_ratio"`), in nats.

A split-conformal threshold of level alpha is exceeded by a fresh text with probability at most alpha, if texts are
exchangeable. It is set on random halves of the other texts as they are, and compared with what the other halves do.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from benchmarks.forget.cached_front import Front, cached_front
from benchmarks.forget.compare import add_setting_arguments, settings, write
from benchmarks.forget.fitting import fitted
from benchmarks.forget.setting import Setting
from benchmarks.forget.table import RESULTS
from benchmarks.gates.removed_statistics import RemovedStatistic
from sae_unlearn import SAEGuardrailConfig
from sae_unlearn.backbone.residual_stream import residual_batches
from sae_unlearn.backbone.tokens import special_token_ids
from sae_unlearn.evaluation import Estimate
from sae_unlearn.evaluation.audit.attacks.dilution import diluted
from sae_unlearn.files.terminal import table
from sae_unlearn.guardrail import StatisticKwargs
from sae_unlearn.guardrail.fit.calibration import conformal_threshold, percentile_threshold
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate.decision import heard, hits_of, row_statistic
from sae_unlearn.options.fit import PRESETS


COUNTED: dict[str, RemovedStatistic | None] = {
    "ratio": None,
    **{f"window of {w}": RemovedStatistic("window", window=w) for w in (16, 32, 64)},
    **{f"cusum, drift {k:g}": RemovedStatistic("cusum", drift=k) for k in (0.25, 0.5)},
}
WEIGHED: dict[str, RemovedStatistic | None] = {
    "ratio": None,
    "window of 16": COUNTED["window of 16"],
    **{f"cusum, drift {k:g}": RemovedStatistic("cusum", drift=k) for k in (0.5, 1.0)},
    "ratio or window of 16": RemovedStatistic("ratio_or_window", window=16),
}
"""Statistics by name; None is `ratio`, the package's own."""
FITS: dict[str, tuple[dict[str, Any], dict[str, RemovedStatistic | None]]] = {
    "": ({"evidence": "any", "num_features": 20}, COUNTED),
    "weighed, ": ({"evidence": "log_ratio", "num_features": 20}, WEIGHED),
    "weighed, 40, ": ({"evidence": "log_ratio", "num_features": 40}, WEIGHED),
}
"""What is fitted, with which options, and the statistics that are read under it."""
STATISTICS = [fit + name for fit, (_, statistics) in FITS.items() for name in statistics]
DEFAULT = "ratio"
WORDS = (0, 64, 256)
PERCENTILE = 97.5
ALPHAS = (0.05, 0.1, 0.2)
RATE = 0.05
SPLITS = 500
OTHER_ROWS = 60

Gate: TypeAlias = tuple[SAEGuardrailConfig, RemovedStatistic | None]
Fired: TypeAlias = list[tuple[list[bool], dict[str, list]]]
Fires: TypeAlias = Callable[[dict[str, Any], str], tuple[list[bool], dict[str, list]]]
"""Of a topic and a statistic: where the gate fires on other texts, and on the topic's by words around them."""


@torch.no_grad()
def measure(setting: Setting, words: Sequence[int] = WORDS) -> dict[str, Any]:
    """Every statistic of every row: `{side: {words: {statistic: [n]}}}`."""
    texts = setting.texts
    others = [*texts.other_test, *texts.other_validation]
    rows = {"topic": texts.test, "other": others[: min(OTHER_ROWS, len(others) // 2)]}
    filler = others[len(rows["other"]) :] or others
    gates: dict[str, Gate] = {}
    with cached_front(setting.model, setting.layer, Front()):
        for fit, (options, statistics) in FITS.items():
            with fitted(setting, options) as guarded:
                config = guarded.peft_config["default"]
            for name, removed in statistics.items():
                gates[fit + name] = gate_of(config), removed
    found: dict[str, Any] = {"features": gates[DEFAULT][0].feature_ids}
    for seed, (side, some) in enumerate(rows.items()):
        found[side] = {}
        for number in words:
            given = [diluted(text, number, "both", filler, seed, i) for i, text in enumerate(some)]
            found[side][str(number)] = statistics_of(setting, gates, given)
    return found


def gate_of(config: SAEGuardrailConfig) -> SAEGuardrailConfig:
    """A config of the same features whose gate reads every token."""
    return SAEGuardrailConfig(
        layer=config.layer,
        feature_ids=config.feature_ids,
        feature_evidence=config.feature_evidence,
        statistic_kwargs=StatisticKwargs(min_tokens=PRESETS[None]["min_tokens"]),
    )


def statistics_of(setting: Setting, gates: dict[str, Gate], texts: Sequence[str]) -> dict[str, list[float]]:
    """Each statistic of each text."""
    parts = {tuple(config.feature_ids): setting.sae.slice(config.feature_ids) for config, _ in gates.values()}
    special = torch.tensor(special_token_ids(setting.tokenizer, setting.model.config))
    found = {name: [0.0] * len(texts) for name in gates}
    for batch in residual_batches(setting.model, setting.tokenizer(list(texts))["input_ids"], setting.layer, 4):
        content = batch.kept & ~torch.isin(batch.input_ids, special.to(batch.input_ids.device))
        activations = {ids: part.encode(batch.residual) for ids, part in parts.items()}
        for name, (config, removed) in gates.items():
            a = heard(activations[tuple(config.feature_ids)], content)
            hits = hits_of(a, a != 0, ConfigTables().evidence(config, a.device), content, config)
            if removed is None:
                values = row_statistic(hits, content, config)
            else:
                values = removed.of_rows(hits, content, config.statistic_kwargs.min_tokens)
            for i, value in zip(batch.index, values.tolist(), strict=True):
                found[name][i] = round(value, 5)
    return found


def caught(topic: dict[str, Any], statistic: str, percentile: float = PERCENTILE) -> tuple[list[bool], dict[str, list]]:
    """Whether the gate fires on other texts that had no part in the threshold, of all lengths, and on the topic's, by
    words around them."""
    other = {words: values[statistic] for words, values in topic["other"].items()}
    threshold = percentile_threshold(_tensor([v for values in other.values() for v in values[::2]]), percentile)
    false = [v > threshold for values in other.values() for v in values[1::2]]
    return false, {words: [v > threshold for v in values[statistic]] for words, values in topic["topic"].items()}


def at_rate(topic: dict[str, Any], statistic: str, rate: float = RATE) -> tuple[list[bool], dict[str, list]]:
    """As `caught`, with the lowest threshold that at most `rate` of all other texts, of all lengths, exceed."""
    other = [v for values in topic["other"].values() for v in values[statistic]]
    threshold = sorted(other, reverse=True)[int(rate * len(other))]
    fires = {words: [v > threshold for v in values[statistic]] for words, values in topic["topic"].items()}
    return [v > threshold for v in other], fires


def conformal(values: Sequence[float], alpha: float, splits: int = SPLITS, seed: int = 0) -> tuple[float, float] | None:
    """Mean rate at which fresh values exceed the split-conformal threshold of random halves, and the share of halves
    in which they do so more often than `alpha`; None if a half is too small for `alpha`."""
    generator, pool, rates = torch.Generator().manual_seed(seed), _tensor(values), []
    for _ in range(splits):
        order = torch.randperm(len(pool), generator=generator)
        half = len(pool) // 2
        threshold = conformal_threshold(pool[order[:half]], alpha)
        if threshold is None:
            return None
        rates.append(float((pool[order[half:]] > threshold).double().mean()))
    return sum(rates) / splits, sum(rate > alpha for rate in rates) / splits


def summarise(folder: Path, keep: bool = False) -> str:
    """Print both tables and what they come to, and with `keep` write them with all figures."""
    topics = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    lengths = list(topics[0]["topic"])
    rows, _ = rates(topics, lengths, caught)
    matched, gains = rates(topics, lengths, at_rate)
    better = [name for name, by_length in gains.items() if by_length[-1].low > 0]
    worse = [name for name in better if gains[name][0].high < 0]
    verdict = f"Better than {DEFAULT} at {lengths[-1]} words and one rate: {', '.join(better) or 'none'}"
    verdict += f"; of these worse at {lengths[0]}: {', '.join(worse) or 'none'}."
    stated = [["statistic", "stated", "measured", "halves above"]]
    for name in STATISTICS:
        for alpha in ALPHAS:
            found = [conformal(topic["other"]["0"][name], alpha) for topic in topics]
            if None not in found:
                mean, above = (sum(column) / len(found) for column in zip(*found, strict=True))
                stated.append([name, f"{alpha:g}", f"{mean:.3f}", f"{above:.2f}"])
    head = f"Thresholds at the {PERCENTILE:g}th percentile of other texts of all lengths; {len(topics)} topics."
    same = f"Thresholds that {RATE:g} of all other texts of the topic exceed"
    promised = f"Split-conformal thresholds, {SPLITS} halves"
    text = "\n\n".join([head, table(rows), same, table(matched), verdict, promised, table(stated)])
    print(text)
    if keep:
        (RESULTS / "gate_statistics.txt").write_text(text + "\n")
        (RESULTS / "gate_statistics.json").write_text(json.dumps(topics))
    return text


def rates(
    topics: list[dict[str, Any]], lengths: Sequence[str], fires: Fires
) -> tuple[list[list[str]], dict[str, list[Estimate]]]:
    """The table of one way to set thresholds, and each statistic's gain over the default one, by length."""
    found = {name: [fires(topic, name) for topic in topics] for name in STATISTICS}
    gains = {
        name: [Estimate.mean(_tensor(_differences(mine, found[DEFAULT], words))) for words in lengths]
        for name, mine in found.items()
    }
    ends = (0, -1)
    head = [f"gain over {DEFAULT}, {lengths[end]}" for end in ends]
    rows = [["statistic", "fires on other", *(f"topic, {w} words around" for w in lengths), *head]]
    for name, mine in found.items():
        false = Estimate.share([v for some, _ in mine for v in some])
        shares = [Estimate.share([v for _, hits in mine for v in hits[w]]) for w in lengths]
        rows.append([name, *map(str, (false, *shares, *(gains[name][end] for end in ends)))])
    return rows, gains


def _differences(mine: Fired, usual: Fired, words: str) -> list[float]:
    pairs = zip(_joined(mine, words), _joined(usual, words), strict=True)
    return [float(a) - float(b) for a, b in pairs]


def _joined(found: Fired, words: str) -> list[bool]:
    return [hit for _, hits in found for hit in hits[words]]


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run, summary = commands.add_parser("run"), commands.add_parser("summary")
    add_setting_arguments(run)
    for command in (run, summary):
        command.add_argument("--results", type=Path, required=True, help="folder of one file per topic")
    summary.add_argument("--write", action="store_true", help="also to benchmarks/results")
    args = parser.parse_args()
    if args.command == "summary":
        summarise(args.results, args.write)
        return
    for setting in settings(args):
        path = args.results / f"{setting.texts.name}-{setting.seed}.json"
        if not path.exists():
            write(path, {"topic_name": setting.texts.name, "seed": setting.seed, **measure(setting)})


if __name__ == "__main__":
    main()
