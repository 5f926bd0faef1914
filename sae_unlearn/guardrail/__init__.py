"""The DSG guardrail: SAE features of a topic are clamped at one layer if a per-row gate fires.

It has the layout of a PEFT tuner: `config.py`, `layer.py` (one layer, with the equation), `model.py` (all layers), and
the gate, its state, fitting and attaching. Importing it registers the method with PEFT.
"""

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

from sae_unlearn.errors import GuardrailError, GuardrailNotReady, GuardrailUnsupported, UnlearnError
from sae_unlearn.guardrail.attach import attach_guardrail, detach_guardrail
from sae_unlearn.guardrail.bundles.bundle import attach_bundle, push_bundle, save_bundle
from sae_unlearn.guardrail.check.check import check_guardrail
from sae_unlearn.guardrail.check.findings import CheckReport, Finding
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.groups import BaseRecord, StatisticKwargs, TokenRules
from sae_unlearn.guardrail.fit.fit import fit_guardrail
from sae_unlearn.guardrail.fit.layer_scores import LayerScore, Scouting, scout
from sae_unlearn.guardrail.fit.search import search_guardrail
from sae_unlearn.guardrail.fit.several import fit_guardrails
from sae_unlearn.guardrail.layer import SAEGuardrailLayer
from sae_unlearn.guardrail.manage import (
    AttachedGuardrail,
    GuardrailState,
    GuardrailStatus,
    enable_guardrails,
    guardrail_status,
    list_guardrails,
)
from sae_unlearn.guardrail.model import SAEGuardrailModel, guard_layers
from sae_unlearn.guardrail.peft_020 import do_as_later_peft
from sae_unlearn.guardrail.peft_type import METHOD, PEFT_TYPE
from sae_unlearn.guardrail.runtime.firing import Firing
from sae_unlearn.guardrail.runtime.recording import record_firings
from sae_unlearn.guardrail.storage.card import CardDetails
from sae_unlearn.guardrail.storage.folder import GuardrailFolder
from sae_unlearn.guardrail.storage.guarded_model import GuardedModel
from sae_unlearn.guardrail.tuning.action import set_action
from sae_unlearn.guardrail.tuning.trade_off import TradeOff, set_threshold
from sae_unlearn.guardrail.weights import LayerGuardrail
from sae_unlearn.options.fit import GuardrailFitConfig


if PEFT_TYPE not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(name=METHOD, config_cls=SAEGuardrailConfig, model_cls=SAEGuardrailModel)
do_as_later_peft()

__all__ = [
    "AttachedGuardrail",
    "BaseRecord",
    "CardDetails",
    "CheckReport",
    "Finding",
    "Firing",
    "GuardedModel",
    "GuardrailError",
    "GuardrailFitConfig",
    "GuardrailFolder",
    "GuardrailNotReady",
    "GuardrailState",
    "GuardrailStatus",
    "GuardrailUnsupported",
    "LayerGuardrail",
    "LayerScore",
    "SAEGuardrailConfig",
    "SAEGuardrailLayer",
    "SAEGuardrailModel",
    "Scouting",
    "StatisticKwargs",
    "TokenRules",
    "TradeOff",
    "UnlearnError",
    "attach_bundle",
    "attach_guardrail",
    "check_guardrail",
    "detach_guardrail",
    "enable_guardrails",
    "fit_guardrail",
    "fit_guardrails",
    "guard_layers",
    "guardrail_status",
    "list_guardrails",
    "push_bundle",
    "record_firings",
    "save_bundle",
    "scout",
    "search_guardrail",
    "set_action",
    "set_threshold",
]
