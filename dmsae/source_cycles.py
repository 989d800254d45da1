"""What did a finished cycle leave, from which a training or a match starts?

The folder that was laid out for it (`--sources`): its SAE, the core that it selected, scores and densities
of its latents, and who they are. What becomes of it is left to `cores.py` and `matching.py`.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from jaxtyping import Float64
from safetensors import SafetensorError
from torch import Tensor

from dmsae.errors import CycleFailed
from dmsae.formats import load_core, load_sae
from dmsae.sae import Core, CoreLatent, MatryoshkaSae
from dmsae.sources import CycleRef

LEARNED = "learned"
"""Kind of origin of a latent that a cycle's SAE learned."""


class Figures(NamedTuple):
    """What the cycle measured of one latent; null is what it did not."""

    score: float | None = None
    share: float | None = None
    rank: int | None = None
    density: float | None = None


class SourceCycle:
    """One finished cycle's folder; each file is read when it is first needed."""

    def __init__(self, sources_dir: Path | None, ref: CycleRef, *, param: str = "core.cycle") -> None:
        """Find the folder of the cycle that the setting `param` names.

        Raises: CycleFailed(core_mismatch) where there is none, or it is another cycle's.
        """
        if sources_dir is None:
            rule = "what the cycle stored must lie in the folder --sources, and none was given"
            raise CycleFailed("core_mismatch", f"{param} = {ref.folder_name}: {rule}", param=param)
        self.folder, self.ref, self._param = sources_dir / ref.folder_name, ref, param
        with self._reading():
            found = f"{self.facts['job_id']}.{self.facts['cycle_index']}"
        if found != ref.folder_name:
            raise CycleFailed(
                "core_mismatch",
                f"{param} = {ref.folder_name}: its folder holds what {found} stored",
                param=param,
            )

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the SAE's folder says about itself, without its weights."""
        facts: dict[str, Any] = json.loads((self.folder / "sae" / "cfg.json").read_bytes())["metadata"]
        return facts

    @cached_property
    def core(self) -> Core:
        """The core that the cycle selected.

        Raises: CycleFailed(core_mismatch).
        """
        return load_core(self.folder / "core")

    @cached_property
    def sae(self) -> MatryoshkaSae:
        """The SAE that the cycle trained.

        Raises: CycleFailed(data_unreadable).
        """
        return load_sae(self.folder / "sae")[0]

    @cached_property
    def lineage(self) -> dict[str, Any]:
        """What the cycle told of its latents.

        Raises: CycleFailed(core_mismatch).
        """
        with self._reading():
            lineage: dict[str, Any] = json.loads((self.folder / "lineage.json").read_bytes())
            if len(lineage["core"]) != self.core.n_core:
                raise ValueError(f"lineage.json tells of {len(lineage['core'])} latents")
        return lineage

    @cached_property
    def rows(self) -> list[int]:
        """Row in the SAE of each latent of the core."""
        with self._reading():
            return [int(entry["sae_index"]) for entry in self.lineage["core"]]

    @cached_property
    def n_candidates(self) -> int:
        """Latents of the most nested prefix: they are the first rows of the SAE."""
        return self.sae.prefix_widths[0]

    def scores(self, name: str) -> Float64[Tensor, " n"]:
        """Give a stored tensor: `density` and `score_...` of the candidates, `density_all` of all latents.

        Raises: CycleFailed(core_mismatch).
        """
        with self._reading():
            return self._scores[name].double()

    def identity(self, row: int) -> CoreLatent:
        """Say who the latent in a row of the SAE is, and in how many unbroken cycles it was selected.

        One of the core that the SAE was given stays who it was; one that never was in a core is named here.
        """
        if row in self._places:
            return self.core.latents[self._places[row]]
        given: Sequence[str] = self.facts["core_latent_ids"]
        latent_id = given[row] if row < len(given) else f"{self.ref.folder_name}.{row}"
        job_id, cycle, index = latent_id.rsplit(".", 2)
        return CoreLatent(latent_id, job_id, int(cycle), int(index), times_selected=0)

    def place(self, row: int) -> int | None:
        """Give the place in the selected core of the latent in a row; None where it was not selected."""
        return self._places.get(row)

    def origin_kind(self, latent_id: str) -> str:
        """Say how a latent came to be: learned by a cycle's SAE, or drawn at random for a training."""
        return self._origin_kinds.get(latent_id, LEARNED)

    def figures(self, row: int) -> Figures:
        """Give what was measured of the latent in a row; score, share and rank of candidates alone."""
        place = self.place(row)
        if place is not None:
            entry = self.lineage["core"][place]
            return Figures(entry["score"], entry["share"], entry["rank"], entry["density"])
        with self._reading():
            if row >= self.n_candidates:
                return Figures(density=self._densities[row])
            density = self.scores("density")[row].item()
            if not self._ranked:
                return Figures(density=density)
            score, total, rank = self._ranked[row]
            return Figures(score, score / total, rank, density)

    @cached_property
    def _origin_kinds(self) -> dict[str, str]:
        """Of the latents that this cycle was given as a training; those of a distillation are all learned."""
        with self._reading():
            given = self.lineage.get("given") or {"core": []}
            return {entry["latent_id"]: entry["origin_kind"] for entry in given["core"]}

    @cached_property
    def _places(self) -> dict[int, int]:
        return {row: place for place, row in enumerate(self.rows)}

    @cached_property
    def _scores(self) -> dict[str, Tensor]:
        return safetensors.torch.load((self.folder / "scores.safetensors").read_bytes())

    @cached_property
    def _densities(self) -> list[float]:
        densities: list[float] = self.scores("density_all").tolist()
        return densities

    @cached_property
    def _ranked(self) -> list[tuple[float, float, int]]:
        """Score, the sum of all, and rank of each candidate, by the score that selected; empty if unknown."""
        name = self.facts.get("attribution_score")
        if name is None:
            return []
        scores = self.scores(f"score_{name}").tolist()
        order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
        ranks = {row: rank for rank, row in enumerate(order)}
        total = math.fsum(scores)
        return [(score, total, ranks[row]) for row, score in enumerate(scores)]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what is missing or foreign into a refusal."""
        try:
            yield
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            known = (str(error).splitlines() or [type(error).__name__])[0]
            reason = f"no {error}" if isinstance(error, KeyError) else known
            raise CycleFailed(
                "core_mismatch",
                f"{self._param} = {self.ref.folder_name}: {str(self.folder)!r} must hold what a finished "
                f"cycle stored ({reason})",
                param=self._param,
            ) from error
