"""`SAEGuardrailLayer`: the guardrail at one decoder layer.

With `h_t` the residual stream after the layer (resid_post), `S` the N guarded features of an SAE, `a_j` their
activations, and `v_j <= 0` their clamp values:

    a_j(t)  = pre_j(t) * [pre_j(t) > threshold_j],      pre(t) = h_t W_enc[:, S] + b_enc[S]
    hot_t   = [some a_j(t) > 0] and token t is content and |h_t| is at most the outlier norm
    h'_t    = h_t + [gate fires at t] * hot_t * sum_{j in S} m_j(t) (v_j - a_j(t)) W_dec[j]

where `m_j(t) = [a_j(t) > 0]` for `clamp_mode="fired"` and 1 for `"all"`. It equals encoding with the whole SAE, setting
the features to `v_j`, decoding, and adding the SAE's reconstruction error back: everything that is not edited cancels.
This is exact for SAEs in which a feature's activation depends only on that feature (ReLU, JumpReLU, gated, BatchTopK
with its fixed threshold).

A token whose activations are not finite is also hot, and its row fires at once (see `gate.decision`).

The layer is a *child* of the decoder layer, and a forward hook that runs before all others makes the edit. So names of
base parameters, class checks, sharding and offloading plans stay the same, and `output_hidden_states` shows the edit.

Source: Muhamed et al. 2025 (arXiv 2504.08192); Farrell et al. 2024 (arXiv 2410.19278) for clamping active features.
"""

import secrets
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache

from sae_unlearn.backbone.layers import max_positions, residual_of, text_config
from sae_unlearn.backbone.private_api import forward_hook_owners
from sae_unlearn.errors import GuardrailError, GuardrailUnsupported
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.empty_weights import new_weights
from sae_unlearn.guardrail.gate.config_tensors import ConfigTables
from sae_unlearn.guardrail.gate.counted import counted_tokens, ends_of_messages
from sae_unlearn.guardrail.gate.decision import Decision, decide, heard, hits_of, hot_tokens, usual_norm
from sae_unlearn.guardrail.kernels.dispatch import step_for
from sae_unlearn.guardrail.kernels.interface import Step
from sae_unlearn.guardrail.runtime.cache_state import forget_unseen, history_of, unseen
from sae_unlearn.guardrail.runtime.call_cache import cache_of_layer
from sae_unlearn.guardrail.runtime.call_context import INPUTS, ForwardInputs, current_inputs, noted
from sae_unlearn.guardrail.runtime.gate_history import DynamicGateHistory, GateHistory
from sae_unlearn.guardrail.runtime.mask_reading import is_2d
from sae_unlearn.guardrail.runtime.packed_pass import judge_rows
from sae_unlearn.guardrail.runtime.pass_mask import kept_tokens, mask_of_pass, sees_all
from sae_unlearn.guardrail.runtime.readiness import Looked, check_ready
from sae_unlearn.guardrail.runtime.recording import Recorder
from sae_unlearn.guardrail.runtime.refusal import check_message, note_refusal
from sae_unlearn.guardrail.runtime.shown import check_shown, shown_again, shown_before
from sae_unlearn.guardrail.tuner_layer import GuardrailTunerLayer
from sae_unlearn.guardrail.weights import LayerGuardrail


class SAEGuardrailLayer(nn.Module, GuardrailTunerLayer):
    """The guardrails at one decoder layer, by adapter name.

    `tuner_layer` has PEFT's interface. `guard` is the forward hook.

    Args:
        decoder_layer (nn.Module): The layer, which gets the hook.
        adapter_name (str): Name of its first guardrail.
        config (SAEGuardrailConfig): Config of that guardrail.
        model (nn.Module): The transformers model.
    """

    def __init__(self, decoder_layer: nn.Module, adapter_name: str, config: SAEGuardrailConfig, model: nn.Module):
        super().__init__()
        self.sae_guardrail_encoder = nn.ModuleDict()
        self.sae_guardrail_decoder = nn.ModuleDict()
        self.guard_config: dict[str, SAEGuardrailConfig] = {}
        self.guards_of_model: dict[int, GuardrailTunerLayer] = {}  # by layer, including this one after it is placed
        self.recorders: list[Recorder] = []
        self.start(decoder_layer, adapter_name, model)
        self._looked: dict[str, Looked] = {}
        self._marks: dict[str, str] = {}  # identity of each guardrail: a later one of the same name has seen no tokens
        self.tables = ConfigTables()
        self.index = config.layer
        self.num_layers = text_config(model).num_hidden_layers
        self.vocabulary = text_config(model).vocab_size
        self.longest = max_positions(model)
        self.max_positions = self.longest or 4096
        # prepended: transformers captures `output_hidden_states` in a hook on this layer, which must see the edit
        decoder_layer.register_forward_hook(self.guard, with_kwargs=True, prepend=True)
        self.update_layer(adapter_name, config, decoder_layer)

    def update_layer(self, adapter_name: str, config: SAEGuardrailConfig, decoder_layer: nn.Module) -> None:
        """Add a guardrail with empty weights, which are loaded or set afterwards."""
        encoder, decoder = new_weights(config, decoder_layer)
        self.sae_guardrail_encoder[adapter_name] = encoder
        self.sae_guardrail_decoder[adapter_name] = decoder
        self.guard_config[adapter_name] = config
        self._marks[adapter_name] = secrets.token_hex(8)
        self.frozen_peft_weight_names[adapter_name] = self.adapter_layer_names  # an SAE's weights are never trained
        self.set_adapter(self.active_adapters, inference_mode=True)

    # ------------------------------------------------------------------------------------------------ the forward pass

    def guard(self, decoder_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return the edited output of the decoder layer, or None to leave it unchanged. Its forward hook."""
        active = self.in_force
        if len(active) < len(self.guard_config):
            noticed: ForwardInputs | None = noted(INPUTS)
            forget_unseen((*args, *kwargs.values(), noticed and noticed.cache), self.index, active)
        if not active:
            return None
        hidden = residual_of(decoder_layer, output)
        inputs = current_inputs(hidden.shape[0], hidden.shape[1], self, self.index)
        inputs.guarded.append(self.index)
        cache = None if inputs.packed else cache_of_layer(args, kwargs) or inputs.cache
        homes = [self.check_ready(name) for name in active]
        edited = None if cache is None else self._edited_step(active, hidden, homes, inputs, cache)
        if edited is None:
            if inputs.packed:
                inputs.packed.check_layer(decoder_layer, args, kwargs)
                all_edits = [self._edit_rows(name, hidden, inputs) for name in active]
            else:
                kept = kept_tokens(inputs, hidden.shape[0], hidden.shape[1], hidden.device)
                all_edits = [self._edit(name, hidden, kept, inputs, cache) for name in active]
            edits = [edit for edit in all_edits if edit is not None]
            if not edits:
                return None
            edited = (hidden + (edits[0] if len(edits) == 1 else sum(edits))).to(hidden.dtype)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    def _edited_step(
        self, names: list[str], hidden: Tensor, homes: list[torch.device | None], inputs: ForwardInputs, cache: Cache
    ) -> Tensor | None:
        """The edited residual stream `[batch, 1, d_in]` of a decoding step, by the step of `kernels.dispatch`.

        None if the operators of `_edit` have to do it.
        """
        batch, seq = hidden.shape[:2]
        plan: list[tuple[str, Step, DynamicGateHistory]] = []
        for name, home in zip(names, homes, strict=True):
            step = step_for(self.guard_config[name], hidden, home)
            history = None if step is None else self._history(name, inputs, cache, seq)
            if step is None or not isinstance(history, DynamicGateHistory):
                return None
            plan.append((name, step, history))
        mask, masks, past = mask_of_pass(inputs, batch, seq), inputs.masks.telling, inputs.past
        if len(masks) > 1 or (mask is None and not sees_all(inputs, seq)):
            return None
        telling = masks[0] if masks else None
        earlier = None
        if not inputs.recurrent and not all(history.whole for _, _, history in plan):
            if not isinstance(past, int) or not (telling is None or is_2d(telling)):
                return None
            earlier = shown_before(telling, past, hidden.device)
        mask = None if mask is None else mask.to(hidden.device)
        ids = None if inputs.input_ids is None else inputs.input_ids.to(hidden.device)
        edited = hidden if len(names) == 1 else hidden.float()  # rounded once
        for name, step, history in plan:
            config, encoder, decoder = self.guardrail(name)
            edited = step(hidden, edited, encoder, decoder, config, self.tables, ids, mask, earlier, history)
            self._record(name, config, history, cache)
        return edited.to(hidden.dtype)

    def _edit(
        self, name: str, hidden: Tensor, kept: Tensor, inputs: ForwardInputs, cache: Cache | None
    ) -> Tensor | None:
        """The edit of guardrail `name`, `[batch, seq, d_in]`, or None if it only records."""
        config, encoder, decoder = self.guardrail(name)
        history = None if cache is None else self._history(name, inputs, cache, hidden.shape[1])
        activations = encoder(hidden)
        counted, eligible = counted_tokens(config, self.tables, kept, inputs.input_ids, inputs.past)
        if config.tokens.counting == "columns":  # padding counts, but its values are arbitrary
            activations = activations.where(kept[..., None], activations.nan_to_num(0.0, 0.0, 0.0))
        lost = None if history is None else self._lost(history, inputs, hidden)
        if lost is not None:  # whatever the mask and the ids say about these tokens
            activations = activations.masked_fill(lost[..., None], torch.nan)
            counted, eligible = counted | lost, counted | lost if eligible is counted else eligible | lost
        activations = heard(activations, eligible, usual_norm(hidden, config))
        active = activations != 0
        hits = hits_of(activations, active, self.tables.evidence(config, kept.device), counted, config)
        ends = ends_of_messages(config, self.tables, kept, inputs.input_ids)
        decision = self._decide(name, hits, counted, kept, ends, inputs, history, cache)
        if config.action == "record":
            return None
        if config.action == "refuse":
            known = (self.num_layers, self.max_positions)
            check_message(config, self.vocabulary)
            message = self.tables.message(tuple(config.refusal_ids or ()), kept.device)
            note_refusal(name, config, message, decision, kept, inputs, cache, known)
        clamped = active[..., : config.num_features]
        if config.clamp_mode == "fired":
            where = decision.fire[..., None] & clamped
        else:
            where = (decision.fire & hot_tokens(active, hits, config))[..., None].expand_as(clamped)
        activations = activations[..., : config.num_features]
        return cast(Tensor, decoder(activations, where))

    def _edit_rows(self, name: str, hidden: Tensor, inputs: ForwardInputs) -> Tensor | None:
        """The edit of guardrail `name` on packed rows, as of `_edit`."""
        recorders = Recorder.listening(self.recorders) if self.recorders else []
        owner = (self.index, name, self._marks[name])
        return judge_rows(inputs.packed, owner, self.guardrail(name), self.tables, hidden, inputs, recorders)

    def _lost(self, history: GateHistory, inputs: ForwardInputs, hidden: Tensor) -> Tensor | None:
        """Rows or tokens with tokens in the cache, or shown by the mask, that were not judged.

        `[batch or 1, seq or 1]` bool. None if the host knows that all were judged.
        """
        seq = hidden.shape[1]
        missed = unseen(history, inputs.past, hidden.device)
        again = None  # a model of only recurrent layers has no columns of the past
        if not inputs.recurrent:
            again = shown_again(inputs.masks, history, inputs.past, seq)
        if again is None:
            return None if missed is None else missed[None, None]
        if seq > 1 and not torch.compiler.is_compiling():
            check_shown(again)
        again = again.to(hidden.device)[:, None]
        return again if missed is None else again | missed

    def _decide(
        self,
        name: str,
        hits: Tensor,
        counted: Tensor,
        kept: Tensor,
        ends: Tensor | None,
        inputs: ForwardInputs,
        history: GateHistory | None,
        cache: Cache | None,
    ) -> Decision:
        config = self.guard_config[name]
        seq = hits.shape[1]
        boundary = None if inputs.wanted is None else seq - inputs.wanted
        if history is None:
            decision = decide(hits, counted, config, boundary=boundary, ends=ends, kept=kept)
            self._record(name, config, decision.state[:, -1])
            return decision
        decision = decide(hits, counted, config, history.last(), boundary, ends, kept)
        history.append(decision.state, sees_all(inputs, seq))
        self._record(name, config, history, cache)
        return decision

    def _history(self, name: str, inputs: ForwardInputs, cache: Cache, seq: int) -> GateHistory:
        owner = (self.guard_config[name].layer, name, self._marks[name])
        return history_of(cache, owner, inputs.past, inputs.recurrent, self.num_layers, self.max_positions, seq)

    def _record(
        self, name: str, config: SAEGuardrailConfig, seen: GateHistory | Tensor, cache: Cache | None = None
    ) -> None:
        if self.recorders:
            for recorder in Recorder.listening(self.recorders):
                recorder.note(name, config, seen, cache)

    def guardrail(self, name: str) -> LayerGuardrail:
        """Return config, encoder and decoder of a guardrail.

        Args:
            name (str): The guardrail's adapter name.

        Raises:
            GuardrailError: If this layer has no guardrail of that name.
        """
        if name not in self.guard_config:
            raise GuardrailError(f"name={name!r}: expected one of {[*self.guard_config]}. Pass a guardrail's name.")
        # `_modules` saves the attribute lookup of a module for each decoded token
        encoders, decoders = (cast(Any, self._modules[attribute]) for attribute in self.adapter_layer_names)
        return LayerGuardrail(self.guard_config[name], encoders._modules[name], decoders._modules[name])

    def check_ready(self, name: str) -> torch.device | None:
        """Raise unless config and weights can be a guardrail's on this model. See `readiness`.

        Args:
            name (str): Name of the guardrail.

        Returns:
            The device on which all weights can be read by a kernel, or None without one.

        Raises:
            GuardrailNotReady: If something is missing. The message names it.
        """
        known = (self.vocabulary, self.longest)
        return check_ready(name, *self.guardrail(name), self._looked, known)

    @property
    def home(self) -> nn.Module:
        """The decoder layer that it guards."""
        return self._home[0]

    def in_place(self, backbone_layer: nn.Module) -> bool:
        """Return True if a call of `backbone_layer`, the decoder layer or its wrapper, runs `guard`."""
        home = self._home[0]
        if backbone_layer is not home and all(module is not home for module in backbone_layer.modules()):
            return False
        return any(owner is self for owner in forward_hook_owners(home))

    def __dir__(self) -> list[str]:
        names: list[str] = super().__dir__()  # type: ignore[no-untyped-call]
        return self.there(names)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse the call: the guardrail is a hook of its decoder layer."""
        raise GuardrailUnsupported("A SAEGuardrailLayer works as a hook of its decoder layer and is not called.")
