"""Reader of Goodfire's and qresearch's SAEs: one file, "Llama-3.1-8B-Instruct-SAE-l19.pth".

    a = relu(h @ W_enc + b_enc),   h' = a @ W_dec + b_dec

Stored: `encoder_linear` and `decoder_linear` at Goodfire, `encoder` and `decoder` at qresearch, each with weight and
bias. The file is a pickle, which is read without unpickling (`torch_pickle.py`). Only its name has the layer whose
output is read.

Source: SAELens' `goodfire` and `deepseek_r1` loaders, https://huggingface.co/Goodfire/Llama-3.1-8B-Instruct-SAE-l19 and
https://huggingface.co/qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19
"""

from __future__ import annotations

import re

from sae_unlearn.errors import SAEFormatError
from sae_unlearn.sae.files.torch_zip import read_state_dict
from sae_unlearn.sae.formats.base import Reader, SAEFolder, SAEWeights, one_of
from sae_unlearn.sae.validate import check_shapes, require, transpose


FILE = re.compile(r"[\w.-]+-SAE-l(\d{1,4})\.pth?", re.ASCII)
PARTS = ("encoder{}.weight", "encoder{}.bias", "decoder{}.weight", "decoder{}.bias")
GOODFIRE, QRESEARCH = (tuple(part.format(infix) for part in PARTS) for infix in ("_linear", ""))


def read(folder: SAEFolder) -> SAEWeights:
    """Return the weights of one file; they need no folding.

    Raises:
        SAEFormatError: If it is malformed.
    """
    (file,) = folder.files
    match = FILE.fullmatch(file)
    if match is None:
        raise SAEFormatError(f"{file} is not called MODEL-SAE-lL.pth: expected Goodfire's own name for it.")
    path = folder.file(file)
    state = read_state_dict(path, (*GOODFIRE, *QRESEARCH))
    names = GOODFIRE if GOODFIRE[0] in state else QRESEARCH
    surplus = sorted(set(state) - set(names))
    if surplus:
        raise SAEFormatError(f"{path} holds {names[0]} and {', '.join(surplus)}: expected one encoder and decoder.")
    encoder, b_enc, decoder, b_dec = require(state, names, path)
    W_enc, W_dec = transpose(encoder, names[0], path), transpose(decoder, names[2], path)
    check_shapes({"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}, path)
    return SAEWeights(W_enc, b_enc, W_dec, b_dec, path, "standard", layer=int(match[1]))


READER = Reader(name="goodfire", layout="MODEL-SAE-lL.pth or .pt (one)", find=one_of(FILE), read=read)
