"""What are the steps of a probe, and what does it leave behind?

A finished core is asked one thing: what its latents promote, which of them are found elsewhere too
(`probe_match.py`), or what they do in a text of one's own (`prompting.py`). The process around this is in
`cycle.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dmsae.activations import Scale, norm_limit
from dmsae.allocator import peak_memory_bytes
from dmsae.cycle_inputs import Places, open_device, provenance_of, tell_model
from dmsae.cycle_results import write_json
from dmsae.errors import CycleFailed
from dmsae.hooks import HookPoint, resolve_hook
from dmsae.logit_lens import LogitLens, TokenValue, logit_lenses
from dmsae.models import LoadedModel, check_fit, load_model
from dmsae.pace import Clock
from dmsae.probe_config import (
    MOST_LENSES,
    AnyProbeConfig,
    CoreMatchConfig,
    LogitLensConfig,
    ProbeSpec,
    PromptConfig,
)
from dmsae.probe_match import Bench, match_core, open_other, require_same_space
from dmsae.prompting import PromptReader, Said, divergence, read_prompt
from dmsae.reporting import Report
from dmsae.sae import Core
from dmsae.source_cycles import SourceCycle
from dmsae.token_texts import TokenTexts

Record = dict[str, Any]


@dataclass(frozen=True)
class ProbeRun:
    """What all kinds of probes share."""

    config: AnyProbeConfig
    core: Core
    """On the model's device."""
    loaded: LoadedModel
    hook: HookPoint
    texts: TokenTexts

    def row(self, latent_id: str, *, param: str) -> int:
        """Give a latent's place in the core.

        Raises: CycleFailed with `core_mismatch`.
        """
        for row, latent in enumerate(self.core.latents):
            if latent.latent_id == latent_id:
                return row
        message = f"{param} = {latent_id}: is not in the core of {self.config.core.ref.folder_name}."
        raise CycleFailed("core_mismatch", message, param=param)


def run_probe(spec: ProbeSpec, out: Path, *, places: Places, report: Report) -> None:
    """Ask what a spec asks of a core and write what was found into the empty folder `out`.

    Mutates: torch's thread count and its choice of deterministic kernels, both for the whole process.

    Raises: CycleFailed.
    """
    config, clock = spec.config, Clock(report)
    torch.set_num_threads(config.n_threads)
    torch.use_deterministic_algorithms(True)

    clock.enter("loading")
    core = SourceCycle(places.sources_dir, config.core.ref, param="core").core
    other = open_other(config, core, places) if isinstance(config, CoreMatchConfig) else None
    run = open_probe(config, core, places=places, report=report)

    if isinstance(config, CoreMatchConfig):
        assert other is not None  # noqa: S101 - it was opened above
        bench = Bench(run.loaded, run.hook, places, report, clock)
        found = match_core(config, core, other, bench=bench)
    else:
        clock.enter("evaluating")
        found = read_lenses(run, config) if isinstance(config, LogitLensConfig) else ask(run, config)
    clock.stop()

    head = {"kind": config.kind, "core": config.core.model_dump()}
    timed = {"seconds": clock.total_s(), "phase_seconds": clock.seconds}
    facts = {**run.loaded.facts(), "hook_path": run.hook.path, "hook": run.hook.hook}
    out.mkdir(parents=True, exist_ok=True)
    (out / "spec.json").write_text(spec.model_dump_json(indent=1) + "\n", encoding="utf-8")
    write_json(out / "probe.json", {**head, **found})
    write_json(out / "metrics.json", {**facts, **timed, "peak_memory_bytes": peak_memory_bytes()})


def open_probe(config: AnyProbeConfig, core: Core, *, places: Places, report: Report) -> ProbeRun:
    """Load the model, and refuse a core that is of other activations.

    Raises: CycleFailed.
    """
    taken, device = config.activations, open_device(config)
    loaded = load_model(config.model, activations=taken, device=device, cache_dir=places.cache_dir)
    check_fit(loaded, layer=taken.layer, context_length=config.data.context_length)
    hook = resolve_hook(loaded, layer=taken.layer, hook=taken.hook)
    require_same_space(core, provenance_of(config, loaded, hook), param="core")
    tell_model(report, loaded, hook)
    return ProbeRun(config, core.to(device), loaded, hook, TokenTexts(loaded.tokenizer))


def read_lenses(run: ProbeRun, config: LogitLensConfig) -> Record:
    """Give the tokens that latents promote and suppress most, and how.

    Raises: CycleFailed with `core_mismatch` where one is not in the core.
    """
    rows = list(range(min(run.core.n_core, MOST_LENSES)))
    if config.latents is not None:
        rows = [run.row(name, param=f"latents.{place}") for place, name in enumerate(config.latents)]
    lenses = logit_lenses(run.loaded, run.core.W_dec[rows], n_tokens=config.n_top, texts=run.texts)
    return {
        "n_core": run.core.n_core,
        "latents": [_named(run, row, _lens(lens)) for row, lens in zip(rows, lenses, strict=True)],
    }


@torch.no_grad()
def ask(run: ProbeRun, config: PromptConfig) -> Record:
    """Say where latents fire in a prompt, and what the model says next, plain and changed.

    Raises: CycleFailed with `context_too_long`, `data_unreadable`, `core_mismatch` or `non_finite`.
    """
    scale = Scale(rms=run.core.rms, median_norm=run.core.median_norm)
    max_norm = norm_limit(scale, config.activations)
    reader = PromptReader(run.loaded, run.hook, run.core, max_norm)
    input_ids = read_prompt(run.loaded, config)
    given = None if config.latent is None else run.row(config.latent, param="latent")
    x = reader.activations(input_ids)
    counted = reader.is_counted(input_ids, x)[0]
    if not x[0, counted].isfinite().all():
        told = f"The model gives activations that are not finite at {run.hook.path}; try another text."
        raise CycleFailed("non_finite", told, param="prompt")
    acts = reader.latent_acts(x[0])
    peaks = acts[counted].amax(dim=0) if counted.any() else torch.zeros(run.core.n_core)
    rows = _strongest(peaks, config.n_latents) if given is None else [given]
    changed, kl, n_new = None, None, config.n_new_tokens
    plain = reader.say(input_ids, n_new_tokens=n_new)
    if config.change is not None and given is not None:
        changed = reader.say(input_ids, n_new_tokens=n_new, edit=reader.edit(given, config.change))
        kl = _short(divergence(plain.logits, changed.logits))
    shown = [
        _named(run, row, {"activations": _at(acts[:, row], counted), "max_activation": _short(peaks[row])})
        for row in rows
    ]
    marks = zip(input_ids[0].tolist(), counted.tolist(), strict=True)
    return {
        "tokens": [{**_token(run, token), "is_counted": is_counted} for token, is_counted in marks],
        "latents": shown,
        "rms": _short(run.core.rms),
        "plain": _said(run, plain, n_top=config.n_top),
        "change": None if config.change is None else config.change.model_dump(),
        "changed": None if changed is None else _said(run, changed, n_top=config.n_top),
        "kl": kl,
    }


def _strongest(peaks: torch.Tensor, n_latents: int) -> list[int]:
    """Give the latents that fire at all, those with the largest activation first, of equals the first."""
    order = peaks.sort(descending=True, stable=True)
    found = zip(order.values.tolist(), order.indices.tolist(), strict=True)
    return [row for peak, row in found if peak > 0][:n_latents]


def _at(acts: torch.Tensor, counted: torch.Tensor) -> list[float | None]:
    """Give an activation for each token, null where no latent counts."""
    pairs = zip(acts.tolist(), counted.tolist(), strict=True)
    return [_short(value) if is_counted else None for value, is_counted in pairs]


def _said(run: ProbeRun, said: Said, *, n_top: int) -> Record:
    likeliest = said.logits.double().softmax(dim=0).sort(descending=True, stable=True)
    following = zip(likeliest.values[:n_top].tolist(), likeliest.indices[:n_top].tolist(), strict=True)
    return {
        "next": [
            {**_token(run, token), "probability": _short(p), "logit": _short(said.logits[token])}
            for p, token in following
        ],
        "continuation": [_token(run, token) for token in said.new_ids],
        "text": run.loaded.tokenizer.decode(said.new_ids),
    }


def _token(run: ProbeRun, token: int) -> Record:
    return {"token_id": token, "token": run.texts.of(token)}


def _named(run: ProbeRun, row: int, record: Record) -> Record:
    return {"latent_id": run.core.latents[row].latent_id, "core_index": row, **record}


def _lens(lens: LogitLens) -> Record:
    def ends(values: list[TokenValue]) -> list[Record]:
        return [{"token": each.token, "value": _short(each.value)} for each in values]

    return {
        "final_norm": lens.final_norm,
        "promoted": ends(lens.promoted),
        "suppressed": ends(lens.suppressed),
    }


def _short(value: float | torch.Tensor) -> float:
    """Give six digits of a figure: what a probe stores is bounded."""
    return float(f"{float(value):.6g}")
