"""Cards of a bundle and of its LoRA: `README.md` in their folders.

A model does not record the origin of its LoRA, so the LoRA's card has only the content of its config.
"""

from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig
from torch import nn

from sae_unlearn.cards.card import adapter_metadata, as_plain_text, report_section, write_model_card
from sae_unlearn.cards.provenance import license_lines
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.peft_type import MODEL_TAGS
from sae_unlearn.guardrail.storage.card import CardDetails, attached, base_of


TEMPLATE = Path(__file__).parent / "card_template.md"
_NO_EVALUATION = "No evaluation was saved with this bundle."
_NO_AUDIT = "No audit was saved with this bundle."


def write_bundle_card(
    folder: Path, configs: Mapping[str, SAEGuardrailConfig], lora: str | None, model: nn.Module, details: CardDetails
) -> None:
    """Write the card of a bundle. The members' own cards are in their folders."""
    base = base_of(next(iter(configs.values())), model)
    tags = sorted({*MODEL_TAGS, "sae_unlearn", "sparse-autoencoder"} | ({"lora"} if lora else set()))
    data = adapter_metadata(base.hub_id, details.license, tags)
    fields = {
        **base.fields(),
        "repo_id": details.repo_id or "this repository",
        "members": _members(configs, lora),
        "evaluation": report_section(details.evaluation, folder, "evaluation") or _NO_EVALUATION,
        "audit": report_section(details.audit, folder, "audit") or _NO_AUDIT,
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


LORA_TEMPLATE = Path(__file__).parent / "lora_card_template.md"


def write_lora_card(folder: Path, config: LoraConfig, model: nn.Module, details: CardDetails) -> None:
    """Write the card of a bundle's LoRA."""
    base = base_of(config, model)
    tags = ["lora", "sae_unlearn"]
    data = adapter_metadata(base.hub_id, details.license, tags)
    modules = sorted(map(str, config.target_modules or []))
    fields = {
        **base.fields(),
        "attached": attached(details),
        "rank": str(config.r),
        "alpha": f"{config.lora_alpha:g}",
        "modules": ", ".join(f"`{as_plain_text(module)}`" for module in modules[:20])
        + (f" and {len(modules) - 20} more" if len(modules) > 20 else ""),
        "evaluation": report_section(details.evaluation, folder, "evaluation") or _NO_EVALUATION,
        "audit": report_section(details.audit, folder, "audit") or _NO_AUDIT,
        "licenses": license_lines(base, None, details.licenses),
    }
    write_model_card(folder, LORA_TEMPLATE, data, fields)
