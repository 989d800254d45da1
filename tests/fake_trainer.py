"""A trainer that trains nothing: speaks the protocol and behaves as `config.fake` of its spec says.

`marks` names a folder in which it notes when it began and ended, and where it holds one exclusive lock for
each device: two trainers on one device would note an overlap.
"""

import argparse
import ctypes
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1

FACTS: dict[str, Any] = {
    "rms": 2.5,
    "median_norm": 14.0,
    "provenance": {
        "model_revision": "revision-1",
        "hook": "model.layers.10:resid_post",
        "dtype": "float32",
        "special_ids": [0, 1, 2],
        "split": [0.8, 0.1, 0.1],
        "split_salt": "salt",
    },
}
ASKED = threading.Event()
"""Set when the supervisor asks for a checkpoint."""


def say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.read(0, 4096):
            ASKED.set()
        os._exit(4)

    threading.Thread(target=watch, daemon=True).start()


def note(marks: Path | None, what: str, spec: dict[str, Any]) -> None:
    if marks is not None:
        line = f"{what} {spec['job_id']} {spec['cycle_index']} {os.getpid()} {time.time():.3f}\n"
        with (marks / "marks.txt").open("a") as file:
            file.write(line)


def take_device(marks: Path, device: str, spec: dict[str, Any]) -> None:
    fd = os.open(marks / f"{device}.exclusive", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note(marks, "overlap", spec)


def write_results(spec: dict[str, Any], out: Path, core: Path | None) -> None:
    given = json.loads((core / "core.json").read_text())["latents"] if core else []
    cycle, job_id = spec["cycle_index"], spec["job_id"]
    entries = [
        {**entry, "parent_core_index": entry["core_index"], "times_selected": entry["times_selected"] + 1}
        for entry in given[:-1]
    ]
    for row in (100, 200):
        origin = {"origin_job_id": job_id, "origin_cycle": cycle, "origin_index": row}
        entries.append(
            {"latent_id": f"{job_id}.{cycle}.{row}", "parent_core_index": None, "times_selected": 1, **origin}
        )
    common = {"score": 0.5, "score_se": None, "share": 0.2, "encoder_norm": 1.0, "density": 0.1}
    more = {"decoder_cosine": None, "firing_jaccard": None, "is_borderline": False}
    for place, entry in enumerate(entries):
        is_new = entry["parent_core_index"] is None
        row = entry["origin_index"] if is_new else entry["parent_core_index"]
        entry.update(core_index=place, sae_index=row, rank=place, **common, **more)
    dropped = [{"core_index": e["core_index"], "latent_id": e["latent_id"]} for e in given[-1:]]
    lineage = {"cycle_index": cycle, "core": entries, "dropped": dropped}
    (out / "core").mkdir()
    (out / "core" / "core.json").write_text(json.dumps({**FACTS, "latents": entries}))
    (out / "sae").mkdir()
    (out / "sae" / "cfg.json").write_text('{"d_in": 576}')
    size_bytes = spec["config"]["fake"].get("size_bytes") if "fake" in spec["config"] else None
    if size_bytes is not None:
        (out / "sae" / "sae_weights.safetensors").write_bytes(random.Random(cycle).randbytes(size_bytes))
    (out / "spec.json").write_text(json.dumps(spec))
    (out / "lineage.json").write_text(json.dumps(lineage))
    (out / "metrics.json").write_text('{"l0": 3.5, "ce_increase": NaN}')


def write_checkpoint(folder: Path, step: int) -> None:
    """Write what a later attempt needs: the steps done."""
    folder = folder / f"step-{step}"
    folder.mkdir()
    (folder / "steps.txt").write_text(str(step))
    say(type="checkpoint", step=step, path=str(folder))


def work(spec: dict[str, Any], fake: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Do some steps, from the checkpoint on; `every` and `die_after` count steps."""
    say(type="phase", phase="training")
    n_steps = fake.get("n_steps", 5)
    done = 0 if arguments.resume is None else int((arguments.resume / "steps.txt").read_text())
    if done:
        say(type="event", kind="resumed", message=f"After step {done}.", data={"step": done})
    for step in range(done + 1, n_steps + 1):
        time.sleep(fake.get("seconds", 0.0) / n_steps)
        say(type="progress", step=step, n_steps=n_steps, n_tokens=step * 10, loss=1.0 / step, l0=None)
        if ASKED.is_set() or ("every" in fake and step % fake["every"] == 0):
            ASKED.clear()
            write_checkpoint(arguments.checkpoints, step)
        if "die_after" in fake and step >= done + fake["die_after"] and step < n_steps:
            time.sleep(fake.get("before_death", 0.0))
            os.kill(os.getpid(), signal.SIGKILL)
    say(type="event", kind="core_truncated", message="The core was cut.", data={"cycle": spec["cycle_index"]})


def misbehave(behaviour: str, fake: dict[str, Any]) -> None:
    if behaviour == "hang":
        time.sleep(600)
    elif behaviour == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "kill_parent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    elif behaviour == "exit":
        sys.exit(1)
    elif behaviour == "fail":
        say(type="failed", code=fake["code"], message="It cannot work.", param="activations.layer")
        sys.exit(3)
    elif behaviour == "stubborn" or behaviour == "undying":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    elif behaviour == "grandchild":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        say(type="event", kind="grandchild", message=str(child.pid))
        if fake.get("hang", False):
            time.sleep(600)
    elif behaviour == "print":
        sys.stderr.write(fake["text"] + "\x00\n")
        say(type="event", kind="printed", message=fake["text"], data={"said": [fake["text"]]})
        for name in sorted(os.environ):
            sys.stderr.write(f"sees {name}\n")
    elif behaviour == "flood":
        sys.stdout.write("x" * 3_000_000 + "\n{broken\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--core", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--activation-cache-bytes", type=int)
    parser.add_argument("--inputs", type=Path)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--checkpoint-every-s", type=float)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--allowed-root", type=Path, action="append")
    parser.add_argument("--supervised", action="store_true")
    arguments = parser.parse_args()
    spec = json.loads(arguments.spec.read_text())
    fake = spec["config"].get("fake", {})
    if arguments.supervised and fake.get("behaviour") != "undying":
        die_with_parent()
    marks = Path(fake["marks"]) if "marks" in fake else None
    if marks is not None:
        take_device(marks, arguments.out.parent.name, spec)
    note(marks, "begin", spec)
    if arguments.parts > 1:
        say(type="event", kind="computed_in_parts", message="In parts.", data={"n_parts": arguments.parts})
    say(type="phase", phase="loading")
    behaviour = fake.get("behaviour", "succeed")
    for file in sorted(arguments.inputs.glob("*")) if behaviour == "print" else ():
        sys.stderr.write(f"reads {file.name}: {file.read_text()}\n")
    for root in arguments.allowed_root or () if behaviour == "print" else ():
        sys.stderr.write(f"may read {root}\n")
    once = fake.get("once")
    if once is None or not Path(once).exists():
        if once is not None:
            Path(once).touch()
        misbehave(behaviour, fake)
    work(spec, fake, arguments)
    if behaviour != "empty":
        try:
            write_results(spec, arguments.out, arguments.core)
        except OSError as error:
            say(type="failed", code="disk_full", message=error.strerror)
            sys.exit(3)
    note(marks, "end", spec)
    say(type="done")


if __name__ == "__main__":
    main()
