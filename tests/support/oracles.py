"""Other packages that tests compare with, such as the loaders of published SAEs: not everybody has them, CI has to."""

import importlib
import os
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest


REQUIRED = "SAE_UNLEARN_REQUIRE_ORACLES"  # set by the sessions of noxfile.py that CI runs


def oracle(name: str) -> ModuleType:
    """The module `name`; where it cannot be imported the test is skipped, or fails if the variable REQUIRED is set."""
    if os.environ.get(REQUIRED):
        return importlib.import_module(name)
    return pytest.importorskip(name, exc_type=ImportError)


class LateOracle:
    """The module `name`, imported by the first test that uses it: importing SAELens takes 2 s of each process."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(oracle(self._name), name)


def with_package(name: str) -> pytest.MarkDecorator:
    """A mark: skipped without the package `name`, unless the variable REQUIRED is set."""
    absent = find_spec(name) is None and not os.environ.get(REQUIRED)
    return pytest.mark.skipif(absent, reason=f"needs pip install {name}")
