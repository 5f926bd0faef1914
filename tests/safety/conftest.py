"""Where the tests of safety find what the tests of each part are made of."""

import sys
from pathlib import Path


sys.path += [str(Path(__file__).parents[1] / part) for part in ("alignment", "guardrail", "sae")]
