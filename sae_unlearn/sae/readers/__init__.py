"""Readers of published SAE formats: one file per format, registered here.

To add one, write a file with a `READER` and list it below; a user's own is added with `register_reader`.
"""

from . import saelens
from .registry import READERS, Reader, find_reader, matching_readers, needs, register_reader


__all__ = ["READERS", "Reader", "find_reader", "matching_readers", "needs", "register_reader"]

for reader in (saelens.READER,):
    register_reader(reader)
del reader
