"""`python -m sae_unlearn` is `sae-unlearn`."""

import sys

from sae_unlearn.cli.main import main


sys.exit(main())
