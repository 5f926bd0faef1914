"""Entry of `SAE_GUARDRAIL` in PEFT's list of methods.

`peft.utils.register_peft_method` takes only names that are members of the `PeftType` enum, and transformers' adapter
loading reads `peft_type.value`. So a method outside PEFT must add the member itself, which happens only here. If PEFT
ships a member of that name, that member is used.
"""

from peft.utils import PeftType


CHILD = "guardrail"  # the child's name, without PEFT's prefix: otherwise PEFT misses it when deleting adapters


MODEL_TAGS = ["sae-guardrail", "unlearning"]


METHOD = "sae_guardrail"


def ensure_peft_type(name: str) -> PeftType:
    """Return `PeftType.<name>`, and add the member if this PEFT has none. Safe to call again."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    type.__setattr__(PeftType, name, member)
    return member


PEFT_TYPE = ensure_peft_type(METHOD.upper())
