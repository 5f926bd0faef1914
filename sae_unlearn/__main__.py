"""Entry point of `python -m sae_unlearn`, which is the command `sae-unlearn`."""

import sys

from sae_unlearn.cli.main import main


sys.exit(main())
