"""What an adapter leaves on a model."""

import torch
from peft import PeftModel

from sae_unlearn import guardrail_status


def traces(model: torch.nn.Module) -> dict[str, object]:
    """What an adapter leaves on a model: modules, hooks, tensors, and which adapters there are."""
    hooks = {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._buffers))
        for name, module in model.named_modules()
    }
    own = {name: "forward" in vars(module) for name, module in model.named_modules()}
    configs = {name: sorted(getattr(module, "peft_config", ())) for name, module in model.named_modules()}
    status = guardrail_status(model)
    return {
        "hooks": hooks,
        "forwards": own,
        "configs": configs,
        "bare": hasattr(model, "peft_config"),
        "tensors": [(name, id(tensor)) for name, tensor in model.named_parameters()],
        "guardrails": status.guardrails,
        "active": model.active_adapter if isinstance(model, PeftModel) else None,
    }
