"""How long does a training step take, beside the peers' and beside the encoder's float32 product alone?

On a CPU (`step`) and, where there is one, on a GPU (`gpu_step`), there beside the memory traffic of Adam too.
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
GPU_SHAPES = [*SHAPES, (2304, 65536, 320, 2048)]
"""The last is that of the preset `gemma-2-2b-l12`."""
N_TURNS = 5
STEPS_A_TURN = {"dmsae": 5, "product": 5, "dictionary_learning": 1, "sae_lens": 1}
GPU_STEPS_A_TURN = {"dmsae": 20, "product": 20, "traffic": 20, "dictionary_learning": 10, "sae_lens": 10}
OURS = ("dmsae", "product", "traffic")
"""Contenders that need no peer's environment."""
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
            yield from shape_rows(name, shape, device="cpu", n_steps=STEPS_A_TURN)


def gpu_step_rows(is_wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Measure them on a GPU; without one there is no row, and a line on stderr says so."""
    wanted = {f"gpu_step.{shape[0]}x{shape[1]}": shape for shape in GPU_SHAPES}
    wanted = {name: shape for name, shape in wanted.items() if is_wanted(name)}
    if wanted and not has_gpu():
        sys.stderr.write("gpu_step: torch finds no CUDA device here\n")
        return
    for name, shape in wanted.items():
        make(environment_folder(), install_peers)
        yield from shape_rows(name, shape, device="cuda", n_steps=GPU_STEPS_A_TURN)


def has_gpu() -> bool:
    """Ask torch for a CUDA device, in a process of its own."""
    asked = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


def shape_rows(
    name: str, shape: tuple[int, ...], *, device: str, n_steps: dict[str, int]
) -> list[dict[str, Any]]:
    """Let all contenders take turns of so many steps at one shape."""
    contenders = {contender: start(contender, device, shape) for contender in n_steps}
    try:
        take(contenders["dmsae"], N_WARM_UP)
        turns: dict[str, list[float]] = {contender: [] for contender in contenders}
        for _ in range(N_TURNS):
            for contender, process in contenders.items():
                turns[contender].append(statistics.median(take(process, n_steps[contender])))
    finally:
        for process in contenders.values():
            process.kill()
            process.wait()
    ours = statistics.median(turns["dmsae"])
    return [
        {
            "name": name,
            "value": round(ours, 2),
            "unit": "ms",
            "against": contender,
            "ratio": round(ours / statistics.median(took), 3),
            "spread": [round(min(turns["dmsae"]), 2), round(max(turns["dmsae"]), 2)],
        }
        for contender, took in turns.items()
        if contender != "dmsae"
    ]


def start(contender: str, device: str, shape: tuple[int, ...]) -> "subprocess.Popen[str]":
    """Start a contender and wait until it is ready."""
    peers = interpreter(environment_folder())
    python = sys.executable if contender in OURS else str(peers)
    command = [python, str(SCRIPT), contender, device, *map(str, shape)]
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
