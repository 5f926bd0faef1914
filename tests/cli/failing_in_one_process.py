"""`sae-unlearn` with the second of two processes breaking down amid a fit; run by `accelerate launch`."""

import os
import signal
import sys
import time
from pathlib import Path

from sae_unlearn.backbone import distributed as processes
from sae_unlearn.cli.main import main
from sae_unlearn.guardrail.fit import corpus_sums


def breaks_down(value):
    """In the place of `gathered`: the second process does not come to where the first is waiting."""
    if processes.process_index() == 0:
        return processes.gathered(value)
    if sys.argv[1] == "killed":
        await_first()
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError("the disk is gone")


def await_first():
    """The launcher ends the first process, too: not before it has written down where it stands, if it is to."""
    if "--checkpoint-dir" in sys.argv:
        written = Path(sys.argv[sys.argv.index("--checkpoint-dir") + 1]) / "fit-0-of-2.pt"
        end = time.monotonic() + 200
        while not written.exists() and time.monotonic() < end:
            time.sleep(0.05)


corpus_sums.gathered = breaks_down
if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
