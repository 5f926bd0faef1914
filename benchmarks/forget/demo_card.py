"""The card of the demo's guardrail, written from the files beside it, as a save with its audit would write it.

    sae-unlearn demo --output DEMO
    cp DEMO/forget-biology/adapter_* model_cards/forget-biology-gemma-3-270m
    cp -r benchmarks/results/demo_audit/. model_cards/forget-biology-gemma-3-270m/audit
    python -m benchmarks.forget.demo_card

Nothing is fitted or measured: every figure of the card stands in `adapter_config.json` or in `audit/audit.json`.
"""

import os
from pathlib import Path

from torch import nn

from sae_unlearn.cli.demo import LICENSE
from sae_unlearn.evaluation import AuditReport
from sae_unlearn.guardrail.storage.card import CardDetails, write_card
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


SHIPPED = Path(__file__).parents[2] / "model_cards" / "forget-biology-gemma-3-270m"


def write_demo_card(folder: str | os.PathLike[str], source: Path = SHIPPED) -> None:
    """Write the card and its pictures into `folder`, from the config and the audit in `source`."""
    config = GuardrailFolder.open(source).config()
    audit = AuditReport.load(source / "audit")
    write_card(folder, config, nn.Identity(), CardDetails(license=LICENSE, folder=SHIPPED.name, audit=audit))


if __name__ == "__main__":
    write_demo_card(SHIPPED)
