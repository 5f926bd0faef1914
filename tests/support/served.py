"""Tiny models and guardrails on disk, and vLLM engines that serve them, with the answers of `generate()` to compare."""

import copy
import gc
import json
import os
import urllib.error
import urllib.request
from contextlib import contextmanager

import torch
import transformers as t
import zoo
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from sae_unlearn import attach_guardrail, record_firings
from sae_unlearn.backbone.identity import fingerprint
from sae_unlearn.engines.request_ids import vllm_requests


# Before vllm is imported: engines in this process, a small cache, no binding of threads.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

WIDTH, LAYERS, LAYER, VOCAB = 64, 4, 1, 512
_SHARED = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": VOCAB - 1,
}
_GATED = {"intermediate_size": 96, "num_key_value_heads": 1}
_BOTH = ["sliding_attention", "full_attention"]
MODELS = {  # head_dim 32 is the smallest of vLLM's attention on a CPU
    "gemma3": lambda: t.Gemma3TextConfig(**_SHARED, **_GATED, head_dim=32, sliding_window=64, query_pre_attn_scalar=32),
    "hybrid": lambda: t.Gemma3TextConfig(
        **_SHARED, **_GATED, head_dim=32, sliding_window=48, query_pre_attn_scalar=32, layer_types=_BOTH * 2
    ),
    "llama": lambda: t.LlamaConfig(**_SHARED, **_GATED),
    "mixtral": lambda: t.MixtralConfig(**_SHARED, **_GATED, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: t.Qwen3MoeConfig(
        **_SHARED, **_GATED, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    "gpt_oss": lambda: t.GptOssConfig(
        **_SHARED, **_GATED, head_dim=32, num_local_experts=4, num_experts_per_tok=2, sliding_window=48
    ),
    "gpt2": lambda: t.GPT2Config(
        **{k: v for k, v in _SHARED.items() if k not in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=2,
        n_positions=512,
    ),
}
PARAMS = {"temperature": 0, "max_tokens": 16, "detokenize": False}


def save_model(folder, name):
    """Save the tiny model `name` in `folder`, and return its path."""
    path = folder / name
    if not path.is_dir():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(MODELS[name]()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.1)
        model.generation_config.eos_token_id = None
        model.save_pretrained(path)
    return path


def save_multimodal(folder):
    """Save a tiny Gemma 3 of text and images whose language model is the tiny `gemma3`, and return its path."""
    path = folder / "gemma3-images"
    if not path.is_dir():
        bare = AutoModelForCausalLM.from_pretrained(save_model(folder, "gemma3"))
        vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 28, "patch_size": 14}
        config = t.Gemma3Config(text_config=bare.config.to_dict(), vision_config=vision, mm_tokens_per_image=4)
        model = t.Gemma3ForConditionalGeneration(config).eval()
        weights = {name.removeprefix("model."): weight for name, weight in bare.state_dict().items()}
        model.lm_head.load_state_dict({"weight": weights.pop("lm_head.weight")})
        model.model.language_model.load_state_dict(weights)
        model.save_pretrained(path)
    return path


def save_guardrail(folder, model, name="guard", layer=LAYER, seed=0, **fields):
    """Save a guardrail with planted features for the model in `model`, and return its path."""
    path = folder / name
    if not path.is_dir():
        fields = {"gate_scope": "prefix", "threshold": 0.5, "min_tokens": 4} | fields
        fields = {"special_ids": [0, 1, VOCAB - 1]} | fields
        bare = AutoModelForCausalLM.from_pretrained(model).eval()
        fields |= {"hidden_size": WIDTH, "num_layers": LAYERS, "fingerprint": fingerprint(bare, layer)}
        guarded = get_peft_model(bare, zoo.planted_config(layer=layer, **fields))
        zoo.plant(guarded, seed=seed)
        guarded.save_pretrained(path)
    return path


def prompts(count=8, seed=5, longest=160):
    """Random prompts, the first of 3 tokens, the last of `longest`."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(3, longest, count).long().tolist()
    return [torch.randint(2, VOCAB - 2, (n,), generator=generator).tolist() for n in lengths]


_known = {}


def expected(model, guardrails, rows, tokens=PARAMS["max_tokens"], dtype=torch.float32):
    """What `generate()` answers to each row alone: tokens, and by guardrail `(fired, at_token, evidence, tokens)`.

    The folders must not change: answers are kept by their paths.
    """
    asked = str(model), tuple(map(str, guardrails)), json.dumps(rows), tokens, dtype
    if asked not in _known:
        _known[asked] = _answers(model, guardrails, rows, tokens, dtype)
    return copy.deepcopy(_known[asked])


def _answers(model, guardrails, rows, tokens, dtype):
    guarded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    for path in guardrails:
        guarded = attach_guardrail(guarded, path, adapter_name=path.name)
    found = []
    for row in rows:
        ids = torch.tensor([row])
        with torch.inference_mode(), record_firings(guarded) if guardrails else _nothing() as firings:
            options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": tokens, "do_sample": False}
            out = guarded.generate(input_ids=ids, **options)
        records = {f.adapter: (f.fired, f.at_token, f.evidence, f.tokens) for f in firings or ()}
        found.append((out[0, len(row) :].tolist(), records))
    return found


@contextmanager
def _nothing():
    yield None


class Engine:
    """A vLLM engine in this process."""

    def __init__(self, model, guardrails=(), settings=None, **options):
        from vllm import LLM

        options = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 256,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 256,
            "skip_tokenizer_init": True,
        } | options
        if guardrails:
            settings = {"paths": [str(path) for path in guardrails]} | (settings or {})
            options["additional_config"] = {"sae_guardrail": settings}
        self.llm = LLM(str(model), **copy.deepcopy(options))

    @property
    def core(self):
        return self.llm.llm_engine.engine_core.engine_core

    @property
    def guards(self):
        return self.core.model_executor.driver_worker.worker.sae_guardrail

    def answers(self, rows, extra=None, **params):
        """Tokens and records as from `expected`, and the outputs of vLLM."""
        from vllm import SamplingParams

        params = SamplingParams(**(PARAMS | params), extra_args=extra)
        inputs = [{"prompt_token_ids": row} for row in rows]
        outputs = self.llm.generate(inputs, params, use_tqdm=False)
        records = self.records()
        found = []
        for output in outputs:
            own = [records[name] for name in vllm_requests(records, output.request_id)]
            read = {name: tuple(r[k] for k in FIELDS) for by in own for name, r in by.items()}
            found.append((list(output.outputs[0].token_ids), read))
        return found, outputs

    def records(self):
        return self.llm.collective_rpc("sae_guardrail_records")[0]

    def close(self):
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        cleanup_dist_env_and_memory()


FIELDS = ("fired", "at_token", "evidence", "tokens")


@contextmanager
def serving(*args, **options):
    """An `Engine` that is closed at the end."""
    engine = Engine(*args, **options)
    try:
        yield engine
    finally:
        engine.close()


def ask(port, path, body=None):
    """Status and JSON of a request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def streamed(port, path, body):
    """The parts of a streamed answer."""
    data = json.dumps({**body, "stream": True}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.headers.get_content_type() == "text/event-stream"
        lines = [line.decode().strip() for line in answer]
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]
