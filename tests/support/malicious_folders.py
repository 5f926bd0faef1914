"""Folders that lie. Each entry is named after its lie, and changes a sound folder into it.

`GUARDRAILS` change the folder of a fitted guardrail of 3 features and width 32; `SAES` are folders of an SAE, with 6
inputs and 10 features where nothing else is said. Nothing in them is real: every payload is made here.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from edited_json import edited_json
from sae_folders import D_IN, D_SAE, tensors, write_gemma_scope, write_saelens
from safetensors.torch import load_file, save_file


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SCRIPT = "<script>fetch('//evil')</script>"


class Payload:
    """Unpickling this leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


def trace_of(folder: Path) -> Path:
    """What a payload would leave behind if it were run."""
    return folder.parent / "a-payload-ran"


# ---------------------------------------------------------------------------------------------- of a guardrail's config


def config(**fields):
    return edited_json(CONFIG, **fields)


def evidence(values, **fields):
    return config(feature_evidence=values, **fields)


def nested(field, **values):
    def lie(folder):
        path = folder / CONFIG
        stored = json.loads(path.read_text())
        place = stored["base_model"] if field == "fingerprint" else stored
        place[field] = (place[field] or {}) | values
        path.write_text(json.dumps(stored))

    return lie


def raw(text, twice=False):
    """One field as it stands in the file: JSON says more than `json.dumps` writes. `twice`: beside its old value."""

    def lie(folder):
        path = folder / CONFIG
        stored = json.loads(path.read_text())
        if not twice:
            stored.pop(text.split('"')[1], None)
        path.write_text(json.dumps(stored).removesuffix("}") + f", {text}}}")

    return lie


def config_bytes(data):
    return lambda folder: (folder / CONFIG).write_bytes(data)


# --------------------------------------------------------------------------------------------- of a guardrail's tensors


def weights(change):
    def lie(folder):
        stored = load_file(folder / WEIGHTS)
        by_part = {key.split("sae_guardrail_")[1]: key for key in stored}
        change(stored, by_part)
        save_file({key: tensor.contiguous() for key, tensor in stored.items()}, folder / WEIGHTS)

    return lie


def fill(part, value, row=None):
    def change(stored, by_part):
        tensor = stored[by_part[part]]
        (tensor if row is None else tensor[row]).fill_(value)

    return weights(change)


def scale(part, factor, row=slice(None)):
    def change(stored, by_part):
        stored[by_part[part]][row] *= factor

    return weights(change)


def pushing_each_other_up(stored, by_part):
    """Each edit lowers its own feature a little, and raises the other features much."""
    encoder, decoder = stored[by_part["encoder.weight"]], stored[by_part["decoder.weight"]]
    outward = torch.linalg.pinv(encoder).T  # [N, d_in]: its rows move one feature each
    decoder.copy_((2 * torch.eye(len(encoder)) - 1) @ outward)


def header(change):
    """Rewrite the JSON header of the safetensors file; the data stay."""

    def lie(folder):
        path = folder / WEIGHTS
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        fields = json.loads(data[8 : 8 + size])
        change(fields)
        text = json.dumps(fields).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return lie


def entry(fields, part):
    return fields[next(key for key in fields if key.endswith(part))]


def overlapping(fields):
    entry(fields, "decoder.weight")["data_offsets"] = entry(fields, "encoder.weight")["data_offsets"]


def huge(fields):
    entry(fields, "encoder.weight")["shape"] = [2**40, 2**20]


def negative(fields):
    entry(fields, "encoder.weight")["data_offsets"] = [-(2**40), 0]


def another_shape(fields):
    found = entry(fields, "encoder.weight")
    found["shape"] = found["shape"][::-1]


def another_dtype(fields):
    found = entry(fields, "encoder.weight")
    found["dtype"], found["shape"] = "F16", [found["shape"][0], 2 * found["shape"][1]]


def one_more(stored, by_part):
    stored["base_model.model.lm_head.weight"] = torch.zeros(2)


def one_renamed(stored, by_part):
    key = by_part["decoder.clamp"]
    stored[key.replace("clamp", "dose")] = stored.pop(key)


def all_renamed_twice(stored, by_part):
    stored["model.layers.0.guardrail.sae_guardrail_encoder.weight"] = stored[by_part["encoder.weight"]].clone()
    del stored[by_part["encoder.bias"]]


def no_features(folder):
    config(feature_ids=None)(folder)
    save_file({key: tensor[:0].contiguous() for key, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def truncated(folder, keep=0.5):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: int(keep * len(data))])


def header_too_large(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**63) + data[8:])


def header_padded(folder):
    data = (folder / WEIGHTS).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    room = 2 * 2**20
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", size + room) + data[8 : 8 + size] + b" " * room + data[8 + size :])


def pickle_only(folder):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(trace_of(folder))))


def pickle_under_another_name(folder):
    size = (folder / WEIGHTS).stat().st_size
    (folder / WEIGHTS).write_bytes(pickle.dumps(Payload(trace_of(folder))).ljust(size, b"\0"))


def pickle_as_config(folder):
    (folder / CONFIG).write_bytes(pickle.dumps(Payload(trace_of(folder))))


# ------------------------------------------------------------------------------------------------------------- of links


def link_out(name):
    """One file is a link to a sound one that lies elsewhere."""

    def lie(folder):
        secret = folder.parent / f"secret-{name}"
        (folder / name).rename(secret)
        (folder / name).symlink_to(secret)

    return lie


def link_to_itself(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / WEIGHTS)


def endless(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")


def pipe(folder):
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


def folder_for_a_file(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def pipe_for_weights(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def staged_without_end(folder):
    """What a save that was cut short might have left, of 200 GB, and weights that are not the sealed ones."""
    stage = folder / ".saving-0123"
    stage.mkdir()
    (stage / WEIGHTS).touch()
    os.truncate(stage / WEIGHTS, 200 * 2**30)
    bit_flipped(folder)


def staged_behind_a_link(folder):
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    (folder / ".saving-0123").symlink_to(elsewhere)
    bit_flipped(folder)


def hole_of_weights(folder):
    """Weights of 1.2 GB, all of them declared, that take no room on the disk."""
    n, d_in = 9, 2**24
    config(feature_ids=[*range(n)], hidden_size=d_in)(folder)
    (folder / WEIGHTS).write_bytes(b"")
    os.truncate(folder / WEIGHTS, 4 * (2 * n * d_in + 3 * n) + 1000)


def escapes_for_a_dtype(fields):
    entry(fields, "decoder.clamp")["dtype"] = "\x1b[2J"


def numbers_for_metadata(fields):
    fields["__metadata__"] = {"format": 1}


DENORMAL = 1e-40
HUGE = 10**400  # of which Python's floats know nothing


def bit_flipped(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (folder / WEIGHTS).write_bytes(data)


GUARDRAILS = {
    "only a pickle": (pickle_only, "has no adapter_model.safetensors"),
    "a pickle called safetensors": (pickle_under_another_name, "not a valid safetensors file"),
    "a pickle called config": (pickle_as_config, "is not JSON"),
    "a class to import": (config(auto_mapping={"base_model_class": "System", "parent_library": "os"}), "auto_mapping"),
    "a module to import": (config(target_modules=["__import__('os')"]), r"\['target_modules'\]"),
    "code to trust": (config(trust_remote_code=True), r"\['trust_remote_code'\]"),
    "a key of another method": (config(lora_alpha=16), r"\['lora_alpha'\]"),
    "another method": (config(peft_type="LORA"), "got a 'LORA' adapter"),
    "a method that is no text": (config(peft_type=["SAE_GUARDRAIL"]), "expected a guardrail"),
    "another task": (config(task_type="SEQ_CLS"), "task_type="),
    "a newer format": (config(format_version=3), "format_version=3"),
    "the layout of an earlier version": (config(format_version=1), "format_version=1: .*[Ff]it the guardrail again"),
    "a format that is no number": (config(format_version="1"), "format_version='1'"),
    "config without an end": (config_bytes(b'{"layer": 1'), "is not JSON"),
    "config of no text": (config_bytes(b"\xff\xfe{}"), "is not JSON"),
    "config too deep": (config_bytes(b'{"a":' * 100_000), "is not JSON"),
    "config too large": (config_bytes(b" " * (4 * 2**20 + 1)), "more than 4194304"),
    "config an empty file": (config_bytes(b""), "is not JSON"),
    "a number too long to read": (raw('"layer": ' + "9" * 5000), "is not JSON"),
    "NaN threshold": (raw('"threshold": NaN'), "holds NaN"),
    "infinite threshold": (raw('"threshold": 1e999'), "threshold=inf"),
    "threshold out of range": (config(threshold=1.5), "would never fire"),
    "negative threshold": (config(threshold=-0.5), "would always fire"),
    "threshold that rounds to never": (config(threshold=1 - 1e-12), "would never fire"),
    "threshold that no text reaches": (config(statistic="cusum", threshold=1e6), "would never fire"),
    "rows padded with quiet until it is silent": (config(min_tokens=10**6), "would never fire"),
    "evidence against the topic": (evidence([-1.0, 1.0, 1.0]), "feature_evidence=-1.0"),
    "evidence of nothing": (evidence([0.0, 0.0, 0.0]), "feature_evidence=0.0"),
    "evidence out of steps": (evidence([0.3, 1.0, 1.0]), "feature_evidence=0.3"),
    "evidence without end": (evidence([1e308, 1.0, 1.0]), r"feature_evidence=1e\+308"),
    "evidence that is no number": (evidence([True, "1", None]), "feature_evidence"),
    "evidence of other features": (evidence([1.0]), "feature_evidence: expected 3 numbers"),
    "evidence left out": (evidence(None, threshold=1.0), "would never fire"),
    "an unknown part of a group": (config(tokens={"trust": "me"}), r"tokens=\['trust'\]"),
    "a group that is none": (config(statistic_kwargs=[1]), "statistic_kwargs="),
    "evidence below the threshold": (evidence([0.25, 0.25, 0.25], threshold=0.8), "would never fire"),
    "window that counts nothing": (config(statistic="ratio_or_window", window_weight=0.0), "window_weight=0.0"),
    "usual norms outliers": (
        config(outlier_norm=5.0, calibration={"residual_norm_median": 6.0}),
        "outlier_norm=5.0: .* 6.0",
    ),
    "norms below zero": (config(outlier_norm=-1.0), "outlier_norm=-1.0"),
    "norm without end": (config(outlier_norm=1e308), r"outlier_norm=1e\+308"),
    "norm that is no number": (config(outlier_norm="all"), "outlier_norm='all'"),
    "counts too large": (config(min_tokens=10**30), "min_tokens="),
    "window without end": (config(statistic="window", window=2**60), "window="),
    "every token special": (config(special_ids=list(range(97))), "special_ids"),
    "special ids out of range": (config(special_ids=[2**70]), "tokens.special_ids="),
    "feature twice": (config(feature_ids=[3, 3, 8]), "feature_ids="),
    "feature out of range": (config(feature_ids=[3, 8, 120]), "d_sae=120"),
    "feature negative": (config(feature_ids=[3, 8, -1]), "feature_ids=-1"),
    "feature beyond all": (config(feature_ids=[3, 8, 2**40], sae_source=None), "feature_ids="),
    "no features": (no_features, "expected features"),
    "features that are not there": (config(feature_ids=list(range(9))), "9 features"),
    "a threshold that was moved": (config(threshold=0.9), "changed after it was saved"),
    "a bit that was flipped": (bit_flipped, "changed after it was saved"),
    "a seal of nothing": (config(weights_sha256=None), "changed after it was saved"),
    "a billion features": (config(hidden_size=2**24), "bytes"),
    "another layer": (config(layer=2), "named "),
    "another layer, of any base": (config(layer=2, fingerprint=None), "named "),
    "layer too deep": (config(layer=7, num_layers=None), r"named \*\.7"),
    "layer no number": (config(layer="1"), "layer='1'"),
    "another width": (config(hidden_size=33), "expected F32"),
    "width unknown": (config(hidden_size=None), "hidden_size"),
    "another depth": (config(num_layers=5), "number of layers 5"),
    "another base model": (nested("fingerprint", embedding=[0.5] * 32), "this is another model"),
    "another base model, of numbers beyond all": (
        nested("fingerprint", embedding=[10**400] * 32),
        "this is another model",
    ),
    "another kind of base model": (nested("fingerprint", model_type="gpt2"), "not 'gpt2'"),
    "no weights of the base": (nested("fingerprint", embedding=[], norms=[]), "of another number"),
    "fingerprint emptied": (config(fingerprint={}), "this is another model"),
    "amplifying clamp": (fill("decoder.clamp", 5.0), "amplify"),
    "amplifying clamp value": (config(clamp_value=500.0), "clamp_value=500.0"),
    "every token an outlier, said by nobody": (config(outlier_norm=1e-6, calibration=None), "residual_norm_median"),
    "every token an outlier, by a lying median": (
        config(outlier_norm=1e-6, calibration={"residual_norm_median": 1e-9}),
        r"outlier_norm=1e-06 of .*got 0 of 3 .*never fire",
    ),
    "a decoder turned round": (scale("decoder.weight", -1.0), "its edit would amplify"),
    "one decoder row turned round": (scale("decoder.weight", -1.0, row=1), "feature 1, which its edit"),
    "decoder rows that push each other up": (weights(pushing_each_other_up), "edit of all features would amplify"),
    "NaN weights": (fill("encoder.weight", torch.nan), "not finite"),
    "one NaN": (fill("decoder.weight", torch.nan, row=(1, 3)), "not finite"),
    "infinite weights": (fill("decoder.weight", torch.inf), "not finite"),
    "infinite clamp": (fill("decoder.clamp", -torch.inf), "not finite"),
    "NaN SAE threshold": (fill("encoder.threshold", torch.nan), "not finite"),
    "negative SAE threshold": (fill("encoder.threshold", -1.0), "negative"),
    "SAE threshold out of reach": (fill("encoder.threshold", 1e30), "expected sizes"),
    "bias that drowns all": (fill("encoder.bias", 1e30), "expected sizes"),
    "dose that overflows": (fill("decoder.clamp", -1e30), "expected sizes"),
    "denormal encoder": (fill("encoder.weight", DENORMAL), "expected norms of"),
    "denormal decoder": (fill("decoder.weight", DENORMAL), "expected norms of"),
    "deaf feature": (fill("encoder.weight", 0.0, row=1), "zero for features"),
    "dumb feature": (fill("decoder.weight", 0.0, row=1), "zero for features"),
    "encoder row far outside": (scale("encoder.weight", 1e5, row=2), "expected norms of"),
    "decoder row far outside": (scale("decoder.weight", 1e5, row=2), "expected norms of"),
    "encoder too faint": (scale("encoder.weight", 1e-9), "expected norms of"),
    "decoder too loud": (scale("decoder.weight", 1e9), "expected norms of"),
    "overlapping tensors": (header(overlapping), "not a valid safetensors file"),
    "huge declared tensor": (header(huge), "not a valid safetensors file"),
    "offsets below zero": (header(negative), "not a valid safetensors file"),
    "transposed in the header": (header(another_shape), "expected F32"),
    "half precision in the header": (header(another_dtype), "expected F32"),
    "a tensor of the base model": (weights(one_more), "unknown tensors"),
    "a tensor renamed": (weights(one_renamed), "0 tensors named"),
    "a tensor of another layer": (weights(all_renamed_twice), "tensors named"),
    "header too large": (header_too_large, "not a valid safetensors file"),
    "header padded": (header_padded, "and a header"),
    "truncated in the middle": (truncated, "bytes.* 3 features"),
    "truncated in the header": (lambda folder: truncated(folder, 0.05), "bytes.* 3 features"),
    "truncated by a byte": (lambda folder: truncated(folder, 0.9995), "not a valid safetensors file|bytes; 3"),
    "weights an empty file": (lambda folder: truncated(folder, 0), "bytes.* 3 features"),
    "weights linked from elsewhere": (link_out(WEIGHTS), "is a link to"),
    "config linked from elsewhere": (link_out(CONFIG), "is a link to"),
    "link to itself": (link_to_itself, "has no adapter_model.safetensors"),
    "weights without an end": (endless, "has no adapter_model.safetensors"),
    "config a pipe": (pipe, "has no adapter_config.json"),
    "weights a pipe": (pipe_for_weights, "has no adapter_model.safetensors"),
    "weights a folder": (folder_for_a_file, "has no adapter_model.safetensors"),
    "script in the base model's name": (config(base_model_name_or_path=SCRIPT), "markup"),
    "script in the SAE's name": (nested("sae_source", id=SCRIPT), "markup"),
    "script in a warning": (nested("calibration", warnings=["fine", SCRIPT]), "markup"),
    "escape codes for a dtype": (header(escapes_for_a_dtype), "not a valid safetensors file"),
    "numbers for metadata": (header(numbers_for_metadata), "not a valid safetensors file"),
    "a key said twice": (raw('"action": "record"', twice=True), "'action' twice"),
    "a key said twice, deep inside": (raw('"x": {"a": [{"b": 1, "b": 2}]}'), "'b' twice"),
    "config deeper than copies reach": (
        nested("calibration", a=json.loads("[" * 90 + "]" * 90)),
        "nests deeper than 64",
    ),
    "half a character": (config(refusal="\ud800"), "not Unicode"),
    "half a character in a key": (nested("sae_source", **{"\ud800": 1}), "not Unicode"),
    "one feature half a million times": (config(feature_ids=[1] * 500_000), "feature_ids="),
    "fingerprint of endless numbers": (nested("fingerprint", embedding=[HUGE] * 32), "this is another model"),
    "fingerprint of one row, said by a switch": (nested("fingerprint", rows=True), "this is another model"),
    "clamp value without end": (config(clamp_value=-HUGE), "clamp_value="),
    "switches for feature ids": (config(feature_ids=[True, False, 8]), "feature_ids=True"),
    "texts for feature ids": (config(feature_ids=["3", "8", "21"]), "feature_ids='3'"),
    "weights of gigabytes that are one hole": (hole_of_weights, "feature_ids: expected at most"),
    "a staged file without an end": (staged_without_end, "changed after it was saved"),
    "a staged file behind a link": (staged_behind_a_link, "changed after it was saved"),
    "escape codes in a name": (config(base_model_name_or_path="\x1b[2Jgemma"), "control characters"),
}


# -------------------------------------------------------------------------------------------------------------- of SAEs


def npy(array, **claims):
    """The bytes of a `.npy` file, whose header may lie."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | claims
    )
    return file.getvalue() + array.tobytes()


def npz(**members):
    def write(folder):
        arrays = {f"{name}.npy": npy(tensor.numpy()) for name, tensor in tensors().items()}
        with zipfile.ZipFile(folder / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in (arrays | {f"{name}.npy": data for name, data in members.items()}).items():
                archive.writestr(name, data)

    return write


def npz_member(name, data):
    def write(folder):
        write_gemma_scope(folder)
        with zipfile.ZipFile(folder / "params.npz", "a") as archive:
            archive.writestr(name, data(folder))

    return write


def zip_bomb(folder):
    npz(b_enc=npy(np.zeros(0, np.float32), shape=(16 << 20,)) + bytes(64 << 20))(folder)
    assert (folder / "params.npz").stat().st_size < 100_000


def npz_is_a_pickle(folder):
    (folder / "params.npz").write_bytes(pickle.dumps(Payload(trace_of(folder))))


def npz_of_objects(folder):
    data = npy(np.zeros(0), descr="|O", shape=(D_SAE,)) + pickle.dumps(Payload(trace_of(folder)))
    npz(b_enc=data)(folder)


def torch_pickle(folder):
    trainer = {"dict_class": "AutoEncoder", "activation_dim": D_IN, "dict_size": D_SAE, "layer": 9}
    trainer |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_9"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    torch.save({"bias": Payload(trace_of(folder))}, folder / "ae.pt")


def saelens(changed=None, **fields):
    return lambda folder: write_saelens(folder, tensors() | (changed or {}), **fields)


def saelens_bytes(name, data):
    def write(folder):
        write_saelens(folder, tensors())
        (folder / name).write_bytes(data)

    return write


def llama_scope(**fields):
    """A configuration of Llama Scope, beside weights that nobody comes to read."""
    sound = {"hook_point_in": "blocks.9.hook_resid_post", "act_fn": "jumprelu", "jump_relu_threshold": 0.5}
    sound |= {"use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "top_k": 3, "d_model": D_IN}
    sound |= {"sparsity_include_decoder_norm": True, "norm_activation": "dataset-wise"}
    sound |= {"dataset_average_activation_norm": {"in": 17.0, "out": 17.0}}

    def write(folder):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "final.safetensors").write_bytes(b"")
        (folder / "hyperparams.json").write_text(json.dumps(sound | fields))

    return write


def saelens_link(folder):
    write_saelens(folder, tensors())
    secret = folder.parent / "secret.safetensors"
    (folder / "sae_weights.safetensors").rename(secret)
    (folder / "sae_weights.safetensors").symlink_to(secret)


def pipe_in_place_of(name, write):
    def lie(folder):
        write(folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return lie


def npz_by_lzma(folder):
    """NumPy never writes it, and its unpacker takes the memory that the archive asks for."""
    write_gemma_scope(folder)
    with zipfile.ZipFile(folder / "params.npz", "w", zipfile.ZIP_LZMA) as archive:
        for name, tensor in tensors().items():
            archive.writestr(f"{name}.npy", npy(tensor.numpy()))


def saelens_text(text):
    def write(folder):
        path = write_saelens(folder, tensors()) / "cfg.json"
        path.write_text(path.read_text().removesuffix("}") + f", {text}}}")

    return write


def topk_of(k):
    return lambda folder: write_saelens(
        folder, {n: t for n, t in tensors().items() if n != "threshold"}, architecture="topk", k=k
    )


def scaled_by(text):
    def write(folder):
        write_saelens(folder, tensors(), normalize_activations="expected_average_only_in")
        (folder / "activation_scaler.json").write_text(f'{{"scaling_factor": {text}}}')

    return write


SAES = {
    "SAE: configuration a pipe": (pipe_in_place_of("cfg.json", saelens()), "not a regular file"),
    "SAE: weights a pipe": (pipe_in_place_of("sae_weights.safetensors", saelens()), "not a regular file"),
    "SAE: archive a pipe": (pipe_in_place_of("params.npz", write_gemma_scope), "not a regular file"),
    "SAE: archive of a kind that NumPy does not write": (npz_by_lzma, "is packed in a way"),
    "SAE: a key said twice": (saelens_text('"apply_b_dec_to_input": false'), "'apply_b_dec_to_input' twice"),
    "SAE: a text for a switch": (saelens(apply_b_dec_to_input="false"), "expected true or false"),
    "SAE: k without end": (topk_of(HUGE), "expected a whole number"),
    "SAE: k a switch": (topk_of(True), "expected a whole number"),
    "SAE: scale without end": (scaled_by("1" + "0" * 400), "expected a number > 0"),
    "SAE: scale NaN": (scaled_by("NaN"), "expected a number > 0"),
    "SAE: a layer of 5000 digits": (
        saelens(metadata={"hook_name": f"blocks.{'9' * 5000}.hook_resid_post"}),
        "not the output of a decoder layer",
    ),
    "SAE: a layer in other people's digits": (
        saelens(metadata={"hook_name": "blocks.\u0669.hook_resid_post"}),
        "not the output of a decoder layer",
    ),
    "SAE: a model's width without end": (llama_scope(d_model=HUGE), "expected a whole number"),
    "SAE: escape codes for a tensor": (saelens({"\x1b[2J": torch.zeros(2)}), "expected only"),
    "SAE: zip bomb": (zip_bomb, "zip bomb"),
    "SAE: npz that is a pickle": (npz_is_a_pickle, "not a valid"),
    "SAE: npz of pickled objects": (npz_of_objects, "dtype object"),
    "SAE: npz with a pickle beside": (
        npz_member("evil.pkl", lambda folder: pickle.dumps(Payload(trace_of(folder)))),
        "expected only",
    ),
    "SAE: npz with a path out of it": (npz_member("../../W_enc.npy", lambda folder: b""), "expected only"),
    "SAE: array of 2**60 numbers": (npz(b_enc=npy(np.zeros(D_SAE, np.float32), shape=(1 << 60,))), " shape "),
    "SAE: array header that is code": (
        npz(b_enc=b"\x93NUMPY\x01\x00" + struct.pack("<H", 24) + b"__import__('os').abort()"),
        "not a valid",
    ),
    "SAE: array header that nests": (
        npz(b_enc=b"\x93NUMPY\x01\x00" + struct.pack("<H", 9001) + b"-" * 9000 + b"1"),
        "no valid header",
    ),
    "SAE: torch file that runs": (torch_pickle, "a dict of plain tensors"),
    "SAE: NaN": (saelens({"W_enc": torch.full((D_IN, D_SAE), torch.nan)}), "NaN or infinite"),
    "SAE: infinite threshold": (saelens({"threshold": torch.full((D_SAE,), torch.inf)}), "NaN or infinite"),
    "SAE: shapes of another SAE": (saelens({"W_dec": torch.zeros(D_SAE, D_IN + 1)}), "has shape"),
    "SAE: a width it has not": (saelens(d_in=2**40), "d_in"),
    "SAE: of another place": (saelens(metadata={"hook_name": "__import__('os')"}), "hook_name|place|hook"),
    "SAE: configuration too deep": (saelens_bytes("cfg.json", b"[" * 100_000), "cfg.json"),
    "SAE: configuration too large": (saelens_bytes("cfg.json", b" " * (2 << 20)), "cfg.json"),
    "SAE: weights that are a pickle": (
        saelens_bytes("sae_weights.safetensors", pickle.dumps({"W_enc": 1})),
        "not a valid safetensors",
    ),
    "SAE: weights linked from elsewhere": (saelens_link, "is a link to"),
}


# ----------------------------------------------------------------------------------------------------------- of bundles


LORA = "aligned"  # of the bundle that the lies change: beside a guardrail "topic"


def bundle(**fields):
    return edited_json("bundle.json", **fields)


def bundle_text(text):
    return lambda folder: (folder / "bundle.json").write_text(text)


def renamed(name):
    """The guardrail under another name."""

    def lie(folder):
        (folder / "topic").rename(folder / name)
        bundle(guardrails=[name])(folder)

    return lie


def of_lora(lie):
    """A lie about a guardrail's folder, told of the LoRA's."""
    return lambda folder: lie(folder / LORA)


def lora_weights(change):
    def lie(folder):
        path = folder / LORA / WEIGHTS
        save_file({key: tensor.contiguous() for key, tensor in change(load_file(path)).items()}, path)

    return lie


def lora_pickle(folder):
    path = folder / LORA / WEIGHTS
    path.unlink()
    path.with_name("adapter_model.bin").write_bytes(pickle.dumps(Payload(trace_of(folder))))


def lora_config_without_end(folder):
    os.truncate(folder / LORA / CONFIG, 2**40)


BACKTRACKS = "(([a-z_.0-9]+)+)+!"
BUNDLES = {
    "bundle: version a switch": (bundle(format_version=True), "format_version=True"),
    "bundle: a key said twice": (
        bundle_text('{"format_version": 1, "guardrails": ["x"], "guardrails": ["topic"], "lora": null}'),
        "'guardrails' twice",
    ),
    "bundle: a key of tomorrow": (bundle(code="x"), "unknown key"),
    "bundle: nests": (bundle_text("[" * 60_000), "is not JSON"),
    "bundle: names that look alike": (bundle(guardrails=["topic", "\uff54opic"], lora=None), "occurs once"),
    "bundle: names that one file system takes for one": (bundle(guardrails=["topic", "Topic"]), "occurs once"),
    "bundle: a name that torch has": (renamed("keys"), "adapter_name="),
    "bundle: a name that torch calls": (renamed("train"), "adapter_name="),
    "bundle: a LoRA that is a pickle": (lora_pickle, "has no adapter_model.safetensors"),
    "bundle: a LoRA's weights a pipe": (of_lora(pipe_for_weights), "has no adapter_model.safetensors"),
    "bundle: a LoRA's config without an end": (lora_config_without_end, "more than"),
    "bundle: a LoRA's config nests": (of_lora(config_bytes(b'{"a":' * 100_000)), "is not JSON"),
    "bundle: a LoRA's config a list": (of_lora(config_bytes(b"[1]")), "got list"),
    "bundle: a LoRA of another shape": (lora_weights(lambda t: {k: v[:1] for k, v in t.items()}), "does not fit"),
    "bundle: a LoRA of which a half is missing": (lora_weights(lambda t: dict(list(t.items())[::2])), "does not "),
    "bundle: a LoRA of NaN": (lora_weights(lambda t: {k: v * torch.nan for k, v in t.items()}), "not finite"),
    "bundle: a LoRA that brings a head": (
        lora_weights(lambda t: t | {"base_model.model.lm_head.weight": torch.zeros(97, 32)}),
        "matrices of a LoRA",
    ),
    "bundle: a LoRA larger than the model": (
        lora_weights(lambda t: t | {"base_model.model.x.lora_A.weight": torch.zeros(4096, 4096)}),
        "more numbers than the model",
    ),
    "bundle: a LoRA of endless rank": (of_lora(config(r=2**40)), "r=1099511627776"),
    "bundle: a LoRA whose rank is a switch": (of_lora(config(r=True)), "r=True"),
    "bundle: a LoRA of another rank": (of_lora(config(r=4096)), "does not fit"),
    "bundle: a LoRA scaled without end": (of_lora(config(lora_alpha=HUGE)), "lora_alpha=1"),
    "bundle: a LoRA whose pattern never ends": (of_lora(config(target_modules=BACKTRACKS)), "target_modules="),
    "bundle: a LoRA that leaves out by such a pattern": (
        of_lora(config(exclude_modules=BACKTRACKS)),
        "exclude_modules=",
    ),
    "bundle: a LoRA with ranks by such a pattern": (of_lora(config(rank_pattern={BACKTRACKS: 4})), "rank_pattern="),
    "bundle: a LoRA on what is no linear layer": (of_lora(config(target_modules=["norm"])), "does not fit"),
    "bundle: a LoRA on modules that are not there": (of_lora(config(target_modules=["nothing"])), "does not fit"),
    "bundle: a LoRA that reads a file": (
        of_lora(config(init_lora_weights="corda", corda_config={"cache_file": "/etc/passwd"})),
        "read files",
    ),
    "bundle: a LoRA that repeats layers": (of_lora(config(layer_replication=[[0, 4]] * 2000)), "layer_replication="),
    "bundle: a LoRA that replaces modules": (of_lora(config(modules_to_save=["lm_head"])), "modules_to_save="),
    "bundle: a LoRA that imports": (of_lora(config(megatron_config={"a": 1}, megatron_core="os")), "expected None"),
    "bundle: a LoRA with a class to import": (of_lora(config(auto_mapping={"parent_library": "os"})), "expected None"),
    "bundle: a LoRA with a key of tomorrow": (of_lora(config(run="x")), "run='x'"),
    "bundle: a LoRA for another task": (of_lora(config(task_type="SEQ_CLS")), "task_type='SEQ_CLS'"),
    "bundle: a LoRA that is none": (of_lora(config(peft_type=["LORA"])), "peft_type='LORA'"),
}
