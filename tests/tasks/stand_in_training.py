"""Stands before train.py as a launcher and does in no time what a search sees of it: validations whose loss depends on the
learning rate, a checkpoint on SIGTERM, and going on from there.

python stand_in_training.py train.py RECIPE [section.key=value …]
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

settings = dict(text.split("=", 1) for text in sys.argv[3:])
lr, steps, every = float(settings["optimizer.lr"]), 90, 10
run = Path(json.loads(settings["run.folder"]), settings["run.name"])
latest = run / "checkpoints" / "latest"
stopping: list[int] = []


def leave(code: int) -> None:
    Path(os.environ["EXIT_CODE_FILE"]).write_text(str(code))
    sys.exit(1 if code else 0)  # as a launcher that says only whether all went well


for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: stopping.append(number))
latest.parent.mkdir(parents=True, exist_ok=True)
first = int(latest.read_text()) if latest.exists() else 0
lines = (run / "metrics.jsonl").read_text().splitlines() if first else []
(run / "new").write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] <= first))
(run / "new").replace(run / "metrics.jsonl")
print(f"starts after step {first}", flush=True)
with (run / "metrics.jsonl").open("a") as metrics:
    for step in range(first + 1, steps + 1):
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        if lr > 1 and step > 5:
            print(f"error: the loss is nan at step {step}, so the run stops")
            leave(3)
        record = {"step": step, "loss": 1.0}
        if step % every == 0:
            loss = (math.log10(lr) + 2) ** 2 + 10 / step
            record |= {"validation_loss": loss, "validation_accuracy": 1 / (1 + loss)}
        print(json.dumps(record), file=metrics, flush=True)
        if step % 30 == 0 or stopping:
            latest.write_text(str(step))
        if stopping:
            leave(128 + stopping[0])
leave(0)
