"""`.pt` files are read without ever unpickling: what runs code, or lies about sizes, is refused."""

import contextlib
import io
import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch

from sae_unlearn.sae import SAEFormatError
from sae_unlearn.sae.files.torch_pickle import Name, parse_pickle
from sae_unlearn.sae.files.torch_zip import read_state_dict


STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}


class Trap:
    """Unpickling this would raise, and thereby show that pickle ran."""

    def __reduce__(self):
        return (pytest.fail, ("pickle ran",))


def save(path, value, **options):
    torch.save(value, path, **options)
    return path


def rewrite(path, change, **options):
    """The archive with `change(member name without its root, bytes) -> bytes or None` applied to each member."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            data = change(name.partition("/")[2], data)
            if data is not None:
                archive.writestr(name, data)
    return path


def refuse(path, message):
    with pytest.raises(SAEFormatError, match=message):
        read_state_dict(path, ("a", "b"), ("c",))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_come_back_as_torch_saved_them(tmp_path, dtype, protocol):
    whole = torch.randn(5, 4).to(dtype)
    state = OrderedDict(a=whole[1:, ::2], b=torch.nn.Parameter(whole[:, 0].clone()), c={"k": 3, "name": "x", "n": None})
    read = read_state_dict(save(tmp_path / "x.pt", state, pickle_protocol=protocol), ("a", "b"), ("c",))
    assert torch.equal(read["a"], state["a"])
    assert torch.equal(read["b"], state["b"].detach())
    assert read["c"] == state["c"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": Trap()}, r"the name '_pytest\..*never executed"),
        (Trap(), "the name"),
        ({"a": torch.nn.Linear(2, 2)}, "the name 'torch.nn"),
        ({"a": torch.ones(2).to_sparse()}, "the name"),
        ({"c": OrderedDict}, "Name"),
        ({"c": sys.intern}, "the name"),
        ([torch.ones(2)], "holds a list"),
        ({3: torch.ones(2)}, "a int where a state dict has a str"),
        ({"a": torch.ones(2, dtype=torch.int64)}, "a in .* is torch.int64"),
        ({"a": "text"}, "a in .* is str"),
        ({"a": torch.ones(2, 2, 2)}, " shape "),
        ({"a": torch.ones(2).expand(4, 2)}, " shape "),
        ({"a": torch.zeros(0)}, "declared"),
    ],
)
def test_anything_but_a_dict_of_plain_tensors_is_refused(tmp_path, value, message):
    if message == "Name":  # a class that nothing calls stays a name, and is never imported
        assert isinstance(read_state_dict(save(tmp_path / "x.pt", value), ("a",), ("c",))["c"], Name)
    else:
        refuse(save(tmp_path / "x.pt", value), message)


def test_a_bare_pickle_and_the_format_before_torch_1_6_are_refused(tmp_path):
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Trap()))
    refuse(tmp_path / "bare.pt", r"not a file that torch >= 1\.6 saved.*safetensors")
    refuse(save(tmp_path / "old.pt", STATE, _use_new_zipfile_serialization=False), "not a file that torch")


def test_an_archive_that_lies_is_refused(tmp_path):
    def case(message, change, **options):
        refuse(rewrite(save(tmp_path / "x.pt", STATE), change, **options), message)

    case("compressed", lambda name, data: data, compression=zipfile.ZIP_DEFLATED)
    case("0 descriptions", lambda name, data: None if name == "data.pkl" else data)
    case("data/0 in .* is missing", lambda name, data: None if name == "data/0" else data)
    case("data/0 in .* is 20 bytes long, but 6", lambda name, data: data[:20] if name == "data/0" else data)
    case("big-endian", lambda name, data: b"big" if name == "byteorder" else data)
    case("ends without a value|not a valid", lambda name, data: data[:-40] if name == "data.pkl" else data)
    case("at most 1048576", lambda name, data: data + bytes(1 << 20) if name == "data.pkl" else data)


def test_a_damaged_file_is_refused(tmp_path):
    data = save(tmp_path / "x.pt", STATE).read_bytes()
    start = data.index(STATE["a"].numpy().tobytes())
    (tmp_path / "x.pt").write_bytes(data[:start] + b"\xff" + data[start + 1 :])
    refuse(tmp_path / "x.pt", "CRC")


def lied(old, new):
    def change(name, data):
        assert name != "data.pkl" or old in data
        return data.replace(old, new, 1) if name == "data.pkl" else data

    return change


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x02K\x03\x86", b"K\x02K\x07\x86"),  # size (2, 3) -> (2, 7)
        (b"K\x03K\x01\x86", b"K\xffK\x01\x86"),  # stride (3, 1) -> (255, 1)
        (b"QK\x00", b"QK\x09"),  # offset 0 -> 9
        (b"K\x02K\x03\x86", b"J\xff\xff\xff\xffK\x03\x86"),  # size (-1, 3)
        (b"FloatStorage", b"DoubleStorage"[:12]),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, old, new):
    refuse(rewrite(save(tmp_path / "x.pt", STATE), lied(old, new)), " shape |size or offset|the name")


def test_every_truncation_and_every_wrong_byte_gives_the_typed_error_or_data():
    """No byte of a description leads to another exception, or runs anything."""
    file = io.BytesIO()
    torch.save(OrderedDict(STATE, c={"k": 3}), file)
    with zipfile.ZipFile(file) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert len(list(pickletools.genops(data))) > 50
    broken = [data[:end] for end in range(len(data))]
    broken += [
        data[:i] + bytes([byte]) + data[i + 1 :] for i in range(len(data)) for byte in (0, 0x2E, 0x52, 0x63, 0x81)
    ]
    for sample in broken:
        with contextlib.suppress(SAEFormatError):
            parse_pickle(sample, "x")
