"""What changes a sound folder of a guardrail into one that lies; the collections are in the modules `malicious_*`."""

import json
import os
import pickle
import struct
from pathlib import Path

import torch
from edited_json import edited_json
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
