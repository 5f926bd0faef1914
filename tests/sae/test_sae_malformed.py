"""Files that lie are refused with a typed error, before they cost memory and without running anything."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from sae_folders import D_IN, D_SAE, tensors, write_gemma_scope, write_gemma_scope_2, write_saelens

from sae_unlearn.errors import UnlearnError
from sae_unlearn.sae import SAEFormatError, SparseAutoencoder
from sae_unlearn.sae.files import npz as npz_file


def load(folder, **kwargs):
    return SparseAutoencoder.from_pretrained(folder, **kwargs)


def npy(array, **header):
    """The bytes of a `.npy` file, whose header may be made to lie."""
    file = io.BytesIO()
    fields = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | header
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue() + array.tobytes()


def write_npz(folder, members, compression=zipfile.ZIP_STORED):
    """`params.npz` with the arrays of a real SAE, some of them replaced by other bytes."""
    members = {f"{name}.npy": npy(tensor.numpy()) for name, tensor in tensors().items()} | members
    with zipfile.ZipFile(folder / "params.npz", "w", compression) as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(name, data)
    return folder


class Trap:
    """Unpickling this would raise, and thereby show that pickle ran."""

    def __reduce__(self):
        return (pytest.fail, ("pickle ran",))


def test_the_hand_made_archive_is_valid_without_a_lie(tmp_path):
    assert load(write_npz(tmp_path, {})).d_sae == D_SAE
    assert load(write_npz(tmp_path, {}, zipfile.ZIP_DEFLATED)).d_sae == D_SAE


@pytest.mark.parametrize("dtype", ["<f2", "<f8", ">f4"])
def test_other_float_arrays_and_fortran_order_are_read(tmp_path, dtype):
    weights = {f"{name}.npy": npy(tensor.numpy().astype(dtype)) for name, tensor in tensors().items()}
    matrix = np.asfortranarray(tensors()["W_enc"].numpy().astype(dtype))
    weights["W_enc.npy"] = npy(matrix, fortran_order=True)[: -matrix.nbytes] + matrix.tobytes(order="F")
    sae = load(write_npz(tmp_path, weights), dtype=torch.float64)
    torch.testing.assert_close(sae.W_enc, tensors()["W_enc"].double(), rtol=0, atol=0.01)
    torch.testing.assert_close(sae.W_dec, tensors()["W_dec"].double(), rtol=0, atol=0.01)


def test_pickle_in_an_npz_is_refused_and_never_run(tmp_path):
    trap = npy(np.zeros(D_SAE), descr="|O", shape=(D_SAE,))[: -8 * D_SAE] + pickle.dumps(Trap())
    with pytest.raises(SAEFormatError, match="dtype object"):
        load(write_npz(tmp_path, {"b_enc.npy": trap}))
    with pytest.raises(SAEFormatError, match="expected only W_enc"):
        load(write_npz(tmp_path, {"evil.pkl": pickle.dumps(Trap())}))
    (tmp_path / "params.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(SAEFormatError, match=r"valid \.npz"):
        load(tmp_path)


def test_a_zip_bomb_is_refused_by_what_it_declares(tmp_path):
    bomb = npy(np.zeros((0,), np.float32), shape=(8 << 20,)) + bytes(32 << 20)
    write_npz(tmp_path, {"threshold.npy": bomb}, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "params.npz").stat().st_size < 100_000
    with pytest.raises(SAEFormatError, match="zip bomb"):
        load(tmp_path)


def test_a_zip_bomb_that_hides_its_size_unpacks_no_more_than_it_declares(tmp_path):
    write_npz(tmp_path, {"threshold.npy": npy(tensors()["threshold"].numpy()) + bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    path = tmp_path / "params.npz"
    honest = 128 + 4 * D_SAE
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", honest + (1 << 20)), struct.pack("<I", honest)))
    with pytest.raises(SAEFormatError, match=r"valid \.npz|longer"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.zeros(D_SAE, np.float32), shape=(1 << 60,)), " shape "),
        (npy(np.zeros(D_SAE, np.float32), shape=(-1,)), "shape"),
        (npy(np.zeros(D_SAE, np.float32), shape=(1, 1, D_SAE)), "vector or a matrix"),
        (npy(np.zeros(D_SAE, np.int32)), "dtype int32"),
        (npy(np.zeros(D_SAE, np.complex64)), "dtype complex64"),
        (npy(np.zeros(D_SAE, np.float32))[:-4], " shape "),
        (npy(np.zeros(D_SAE, np.float32)) + b"more", " shape "),
        (npy(np.zeros(D_SAE + 1, np.float32)), r"b_enc in .* got \[11\]"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFFF), "version"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 65535) + b" " * 65535, "not a valid"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 20) + b"__import__('os')    ", "not a valid"),
        (b"not numpy", "not a valid"),
        (b"", "not a valid"),
        (None, "lacks b_enc"),
    ],
)
def test_an_array_that_lies_is_refused(tmp_path, data, message):
    with pytest.raises(SAEFormatError, match=message):
        load(write_npz(tmp_path, {"b_enc.npy": data}))


def test_an_array_given_twice_is_refused(tmp_path):
    write_npz(tmp_path, {})
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "params.npz", "a") as archive:
        archive.writestr("b_enc.npy", npy(np.zeros(D_SAE, np.float32)))
    with pytest.raises(SAEFormatError, match="twice"):
        load(tmp_path)


def test_a_broken_checksum_or_a_cut_file_is_refused(tmp_path):
    path = write_npz(tmp_path, {}) / "params.npz"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(tensors()["b_enc"].numpy().tobytes(), bytes(4 * D_SAE)))
    with pytest.raises(SAEFormatError, match="CRC"):
        load(tmp_path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SAEFormatError, match=r"valid \.npz"):
        load(tmp_path)


def test_unpacking_goes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_file, "CHUNK", 7)
    assert torch.equal(load(write_gemma_scope(tmp_path)).W_enc, tensors()["W_enc"])


@pytest.mark.parametrize("write", [write_saelens, write_gemma_scope, write_gemma_scope_2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, write, value):
    weights = tensors()
    weights["W_dec"][2, 3] = value
    with pytest.raises(SAEFormatError, match=r"(?i)^W_dec .*got 1 NaN"):
        load(write(tmp_path, weights))


def test_a_dtype_too_narrow_for_the_weights_is_named(tmp_path):
    weights = tensors()
    weights["W_dec"][2, 3] = 1e6
    folder = write_gemma_scope_2(tmp_path, weights)
    assert load(folder).W_dec[2, 3] == 1e6
    with pytest.raises(SAEFormatError, match=r"W_dec: .*torch\.float16.*torch\.float32"):
        load(folder, dtype=torch.float16)
    with pytest.raises(UnlearnError, match="floating torch"):
        load(folder, dtype=torch.int8)


@pytest.mark.parametrize("write", [write_saelens, write_gemma_scope, write_gemma_scope_2])
@pytest.mark.parametrize(
    ("name", "shape"), [("W_dec", (D_IN, D_SAE)), ("b_enc", (1,)), ("b_dec", (D_SAE,)), ("W_enc", (D_IN * D_SAE,))]
)
def test_shapes_that_contradict_each_other_are_refused(tmp_path, write, name, shape):
    with pytest.raises(SAEFormatError, match=f"{name} in .* (shape|matrix)"):
        load(write(tmp_path, tensors() | {name: torch.zeros(shape)}))


@pytest.mark.parametrize("write", [write_saelens, write_gemma_scope_2])
def test_safetensors_that_lie_are_refused(tmp_path, write):
    write(tmp_path, tensors() | {"threshold": torch.zeros(D_SAE, dtype=torch.int32)})
    with pytest.raises(SAEFormatError, match=r"^threshold .*I32"):
        load(tmp_path)
    write(tmp_path, {name: tensor for name, tensor in tensors().items() if name != "threshold"})
    with pytest.raises(SAEFormatError, match="lacks threshold"):
        load(tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    whole = path.read_bytes()
    for lie in (whole[:-4], whole[:20], b"", struct.pack("<Q", 1 << 60) + whole[8:]):
        path.write_bytes(lie)
        with pytest.raises(SAEFormatError, match=r"\.safetensors .*header"):
            load(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{", "", "[" * 100_000, '"' + "x" * (1 << 20) + '"', "\ud800"])
def test_a_configuration_that_is_no_small_object_is_refused(tmp_path, text):
    write_saelens(tmp_path, tensors())
    (tmp_path / "cfg.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(SAEFormatError, match=r"cfg\.json"):
        load(tmp_path)


def test_a_topk_larger_than_the_sae_is_refused(tmp_path):
    weights = {name: tensor for name, tensor in tensors().items() if name != "threshold"}
    for k in (0, D_SAE + 1, json.loads("NaN"), json.loads("Infinity")):
        with pytest.raises(SAEFormatError, match=r"\bk\b"):
            load(write_saelens(tmp_path, weights, architecture="topk", k=k))
