"""The trainer's entry point: one cycle, match of cores or probe, as a process, reported line by line.

`python -m dmsae.cycle SPEC.json OUT/ [--core DIR] [--sources DIR] [--cache DIR] [--inputs DIR] ...`

Ties itself to its supervisor, reads the spec, and turns whatever goes wrong into one line and an exit status.
It loads torch only after that; the steps of a cycle are in `cycle_steps.py`, of a match in `match_run.py`, of
a probe in `probe_run.py`.
"""

import argparse
import errno
import json
import os
import sys
import threading
import traceback
from pathlib import Path

from pydantic import ValidationError

from dmsae.allocator import use_one_arena
from dmsae.config import ACTIVATION_CACHE_BYTES, CycleSpec, MatchSpec, RunConfig
from dmsae.errors import CycleFailed
from dmsae.probe_config import PROBE_KINDS, ProbeSpec, is_probe
from dmsae.reporting import LineReport, claim_stdout
from dmsae.supervision import tie_to_parent

FAILED = 3
"""Exit status after a `failed` line."""

CHECKPOINT_EVERY_S = 600.0
"""Seconds of work between two checkpoints, unless told otherwise."""

ENVIRONMENT = {
    # a thread that waits lets others have its core: spinning costs seconds a step where cores are shared
    "OMP_WAIT_POLICY": "PASSIVE",
    # torch's deterministic kernels refuse matrix products on a GPU whose workspace may vary
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Xet's own client knows neither our time-outs nor a private hub's address, and keeps a cache of its own
    "HF_HUB_DISABLE_XET": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment under which libraries share cores, draw no bars and do not call home; read on import."""

OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""Added to it where no source lies on the hub: then nothing may ask there, whatever a library looks for."""


def main(argv: list[str] | None = None) -> int:
    """Run one cycle and give the exit status."""
    use_one_arena()
    arguments = _parse(argv)
    is_asked = tie_to_parent() if arguments.supervised else threading.Event()
    report = LineReport(claim_stdout())
    try:
        _run(arguments, report, is_asked)
    except Exception as error:  # noqa: BLE001 - the last place: every failure becomes a line with a code
        failure = as_failure(error)
        if failure.failure == "internal_error":
            traceback.print_exception(error, file=sys.stderr)
        report.failed(failure.failure, failure.message, failure.param)
        return FAILED
    report.done()
    return 0


KINDS = {(1, kind) for kind in ("distillation", "training", *PROBE_KINDS)}
"""Where pydantic names the kind of a config, which is no field."""


def read_spec(file: Path) -> CycleSpec | MatchSpec | ProbeSpec:
    """Read and check a spec, of a cycle, of a match or of a probe.

    Raises: CycleFailed with `spec_unsupported`, naming the field.
    """
    try:
        content = file.read_bytes()
        return _class_of(content).model_validate_json(content)
    except OSError as error:
        raise CycleFailed("spec_unsupported", f"The spec {file} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        loc = [part for at, part in enumerate(first["loc"]) if (at, part) not in KINDS]
        place = [*loc, first.get("ctx", {}).get("param", "")]
        param = ".".join(str(part) for part in place if part != "") or None
        raise CycleFailed("spec_unsupported", f"{param or 'SPEC'}: {first['msg']}", param=param) from error


def _class_of(content: bytes) -> type[CycleSpec | MatchSpec | ProbeSpec]:
    """Tell what a spec is of; one that is no JSON is refused as a cycle's."""
    try:
        spec = json.loads(content)
    except (ValueError, RecursionError):
        return CycleSpec
    config = spec.get("config") if isinstance(spec, dict) else None
    if not isinstance(config, dict) or "cycle_index" in spec:
        return CycleSpec
    return ProbeSpec if is_probe(config) else MatchSpec if "cores" in config else CycleSpec


def as_failure(error: Exception) -> CycleFailed:
    """Translate what a cycle may raise into a failure with a code."""
    if isinstance(error, CycleFailed):
        return error
    if _is_out_of_memory(error):
        return CycleFailed(
            "out_of_memory",
            f"The {_whose_memory(error)} ran out of memory; lower training.batch_tokens, "
            "activations.model_batch_contexts, data.context_length or sae.n_latents, or use a larger one.",
        )
    if _is_disk_full(error):
        return CycleFailed("disk_full", "The disk of this worker's machine is full.")
    return CycleFailed("internal_error", f"{type(error).__name__}: {error}"[:1000])


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dmsae.cycle", description="Run one cycle.")
    parser.add_argument("spec", type=Path, metavar="SPEC.json", help="a CycleSpec, MatchSpec or ProbeSpec")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; absent or empty")
    parser.add_argument(
        "--core", type=Path, help="core/ folder of the cycle before; absent for cycle 0 and a training"
    )
    parser.add_argument("--sources", type=Path, help="folder with what the cycles stored that SPEC names")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where converted models are kept")
    parser.add_argument(
        "--activation-cache-bytes",
        type=int,
        default=ACTIVATION_CACHE_BYTES,
        help="room for harvested activations below the cache folder; 0 keeps none",
    )
    parser.add_argument("--inputs", type=Path, help="folder with the stored objects that the text names")
    parser.add_argument(
        "--allowed-root", type=Path, action="append", help="folder from which files may be read; none: any"
    )
    parser.add_argument("--checkpoints", type=Path, help="folder to write checkpoints into; none: none")
    parser.add_argument(
        "--checkpoint-every-s", type=float, default=CHECKPOINT_EVERY_S, help="seconds of work between two"
    )
    parser.add_argument("--resume", type=Path, help="a checkpoint of this cycle to go on from")
    parser.add_argument(
        "--parts", type=int, default=1, help="compute batches in so many parts, in less memory"
    )
    parser.add_argument("--supervised", action="store_true", help="end when the parent or stdin does")
    arguments = parser.parse_args(argv)
    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        parser.error(f"OUT = {arguments.out}: must be absent or an empty folder")
    return arguments


def default_cache() -> Path:
    """Give the user's cache folder for this program."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmsae"


def environment_for(config: RunConfig) -> dict[str, str]:
    """Give what the libraries' environment must hold for these settings."""
    asks_hub = "hub" in (config.model.source, config.data.text.source)
    return ENVIRONMENT if asks_hub else {**ENVIRONMENT, **OFFLINE}


def _run(arguments: argparse.Namespace, report: LineReport, is_asked: threading.Event) -> None:
    spec = read_spec(arguments.spec)
    os.environ.update(environment_for(spec.config))
    # else it lies in the home folder, which a container may not write to
    os.environ.setdefault("TRITON_CACHE_DIR", str(arguments.cache / "triton"))
    from dmsae.checkpoints import Checkpoints
    from dmsae.cycle_inputs import Places

    places = Places(
        cache_dir=arguments.cache,
        core_dir=arguments.core,
        sources_dir=arguments.sources,
        inputs_dir=arguments.inputs,
        allowed_roots=arguments.allowed_root,
        activation_cache_bytes=arguments.activation_cache_bytes,
        resume_dir=arguments.resume,
        n_parts=arguments.parts,
    )
    if isinstance(spec, MatchSpec):
        from dmsae.match_run import run_match

        run_match(spec, arguments.out, places=places, report=report)
        return
    if isinstance(spec, ProbeSpec):
        from dmsae.probe_run import run_probe

        run_probe(spec, arguments.out, places=places, report=report)
        return
    from dmsae.cycle_steps import run_cycle

    folder, every_s = arguments.checkpoints, arguments.checkpoint_every_s
    checkpoints = None if folder is None else Checkpoints(folder, every_s=every_s, is_asked=is_asked)
    run_cycle(spec, arguments.out, places=places, report=report, checkpoints=checkpoints)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # torch's CPU allocator has neither a class nor a code for it; torch may be unloaded here
    is_gpu = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, RuntimeError) and (is_gpu or "can't allocate memory" in str(error))


def _whose_memory(error: Exception) -> str:
    return "GPU" if type(error).__name__ == "OutOfMemoryError" else "machine"


def _is_disk_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors gives the operating system's number as text only
    return f"(os error {errno.ENOSPC})" in str(error)


if __name__ == "__main__":
    sys.exit(main())
