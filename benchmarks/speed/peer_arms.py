"""Models for `peers.py`: the guardrail and its peers around one set of weights.

A peer that is a package is used if it is installed. The hook of DSG's authors is not in a package: its file is passed
on the command line. What cannot be measured is named with its reason. Nothing of a peer is copied here.
"""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.speed.models import guarded, middle, synthetic_sae, twin, with_edit, with_lora, with_whole_sae
from benchmarks.speed.peer_traits import FORMER, OURS
from sae_unlearn import SAEGuardrailConfig, SparseAutoencoder, attach_guardrail
from sae_unlearn.backbone.layers import text_config
from sae_unlearn.guardrail import StatisticKwargs, TokenRules


FEATURES, GATE_FEATURES = 20, 300  # the defaults of a fit
HOT_SHARE = 0.2  # threshold of the gate of the authors' hook
AUTHORS_FUNCTION = "anthropic_clamp_resid_SAE_features"


class Arms(NamedTuple):
    """Models by arm, and the reasons of the arms that are missing."""

    models: dict[str, nn.Module]
    left_out: dict[str, str]


def arms(model: nn.Module, width: int, authors_hook: Path | None) -> Arms:
    """Return the arms of decoding and of prompts.

    Args:
        model (nn.Module): The bare model, on the CPU in float32.
        width (int): Features of the SAE that the peers encode with.
        authors_hook (Path or None): Python file with the hook of DSG's authors.
    """
    sae = synthetic_sae(text_config(model).hidden_size, width, "cpu", threshold=0.5)
    made = {
        "none": twin(model),
        "guardrail, quiet": with_windowed_gate(model, fires=False),
        OURS: with_windowed_gate(model, fires=True),
        FORMER: guarded(model, FEATURES, fires=True),
    }
    left_out = {}
    peers: dict[str, Callable[[], nn.Module]] = {
        "repsteer, direction": lambda: repsteer_direction(model, sae),
        "repsteer, gated clamp": lambda: repsteer_clamp(model, sae),
        "SAELens SAE": lambda: saelens_clamp(model, sae),
        "authors' hook": lambda: authors_clamp(model, sae, authors_hook),
    }
    for name, make in peers.items():
        missing = missing_for(name, authors_hook)
        if missing:
            left_out[name] = missing
        else:
            made[name] = make()
    made["whole SAE, rewritten"] = with_whole_sae(model, sae, FEATURES)
    return Arms(made | {"LoRA": with_lora(model)}, left_out)


def missing_for(name: str, authors_file: Path | None) -> str | None:
    """Return why a peer cannot be measured, or None if it can."""
    package = "repsteer" if name.startswith("repsteer") else "sae_lens"
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if name.startswith("authors") and authors_file is None:
        return "its file was not given"
    return None


def with_windowed_gate(model: nn.Module, fires: bool) -> nn.Module:
    """Return a twin with a guardrail as a fit makes it by default. It fires on every row, or on none.

    About half of the features that it reads are active at any token, which is more than a trained SAE has.
    """
    number = FEATURES + GATE_FEATURES
    config = SAEGuardrailConfig(
        layer=middle(model),
        feature_ids=list(range(FEATURES)),
        gate_feature_ids=list(range(FEATURES, number)),
        feature_evidence=[0.25] * number,
        statistic="windowed",
        statistic_kwargs=StatisticKwargs(min_tokens=8, drift=0.5, row_variance=0.05, token_variance=4.0),
        threshold=0.01 if fires else 1e6,
        clamp_value=-1.0,
        tokens=TokenRules(special_ids=[0, 1, 2]),
    )
    return attach_guardrail(
        twin(model), config, sae=synthetic_sae(text_config(model).hidden_size, number, "cpu")
    ).eval()


def repsteer_direction(model: nn.Module, sae: SparseAutoencoder) -> nn.Module:
    """Return a twin under repsteer's `Add` of one direction to all tokens, without a gate."""
    import repsteer as rs

    direction = rs.DirectionArtifact(metadata=_metadata(model), direction=sae.W_dec[0])
    return _steered(model, rs.Intervention(artifact=direction, operator=rs.operators.Add(), **_everywhere()))


def repsteer_clamp(model: nn.Module, sae: SparseAutoencoder) -> nn.Module:
    """Return a twin under repsteer's `SAEClamp` of one feature, behind a gate on one feature of the layer before."""
    import repsteer as rs

    adapter = rs.sae.FunctionalSAEAdapter(
        sae.d_in, sae.d_sae, sae.encode, lambda z: z @ sae.W_dec + sae.b_dec, lambda i: sae.W_dec[i]
    )
    site = rs.sites.resid_pre(middle(model))
    gate = rs.gates.SAEActivationGate(0, -1.0, sae=adapter, evaluate_at=site)
    feature = rs.SAEFeatureArtifact(metadata=_metadata(model), feature_id=0, decoder_direction=sae.W_dec[0])
    operator = rs.operators.SAEClamp(-1.0, sae=adapter)
    return _steered(model, rs.Intervention(artifact=feature, operator=operator, gate=gate, **_everywhere()))


def _metadata(model: nn.Module) -> Any:
    import repsteer as rs

    return rs.ArtifactMetadata(
        site=rs.sites.resid_post(middle(model)), hidden_size=text_config(model).hidden_size, model_id="benchmark"
    )


def _everywhere() -> dict[str, Any]:
    import repsteer as rs

    return {"positions": rs.positions.AllTokens(), "strength": rs.schedules.Constant(1.0), "phase": "both"}


def in_repsteer(model: nn.Module, tokenizer: Any = None) -> Any:
    """Return repsteer's wrapper of a model; its adapter for Gemma serves for Gemma 3, whose layers have these names."""
    import repsteer as rs
    from repsteer.models.hf.adapters.gemma import GemmaAdapter

    return rs.models.from_model(model, tokenizer, adapter=GemmaAdapter(), model_id="benchmark")


def _steered(model: nn.Module, intervention: Any) -> nn.Module:
    import repsteer as rs

    bare = twin(model)
    session = in_repsteer(bare).steer(rs.SteeringPlan([intervention]), compatibility="dimension")
    session.__enter__()  # its hooks stay on this twin
    return bare


def saelens_sae(sae: SparseAutoencoder) -> Any:
    """Return SAELens' SAE of the same weights."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    theirs = JumpReLUSAE(JumpReLUSAEConfig(d_in=sae.d_in, d_sae=sae.d_sae, dtype="float32", device="cpu"))
    theirs.load_state_dict({name: getattr(sae, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")})
    return theirs.requires_grad_(False)


def saelens_clamp(model: nn.Module, sae: SparseAutoencoder) -> nn.Module:
    """Return a twin with SAELens' SAE and its error term at the layer, and a hook of SAELens' that clamps."""
    theirs = saelens_sae(sae)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it asks for SAELens' own model classes
        theirs.use_error_term = True

    def clamp(activations: Tensor, hook: Any) -> Tensor:
        activations[..., :FEATURES] = -1.0
        return activations

    theirs.hook_sae_acts_post.add_hook(clamp)
    return with_edit(model, theirs)


def authors_clamp(model: nn.Module, sae: SparseAutoencoder, file: Path | None) -> nn.Module:
    """Return a twin with the authors' hook, called as in their evaluation, on SAELens' SAE."""
    assert file is not None
    hook, theirs = getattr(module_of(file), AUTHORS_FUNCTION), saelens_sae(sae)
    return with_edit(model, lambda hidden: hook(hidden, None, theirs, list(range(FEATURES)), 1.0, HOT_SHARE))


def module_of(file: Path) -> ModuleType:
    """Import a Python file that is not in a package."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def edits_one_token(made: dict[str, nn.Module], ids: Tensor) -> dict[str, bool]:
    """Return for each arm whether it changes a call on a single token, as with a KV cache a decoded token is."""
    logits = {name: model(input_ids=ids[:, :1], use_cache=False).logits for name, model in made.items()}
    return {name: not torch.equal(found, logits["none"]) for name, found in logits.items()}
