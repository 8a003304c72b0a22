"""Runs bin/train.py's main for each job of a JSON file, in one process: `python each.py JOBS`.

A job is {name, arguments, work_dir}. One JSON line is printed per job: name, exit code, stderr and
stdout. If the job isn't a dry run and succeeds, the line also has data from the work dir: the log's
last training row, the problem with the checkpoint (null for none), and the shapes of the student's
weights. The work dir is deleted afterwards, since those of large networks would fill a disk.
"""

import json
import shutil
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

import mains  # noqa: E402

mains.LIMIT_S = 3600  # the largest teachers take ten seconds per step


def look_at(work_dir: Path) -> dict:
    import torch

    from tiekd.workdir import checkpoints

    (log,) = work_dir.glob("*.log.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    saved = work_dir / "checkpoints" / "iter_1"
    state = torch.load(saved / checkpoints.STUDENT, weights_only=True)["state_dict"]
    return {
        "row": [row for row in rows if row.get("mode") == "train"][-1],
        "problem": checkpoints.check(saved),
        "shapes": {name: list(tensor.shape) for name, tensor in state.items()},
    }


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        result = mains.call(job["arguments"])
        if result["code"] == 0 and "--dry-run" not in job["arguments"]:
            result |= look_at(Path(job["work_dir"]))
        shutil.rmtree(job["work_dir"], ignore_errors=True)
        print(json.dumps({"name": job["name"], **result}), flush=True)


if __name__ == "__main__":
    from tiekd.distributed import entrypoint

    entrypoint.program(main)
