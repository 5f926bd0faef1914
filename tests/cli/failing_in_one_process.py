"""`sae-unlearn` with the second of two processes breaking down amid a fit; run by `accelerate launch`."""

import os
import signal
import sys

from sae_unlearn.backbone import processes
from sae_unlearn.cli import main
from sae_unlearn.guardrail import fit_steps


def breaks_down(value):
    """In the place of `gathered`: the second process does not come to where the first is waiting."""
    if processes.process_index() == 0:
        return processes.gathered(value)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError("the disk is gone")


fit_steps.gathered = breaks_down
if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
