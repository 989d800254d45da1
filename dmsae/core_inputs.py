"""Which core does a cycle start from, and is it of this cycle's activations?

That of the cycle before, or what a training's settings name. How the latter is made is left to `cores.py`.
"""

from pathlib import Path

from dmsae.config import ActivationConfig, CoreTrainingConfig, CycleSpec
from dmsae.cores import GivenCore, make_given_core
from dmsae.errors import CycleFailed
from dmsae.formats import load_core
from dmsae.sae import Core
from dmsae.sources import NoCore


def read_given(spec: CycleSpec, *, core_dir: Path | None, sources_dir: Path | None) -> GivenCore | None:
    """Make the core that a training starts from; None where it starts from none, or this is no training.

    Raises: CycleFailed with `core_mismatch`, `core_empty`, `core_too_large` or `data_unreadable`.
    """
    if not isinstance(spec.config, CoreTrainingConfig):
        return None
    if spec.cycle_index != 0 or core_dir is not None:
        given = f"cycle_index = {spec.cycle_index}, core = {core_dir}"
        rule = "a training is one cycle, 0, around what its settings name"
        raise CycleFailed("core_mismatch", f"{given}: {rule}.", param="core")
    core = spec.config.core
    if isinstance(core, NoCore) and core.width_of is not None and core.n_matched is None:
        rule = "core.n_matched must say how many latents that core has"
        raise CycleFailed(
            "core_mismatch", f"core.width_of = {core.width_of.folder_name}: {rule}.", param="core.n_matched"
        )
    return make_given_core(core, sources_dir, job_id=spec.job_id)


def read_core(spec: CycleSpec, core_dir: Path | None) -> Core | None:
    """Read the core that a cycle of a distillation starts from.

    Raises: CycleFailed with `core_mismatch`.
    """
    if (core_dir is None) != (spec.cycle_index == 0):
        rule = "cycle 0 starts from no core" if core_dir else "a later cycle starts from the core before it"
        raise CycleFailed(
            "core_mismatch", f"cycle_index = {spec.cycle_index}, core = {core_dir}: {rule}.", param="core"
        )
    return None if core_dir is None else load_core(core_dir)


def require_scale(config: ActivationConfig, core: Core) -> None:
    """Refuse a scale that is not the core's.

    Raises: CycleFailed with `core_mismatch`.
    """
    for name, value in (config.scale.model_dump() if config.scale is not None else {}).items():
        own = getattr(core, name)
        if value != own:
            rule = f"the core was found with {own!r}; leave it out, or give the same"
            param = f"activations.scale.{name}"
            raise CycleFailed("core_mismatch", f"{param} = {value!r}: {rule}.", param=param)
