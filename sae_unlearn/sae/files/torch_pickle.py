"""Parser of a pickled state dict of `torch.save`, which runs none of its code.

A pickle is a program for a small stack machine; unpickling runs it, and its `GLOBAL` and `REDUCE` instructions import
and call whatever the file names. Here the instructions are only read (`pickletools.genops` runs nothing): names stay
text, and the few calls that a state dict needs become descriptions of tensors. Everything else is refused.

`torch.load(weights_only=True)` is not used: it is an unpickler that imports and calls a list of functions, and files
have run code through it (CVE-2025-32434, before torch 2.6).

Instructions: https://github.com/python/cpython/blob/main/Lib/pickletools.py; layout of the calls: `torch/_utils.py`.
"""

from __future__ import annotations

import pickletools
import struct
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from sae_unlearn.errors import SAEFormatError


DTYPES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch BoolStorage": torch.bool,
}
ORDERED_DICT = "collections OrderedDict"
TENSOR = "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
KNOWN = {*DTYPES, ORDERED_DICT, TENSOR, PARAMETER}

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MARK = object()

T = TypeVar("T")


@dataclass(frozen=True)
class Storage:
    """Location of stored numbers: `numel` of `dtype` in the archive's member `key`."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a strided view of a storage, in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """The name of a class or function, which is never imported."""

    text: str


@dataclass
class Machine:
    """The stack and the memo of a pickle that is being read."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop_to_mark(self) -> list[Any]:
        """Pop and return everything above the last mark, and pop the mark."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]


def parse_pickle(data: bytes, where: str) -> Any:
    """Return the object that `data` describes: dicts, tuples, lists, text, numbers and `StoredTensor`.

    Raises:
        SAEFormatError: If it is malformed, or has anything that a state dict of tensors does not need.
    """
    machine = Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.stack.pop()
            execute(machine, opcode.name, argument, where)
    except SAEFormatError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, struct.error, OverflowError) as error:
        raise SAEFormatError(f"{where} is not a valid state dict ({error!r}). Download or save it again.") from error
    raise SAEFormatError(f"{where} ends without a value. Download or save it again.")


def execute(machine: Machine, name: str, argument: Any, where: str) -> None:
    """Execute one instruction on the stack. Nothing is imported or called."""
    stack = machine.stack
    if name in ("PROTO", "FRAME"):
        return
    if name in CONSTANTS:
        stack.append(CONSTANTS[name])
    elif name in LITERALS:
        stack.append(argument)
    elif name == "MARK":
        stack.append(MARK)
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name in ("BINPUT", "LONG_BINPUT"):
        machine.memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        machine.memo[len(machine.memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(machine.memo[argument])
    elif name in TUPLES:
        stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
    elif name == "TUPLE":
        stack.append(tuple(machine.pop_to_mark()))
    elif name in ("APPEND", "APPENDS"):
        items = [stack.pop()] if name == "APPEND" else machine.pop_to_mark()
        expect(stack[-1], list, where).extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else machine.pop_to_mark()
        set_items(expect(stack[-1], dict, where), items, where)
    elif name == "GLOBAL":
        stack.append(known_name(argument, where))
    elif name == "STACK_GLOBAL":
        attribute, module = expect(stack.pop(), str, where), expect(stack.pop(), str, where)
        stack.append(known_name(f"{module} {attribute}", where))
    elif name == "BINPERSID":
        stack.append(storage_of(stack.pop(), where))
    elif name == "REDUCE":
        arguments, function = expect(stack.pop(), tuple, where), expect(stack.pop(), Name, where)
        stack.append(call(function.text, arguments, where))
    elif name == "BUILD":  # the version numbers that `Module.state_dict` adds to its dict
        stack.pop()
        expect(stack[-1], dict, where)
    else:
        raise refusal(f"the pickle instruction {name}.", where)


def known_name(text: str, where: str) -> Name:
    """Return `text` ("module name") as a name, if a state dict needs it."""
    if text not in KNOWN:
        raise refusal(f"the name {text.replace(' ', '.')!r}.", where)
    return Name(text)


def call(function: str, arguments: tuple[Any, ...], where: str) -> Any:
    """Return a description of the result that calling `function` would give."""
    if function == ORDERED_DICT and not arguments:
        return {}
    if function == PARAMETER:
        return expect(arguments[0], StoredTensor, where)
    if function == TENSOR:
        storage, offset, size, stride = arguments[:4]
        return StoredTensor(
            expect(storage, Storage, where), natural(offset, where), naturals(size, where), naturals(stride, where)
        )
    raise refusal(f"a call of {function.replace(' ', '.')!r} with {len(arguments)} arguments.", where)


def storage_of(identifier: Any, where: str) -> Storage:
    """Return `("storage", class, key, device, numel)`, as `torch.save` writes it."""
    kind, cls, key, _device, numel = expect(identifier, tuple, where)
    dtype = DTYPES.get(expect(cls, Name, where).text)
    if kind != "storage" or dtype is None:
        raise refusal(f"a stored {expect(cls, Name, where).text!r}.", where)
    return Storage(expect(key, str, where), dtype, natural(numel, where))


def set_items(target: dict[str, Any], items: list[Any], where: str) -> None:
    """Fill `target` from `[key, value, key, value, ...]`."""
    if len(items) % 2:
        raise refusal("a key without a value.", where)
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[expect(key, str, where)] = value


def naturals(values: Any, where: str) -> tuple[int, ...]:
    """Return a tuple of integers >= 0."""
    return tuple(natural(value, where) for value in expect(values, tuple, where))


def natural(value: Any, where: str) -> int:
    """Return an integer >= 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise refusal(f"a size or offset {type(value).__name__} that is not an integer >= 0", where)
    return value


def expect(value: Any, kind: type[T], where: str) -> T:
    """Return `value`, if it is of type `kind`."""
    if not isinstance(value, kind):
        raise refusal(f"a {type(value).__name__} where a state dict has a {kind.__name__}.", where)
    return value


def refusal(what: str, where: str) -> SAEFormatError:
    """Return the error for content that a file of plain tensors does not have. Nothing of it was run."""
    return SAEFormatError(
        f"{where} holds {what}: expected a dict of plain tensors; pickles are never executed. If you trust the file, "
        "load it with torch.load and save its tensors as safetensors."
    )
