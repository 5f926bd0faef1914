"""The card of a bundle, `README.md` in its folder."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from sae_unlearn.cards.card import adapter_metadata, report_section, write_model_card
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.model import MODEL_TAGS
from sae_unlearn.guardrail.storage.card import CardDetails, base_of


TEMPLATE = Path(__file__).parent / "card_template.md"


def write_bundle_card(
    folder: Path, configs: Mapping[str, SAEGuardrailConfig], lora: str | None, model: nn.Module, details: CardDetails
) -> None:
    """Write the card of a bundle from the template; the members' own cards lie in their folders."""
    base = base_of(next(iter(configs.values())), model)
    tags = sorted({*MODEL_TAGS, "sae_unlearn", "sparse-autoencoder"} | ({"lora"} if lora else set()))
    data = adapter_metadata(base.hub_id, details.license, tags)
    fields = {
        **base.fields(),
        "repo_id": details.repo_id or "this repository",
        "members": _members(configs, lora),
        "evaluation": report_section(details.evaluation, folder, "evaluation") or "Of the members together, nothing.",
        "audit": report_section(details.audit, folder, "audit") or "None was saved with this bundle.",
    }
    write_model_card(folder, TEMPLATE, data, fields)


def _members(configs: Mapping[str, SAEGuardrailConfig], lora: str | None) -> str:
    lines = ["| member | kind | layer | features | threshold | action |", "|---|---|---|---|---|---|"]
    for name, config in configs.items():
        row = (config.layer, config.num_features, f"{config.threshold:.4g}", config.action)
        lines.append(f"| [{name}]({name}/README.md) | guardrail | {' | '.join(map(str, row))} |")
    if lora:
        lines.append(f"| [{lora}]({lora}/README.md) | LoRA | | | | |")
    return "\n".join(lines)
