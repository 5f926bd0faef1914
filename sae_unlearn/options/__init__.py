"""Options of the public functions, as dataclasses with types, defaults, help texts and checks.

Signatures, `sae-unlearn COMMAND --help`, `--config` files and the tables in the docs are generated from them. The
modules import neither torch nor transformers nor peft, so `--help` needs none of them.
"""
