"""What is an SAE that is compared with others: built around what, under which settings?

Two jobs are of one series if nothing but k and seed differs; what cannot change a result by more than the
order of sums (device, threads, time limit), and the part of the documents that a chain reads, does not count.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Config = Mapping[str, Any]
Settings = dict[str, Any]
"""Settings by their dotted names."""

NO_CORE = "no core, as wide"
ARMS: Mapping[str, str] = {
    "selected": "distilled core",
    "none_matched": NO_CORE,
    "none": "no core, not as wide",
    "filtered": "filtered core",
    "random_directions": "random directions",
    "random_latents": "random latents",
    "frequent": "most frequent latents",
    "energy": "latents of most energy",
    "distillation": "distillation, last cycle",
}
"""What SAEs are built around, in the order in which they are shown."""

NOT_COMPARED = frozenset(
    ("seed", "chain_index", "n_cycles", "device", "n_threads", "time_limit_s", "sae.k", "training.step")
)
SECTIONS_NOT_COMPARED = ("core.", "activations.scale")
"""The arm, and the scale, which comes with a core and is named to give a control the same one."""
MOST_SHOWN = 3
"""Settings that are named of a setup."""


class Arm(NamedTuple):
    """What an SAE is built around."""

    kind: str
    detail: str = ""

    @property
    def label(self) -> str:
        """What it is called."""
        return f"{ARMS[self.kind]}{self.detail}"

    @property
    def place(self) -> tuple[int, str]:
        """Where it stands among others."""
        return list(ARMS).index(self.kind), self.detail


def arm_of(kind: str, config: Config, last_cycles: Mapping[str, int]) -> Arm:
    """Tell the arm of a job; `last_cycles` has the last finished cycle of each job that cores come from."""
    if kind == "distillation":
        return Arm("distillation", f" of {config['n_cycles']}")
    core = config["core"]
    if core["kind"] == "none":
        return Arm("none" if core["n_matched"] is None else "none_matched")
    source = core["cycle"]
    is_last = last_cycles.get(source["job_id"]) == source["cycle_index"]
    parts = [] if is_last else [f"of cycle {source['cycle_index']}"]
    if core["kind"] == "filtered":
        parts.append(f"selected {core['min_selected']} times or more")
    return Arm(core["kind"], "".join(f", {part}" for part in parts))


def settings_of(config: Config) -> Settings:
    """Give the settings that must be the same within a series, k and seed aside."""
    found = dict(_flat(config))
    return {
        name: value
        for name, value in found.items()
        if name not in NOT_COMPARED and not name.startswith(SECTIONS_NOT_COMPARED)
    }


def setup_labels(all_settings: Iterable[Settings]) -> dict[str, str]:
    """Name each of several settings by those in which they differ; under their `digest_of`."""
    setups = {digest_of(settings): settings for settings in all_settings}
    names = sorted({name for settings in setups.values() for name in settings})
    differing = [name for name in names if len({json.dumps(of.get(name)) for of in setups.values()}) > 1]
    return {digest: _label(settings, differing) for digest, settings in setups.items()}


def digest_of(settings: Settings) -> str:
    """Give a text that is the same for the same settings alone."""
    return json.dumps(settings, sort_keys=True)


def _label(settings: Settings, differing: list[str]) -> str:
    told = [f"{name} = {_shown(settings.get(name))}" for name in differing[:MOST_SHOWN]]
    more = len(differing) - MOST_SHOWN
    return ", ".join(told) + (f" and {more} more" if more > 0 else "")


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _flat(config: Config, before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
