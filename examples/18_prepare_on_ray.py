"""Prepare a teacher's targets on as many machines as a Ray cluster has; Ray is used as it is.

    pip install ray            # on every machine, beside proteus-distill
    ray start --head           # on one; ray start --address HEAD:6379 on the others
    python examples/18_prepare_on_ray.py --teacher dinov2_vitg14 --data SHARED/images \
        --out SHARED/targets --parts 64 --gpus-each 1

Each part is one `proteus prepare --part N/OF`, a process of its own on a machine that has room. All
machines must see the same `--data` and `--out`. A part whose machine dies is run again elsewhere.
Without a cluster the parts run on this machine.
"""

import argparse
import subprocess
import sys

import ray

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--teacher", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--parts", type=int, default=8)
parser.add_argument("--gpus-each", type=float, default=0)
parser.add_argument("--address", default="local", help="auto = the cluster this machine is in")
args = parser.parse_args()


def prepare(part: str) -> str:
    command = [sys.executable, "-m", "proteus", "prepare", "--teacher", args.teacher]
    command += ["--data", args.data, "--out", args.out, "--part", part]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"part {part}: {done.stderr[-2000:]}")
    return part


ray.init(address=args.address, log_to_driver=False)
remote = ray.remote(num_gpus=args.gpus_each, max_retries=3)(prepare)
waiting = [remote.remote(f"{number}/{args.parts}") for number in range(args.parts)]
while waiting:
    done, waiting = ray.wait(waiting)
    print(f"part {ray.get(done[0])} is there, {len(waiting)} to go", flush=True)
