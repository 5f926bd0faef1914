"""Options of the public functions, as dataclasses: types, defaults, help texts and checks in one place.

Signatures, `sae-unlearn COMMAND --help`, `--config` files and the tables in the docs are made from them. The modules
import neither torch nor transformers nor peft, so that `--help` needs none of them.
"""
