"""How long does a training step take, beside the peers' and beside the encoder's float32 product alone?

At each shape all contenders are started, each in a process and environment of its own, then take turns. A
row holds our median milliseconds; `ratio` is that over the median of `against`, `spread` the least and the
most of our turns.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.interop.environment import environment_folder, install_peers, interpreter, make

SHAPES = [(576, 8192, 32, 1024), (576, 16384, 64, 2048), (768, 32768, 32, 2048)]
"""d_model, n_latents, k, batch."""
N_TURNS = 5
STEPS_A_TURN = {"dmsae": 5, "product": 5, "dictionary_learning": 1, "sae_lens": 1}
N_WARM_UP = 3
"""Steps of ours before the first turn: they compile, and find where to search from."""
SCRIPT = Path(__file__).with_name("step_process.py")
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
"""Contenders that wait leave the cores to the one whose turn it is."""


def step_rows(is_wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Measure every shape that is wanted, making the peers' environment first if there is none."""
    for shape in SHAPES:
        name = f"step.{shape[0]}x{shape[1]}"
        if is_wanted(name):
            make(environment_folder(), install_peers)
            yield from shape_rows(name, shape)


def shape_rows(name: str, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Let all contenders take turns at one shape."""
    contenders = {contender: start(contender, shape) for contender in STEPS_A_TURN}
    try:
        take(contenders["dmsae"], N_WARM_UP)
        turns: dict[str, list[float]] = {contender: [] for contender in contenders}
        for _ in range(N_TURNS):
            for contender, process in contenders.items():
                turns[contender].append(statistics.median(take(process, STEPS_A_TURN[contender])))
    finally:
        for process in contenders.values():
            process.kill()
            process.wait()
    ours = statistics.median(turns["dmsae"])
    return [
        {
            "name": name,
            "value": round(ours, 1),
            "unit": "ms",
            "against": contender,
            "ratio": round(ours / statistics.median(took), 3),
            "spread": [round(min(turns["dmsae"]), 1), round(max(turns["dmsae"]), 1)],
        }
        for contender, took in turns.items()
        if contender != "dmsae"
    ]


def start(contender: str, shape: tuple[int, ...]) -> "subprocess.Popen[str]":
    """Start a contender and wait until it is ready."""
    peers = interpreter(environment_folder())
    python = sys.executable if contender in ("dmsae", "product") else str(peers)
    command = [python, str(SCRIPT), contender, *map(str, shape)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}
    )
    if process.stdout is None or process.stdout.readline() != "ready\n":
        raise RuntimeError(f"{contender} did not start")
    return process


def take(process: "subprocess.Popen[str]", n_steps: int) -> list[float]:
    """Let a contender take steps; give the milliseconds of each."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process was started without pipes")
    process.stdin.write(f"{n_steps}\n")
    process.stdin.flush()
    took: list[float] = json.loads(process.stdout.readline())
    return took
