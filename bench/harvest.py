"""How much does a harvest cost beside the bare forward pass of the model, cut after the layer?

The harvest is that of a cycle: special tokens and padding left out, rounded, written to an empty cache. The
floor is the same model with the layers behind the hook taken away, called on the same batches. Both take
turns, `N_RUNS` times; `value` and `against` are medians, `spread` the smallest and largest ratio of a pair.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dmsae.activation_cache import ActivationCache
from dmsae.activations import Harvester
from dmsae.allocator import use_one_arena
from dmsae.config import DistillationConfig
from dmsae.contexts import Contexts, TokenRequest, read_in_memory
from dmsae.cycle import ENVIRONMENT
from dmsae.documents import BuiltinDocuments
from dmsae.hooks import decoder_layers, resolve_hook
from dmsae.kept_activations import keep_windows
from dmsae.models import LoadedModel, load_model
from dmsae.presets import PRESETS
from dmsae.windows import HarvestedWindows, Windows

N_RUNS = 5
N_CONTEXTS = 64
PLENTY = 1 << 40


def harvest_rows(is_wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Give the row `harvest`, of SmolLM2-135M cut after the demo's layer, from a process like a trainer's."""
    if not is_wanted("harvest"):
        return
    command, environment = [sys.executable, "-m", "bench.harvest"], {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    yield json.loads(done.stdout)


def measure() -> dict[str, Any]:
    """Take the turns and give the row."""
    use_one_arena()
    config = DistillationConfig.model_validate({**PRESETS["demo"], "seed": 0})
    torch.set_num_threads(config.n_threads)
    with tempfile.TemporaryDirectory(prefix="dmsae-bench-") as folder:
        loaded = load_model(
            config.model, activations=config.activations, device="cpu", cache_dir=Path(folder)
        )
        return _measure(loaded, config, Path(folder))


def _measure(loaded: LoadedModel, config: DistillationConfig, folder: Path) -> dict[str, Any]:
    hook = resolve_hook(loaded, layer=config.activations.layer, hook=config.activations.hook)
    reader, contexts = Harvester(loaded, hook, config.activations), read_contexts(loaded, config)
    pairs = []
    for run in range(N_RUNS + 1):  # the first one warms up
        bare_s = _timed(lambda: run_bare(reader, contexts))
        harvest_s = _timed(lambda: harvest(reader, contexts, folder / str(run)))  # noqa: B023 - called at once
        pairs.append((harvest_s, bare_s))
    harvested, bare = zip(*pairs[1:], strict=True)
    ratios = [one / other for one, other in pairs[1:]]
    n_tokens = contexts.input_ids.numel()
    return {
        "name": "harvest",
        "value": round(n_tokens / statistics.median(harvested), 1),
        "unit": "tokens/s",
        "against": f"bare truncated forward pass, {n_tokens / statistics.median(bare):.1f} tokens/s",
        "ratio": round(statistics.median(harvested) / statistics.median(bare), 4),
        "spread": [round(min(ratios), 4), round(max(ratios), 4)],
    }


def read_contexts(loaded: LoadedModel, config: DistillationConfig) -> Contexts:
    """Give the first contexts of the training part of the built-in text."""
    needs: Any = {"training": None, "attribution": None, "evaluation": None}
    request = TokenRequest(loaded.tokenizer, config.data, loaded.special_ids, needs)
    contexts = read_in_memory(BuiltinDocuments(config.data.text), request).parts["training"]
    return contexts._replace(
        input_ids=contexts.input_ids[:N_CONTEXTS],
        is_token=contexts.is_token[:N_CONTEXTS],
        document_index=contexts.document_index[:N_CONTEXTS],
    )


def harvest(reader: Harvester, contexts: Contexts, folder: Path) -> None:
    """Harvest into an empty cache."""
    source = HarvestedWindows(reader, contexts)
    store = keep_windows(ActivationCache(folder, max_bytes=PLENTY), source)
    windows = Windows(source, max_resident_bytes=0, store=store)
    for window in range(len(windows)):
        windows.get(window)
    windows.close()


@torch.no_grad()
def run_bare(reader: Harvester, contexts: Contexts) -> None:
    """Call the model without the layers behind the hook on every batch, and keep nothing."""
    _, layers = decoder_layers(reader.loaded)
    step, n_kept = reader.config.model_batch_contexts, reader.config.layer + 1
    taken = list(layers[n_kept:])
    del layers[n_kept:]
    try:
        for start in range(0, len(contexts.input_ids), step):
            reader.loaded.model.base_model(
                input_ids=contexts.input_ids[start : start + step], use_cache=False
            )
    finally:
        layers.extend(taken)


def _timed(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure()) + "\n")
