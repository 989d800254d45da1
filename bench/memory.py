"""How much memory do real cycles take at their peak, beside what a dry run says beforehand?

`value` is the trainer's own peak (every page in memory, those mapped from files too), `ratio`
the estimate over it, `spread` the smallest and largest of the runs. The models are random but for SmolLM2.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

from dmsae.config import DistillationConfig
from dmsae.presets import PRESETS
from dmsae.service.known_models import find_facts
from dmsae.service.memory import peak_memory

N_RUNS = 1
FEW: dict[str, Any] = {
    "training": {"n_tokens": 3 * 2048, "epochs": 1, "batch_tokens": 2048},
    "evaluation": {"n_tokens": 2048},
    "attribution": {"n_tokens": 2048, "ablation_tokens": 256, "ablation_latents": 4},
    "activations": {"layer": 2},
}
WIDE = {"sae": {"n_latents": 16_384, "block_widths": [512, 1024, 2048, 4096]}}
LLAMA = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA, "num_key_value_heads": 4, "max_position_embeddings": 2048},
    "gemma2": {**LLAMA, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 2048},
    "gpt_neox": {**LLAMA, "intermediate_size": 2048, "max_position_embeddings": 1024},
    "gpt2": {"n_embd": 512, "n_layer": 8, "n_head": 8, "n_positions": 1024},
}
"""Random models of about 50 million weights; 32,000 words each."""


class Case(NamedTuple):
    """One cycle to measure."""

    family: str | None
    """Of a random model; None: SmolLM2-135M."""
    changes: dict[str, Any]
    """Over the demo's settings and `FEW`."""


CASES: dict[str, Case] = {
    "llama": Case("llama", {}),
    "wide": Case("llama", WIDE),
    "wide_fast": Case("llama", {**WIDE, "training": {"step": "fast"}}),
    "long": Case("llama", {"data": {"context_length": 1024}}),
    "packed": Case("llama", {"data": {"packing": "packed"}, "activations": {"model_batch_contexts": 64}}),
    "bfloat16": Case("llama", {"activations": {"model_dtype": "bfloat16"}}),
    "gemma2": Case("gemma2", {"data": {"context_length": 512}}),
    "gpt_neox": Case("gpt_neox", {}),
    "gpt2": Case("gpt2", {}),
    "smollm2": Case(None, {}),
    "smollm2_wide": Case(None, WIDE),
}


def memory_rows(wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Run the cycles that are wanted and give a row for each."""
    with tempfile.TemporaryDirectory(prefix="dmsae-bench-") as folder:
        for name, case in CASES.items():
            if wanted(f"memory.{name}"):
                config = make_config(case, Path(folder))
                measured = [measure_peak(config, Path(folder)) for _ in range(N_RUNS)]
                yield _row(f"memory.{name}", measured, estimate(config, Path(folder)))


def make_config(case: Case, folder: Path) -> DistillationConfig:
    """Resolve a case's settings, its model made if there is none yet."""
    settings = merge(merge(PRESETS["demo"], FEW), case.changes)
    if case.family is not None:
        path = folder / case.family
        if not path.exists():
            save_random_model(path, case.family, SHAPES[case.family])
        text = folder / "text.txt"
        text.write_text("\n\n".join(topics[name] for name in sorted(topics)))
        settings["model"] = {"source": "local", "path": str(path)}
        settings["data"] = {**settings["data"], "text": {"source": "files", "paths": [str(text)]}}
    return DistillationConfig.model_validate(settings)


def save_random_model(path: Path, family: str, shape: dict[str, Any], *, n_vocab: int = 32_000) -> None:
    """Save a model of these sizes, with random weights and a tokenizer of 512 tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.tiny import tiny_tokenizer

    config = AutoConfig.for_model(
        family, vocab_size=n_vocab, bos_token_id=0, eos_token_id=1, pad_token_id=2, **shape
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)


def measure_peak(config: DistillationConfig, folder: Path) -> int:
    """Run one cycle in a process of its own and give the most memory that it held."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        spec, out = Path(work) / "spec.json", Path(work) / "out"
        told = {"job_id": "bench", "cycle_index": 0, "config": config.model_dump(mode="json")}
        spec.write_text(json.dumps(told))
        command = [sys.executable, "-m", "dmsae.cycle", spec, out, "--cache", folder / "cache"]
        subprocess.run(command, stdout=sys.stderr, check=True)
        peak: int = json.loads((out / "metrics.json").read_text())["peak_memory_bytes"]
    return peak


def estimate(config: DistillationConfig, folder: Path) -> int:
    """Say what a dry run would."""
    peak = peak_memory(config, find_facts(config.model, [folder]))
    if peak is None:
        raise ValueError(f"nothing is known of {config.model}")
    return peak.device


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay settings over others, section by section."""
    merged = dict(below)
    for key, value in above.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict) and "source" not in value
        merged[key] = merge(merged[key], value) if is_section else value
    return merged


def _row(name: str, measured: list[int], estimated: int) -> dict[str, Any]:
    value = sorted(measured)[len(measured) // 2]
    return {
        "name": name,
        "value": value,
        "unit": "bytes",
        "against": f"estimate {estimated}",
        "ratio": round(estimated / value, 3),
        "spread": [min(measured), max(measured)],
    }
