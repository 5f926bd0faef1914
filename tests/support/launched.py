"""Several real processes, as `accelerate launch` and `torchrun` start them, on the CPU."""

import os
import subprocess
import sys


ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--main_process_port=0"]
ACCELERATE += ["--mixed_precision=no", "--dynamo_backend=no", "--num_processes={}"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node={}"]


def launch(*program, processes=2, launcher=ACCELERATE, fails=False, timeout=300, **variables) -> tuple[str, str]:
    """Run a script or `-m module` with arguments in several processes; what they said, and what they complained of.

    A launch that does not end in time, or ends otherwise than it should, fails the test.
    """
    command = [sys.executable, "-m", *(part.format(processes) for part in launcher), *map(str, program)]
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])  # the package that this test is of
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "ACCELERATE_USE_CPU": "true"} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stdout, done.stderr
