"""Neuronpedia's tables as its schema has them: which columns there are, which must be given, of what kind.

Read in `apps/webapp/prisma/schema.prisma` of hijohnnylin/neuronpedia at commit 78c4d43: models Neuron,
Activation, Source, SourceSet, SourceRelease and Model. What has a default and is never given is left out.
"""

import gzip
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

Visibility = Literal["PUBLIC", "UNLISTED", "PRIVATE"]
Floats = list[float]


class Table(BaseModel):
    """A row: what is no column of its table is refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ReleaseRow(Table):
    name: str
    visibility: Visibility
    description: str
    descriptionShort: str | None = None
    urls: list[str]
    creatorName: str
    creatorId: str


class ModelRow(Table):
    id: str
    displayName: str
    displayNameShort: str
    creatorId: str
    visibility: Visibility
    dimension: int | None = None
    layers: int
    neuronsPerLayer: int
    owner: str


class SourceSetRow(Table):
    modelId: str
    name: str
    hasDashboards: bool
    visibility: Visibility
    description: str
    type: str
    creatorName: str
    urls: list[str]
    creatorId: str
    releaseName: str | None


class SourceRow(Table):
    id: str
    modelId: str
    setName: str
    creatorId: str
    hasDashboards: bool
    visibility: Visibility
    saelensConfig: dict[str, JsonValue] | None
    num_tokens_in_prompt: int | None
    dataset: str | None
    notes: str | None


class NeuronRow(Table):
    modelId: str
    layer: str
    index: str
    sourceSetName: str | None
    creatorId: str | None
    maxActApprox: float | None
    frac_nonzero: float
    pos_str: list[str]
    pos_values: Floats
    neg_str: list[str]
    neg_values: Floats
    freq_hist_data_bar_heights: Floats
    freq_hist_data_bar_values: Floats


class ActivationRow(Table):
    id: str
    tokens: list[str]
    index: str
    layer: str
    modelId: str
    maxValue: float
    maxValueTokenIndex: int
    minValue: float
    values: Floats
    creatorId: str
    binMin: float | None
    binMax: float | None
    binContains: float | None
    qualifyingTokenIndex: int | None


TABLES: dict[str, type[Table]] = {
    "release.jsonl": ReleaseRow,
    "model.jsonl": ModelRow,
    "sourceset.jsonl": SourceSetRow,
    "source.jsonl": SourceRow,
    "features": NeuronRow,
    "activations": ActivationRow,
}


def read_tables(source_folder: Path) -> dict[str, list[Any]]:
    """Read a folder as its import does: columns by the first row of each file; keys must lead somewhere."""
    tables: dict[str, list[Any]] = {}
    for name, table in TABLES.items():
        place = source_folder / name
        files = [place] if place.is_file() else sorted(place.glob("batch-*.jsonl.gz"))
        tables[name] = []
        for file in files:
            content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            rows = [json.loads(line) for line in content.splitlines()]
            assert all(row.keys() == rows[0].keys() for row in rows)
            tables[name] += [table.model_validate(row) for row in rows]
    _check_keys(tables)
    return tables


def _check_keys(tables: dict[str, list[Any]]) -> None:
    """Refuse rows whose foreign keys lead nowhere, and two of one key."""
    (release,), (model,), (source_set,), (source,) = (tables[name] for name in list(TABLES)[:4])
    assert source_set.releaseName == release.name
    assert source_set.modelId == source.modelId == model.id
    assert source.setName == source_set.name
    indices = [row.index for row in tables["features"]]
    assert len(set(indices)) == len(indices)
    ids = [row.id for row in tables["activations"]]
    assert len(set(ids)) == len(ids)
    for row in (*tables["features"], *tables["activations"]):
        assert (row.modelId, row.layer) == (model.id, source.id)
        assert row.index in indices
