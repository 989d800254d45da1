"""What does Neuronpedia know of a source and of each of its latents, and what of that does a cycle store?

Density, logit lens, and texts with activations, strongest first. What a cycle does not store (the histogram
of all logits, correlated latents, explanations) is left out, or empty where the format wants a list.
Activations are in the model's own units, those of the SAE that lies beside: rms times what is stored.

Source: the columns of `apps/webapp/prisma/schema.prisma` (hijohnnylin/neuronpedia, commit 78c4d43) as
`apps/webapp/lib/db/import.ts` (efd6e35) fills them; the arithmetic of `neuronpedia_export.py`
(jbloomAus/SAEDashboard, 3ea1249) and of `sae_dashboard` 0.8.0.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

CREATOR_NAME = "DMSAE"
Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One SAE as Neuronpedia names it, and what all its rows share."""

    model_id: str
    source_set: str
    creator_id: str
    layer: int
    hook: str
    dataset: str | None
    """None where the text is of no hub."""
    config: Row
    """`cfg.json` of the SAE."""

    @property
    def id(self) -> str:
        """Give its id: which layer, of which set."""
        return f"{self.layer}-{self.source_set}"

    @property
    def facts(self) -> Row:
        """Give what DMSAE says of the SAE."""
        facts: Row = self.config["metadata"]
        return facts


class Described(NamedTuple):
    """One latent, by the names of Neuronpedia's columns, without those that name model and source."""

    sae_index: int
    """Its row of the SAE."""
    columns: Row
    texts: list[Row]


def describe(record: Row, sae_index: int, source: Source) -> Described:
    """Give what Neuronpedia is told of one latent.

    Bars are the tenths between smallest and largest nonzero activation, each at its middle, as high as it has
    firings. A bin's share is of all tokens, as SAEDashboard counts. The largest activation is over all tokens
    that the cycle read.
    """
    rms: float = source.facts["rms"]
    deciles = record["deciles"]
    chosen = [(snippet, decile) for decile in deciles for snippet in decile["snippets"]]
    chosen.sort(key=lambda pair: pair[0]["kind"] != "strongest")
    texts = [_text(snippet, decile, record, rms=rms) for snippet, decile in chosen]
    lens = record["logit_lens"]
    columns = {
        "maxActApprox": _short(rms * record["max_activation"]),
        "frac_nonzero": record["density"],
        "pos_str": [entry["token"] for entry in lens["promoted"]],
        "pos_values": [entry["value"] for entry in lens["promoted"]],
        "neg_str": [entry["token"] for entry in lens["suppressed"]],
        "neg_values": [entry["value"] for entry in lens["suppressed"]],
        "freq_hist_data_bar_heights": [decile["n_firings"] for decile in reversed(deciles)],
        "freq_hist_data_bar_values": [
            _short(rms * (decile["from"] + decile["to"]) / 2) for decile in reversed(deciles)
        ],
    }
    return Described(sae_index, columns, texts)


def _text(snippet: Row, decile: Row, record: Row, *, rms: float) -> Row:
    """Give one text; a token that does not count for the SAE has 0, as their columns know no null."""
    values = [0.0 if act is None else _short(rms * act) for act in snippet["activations"]]
    largest = max(values)
    bins = (-1.0, _short(rms * record["max_activation"]), -1.0)
    if snippet["kind"] != "strongest":
        bins = (
            _short(rms * decile["from"]),
            _short(rms * decile["to"]),
            decile["n_firings"] / record["n_tokens"],
        )
    return {
        "tokens": snippet["tokens"],
        "values": values,
        "maxValue": largest,
        "maxValueTokenIndex": values.index(largest),
        "minValue": min(values),
        "binMin": bins[0],
        "binMax": bins[1],
        "binContains": bins[2],
        "qualifyingTokenIndex": snippet["peak"],
    }


def rows_about(source: Source) -> dict[str, Row]:
    """Give the rows that stand once for a source: its release, model, set and itself.

    Layers and neurons of the model are given as 0, as SAEDashboard does: a model that is known there is left
    as it is.
    """
    facts = source.facts
    told = f"Core of cycle {facts['cycle_index']} of {facts['job_id']}, a Distilled Matryoshka SAE"
    shared = {"creatorId": source.creator_id, "visibility": "PUBLIC"}
    made = {**shared, "creatorName": CREATOR_NAME, "urls": []}
    release = f"dmsae-{facts['job_id']}-{facts['cycle_index']}"
    model = {"displayName": source.model_id, "displayNameShort": source.model_id, "owner": ""}
    sizes = {"dimension": source.config["d_in"], "layers": 0, "neuronsPerLayer": 0}
    names = {"modelId": source.model_id, "name": source.source_set, "releaseName": release}
    sae = {"modelId": source.model_id, "setName": source.source_set, "hasDashboards": True}
    read = {"num_tokens_in_prompt": facts["context_size"], "dataset": source.dataset}
    notes = f"{told}. Latents of the core alone; logits with the gain of the last norm where that was found."
    return {
        "release": {"name": release, "description": told, "descriptionShort": told, **made},
        "model": {"id": source.model_id, **model, **sizes, **shared},
        "sourceset": {**names, "description": told, "type": source.hook, "hasDashboards": True, **made},
        "source": {"id": source.id, **sae, **read, **shared, "saelensConfig": source.config, "notes": notes},
    }


def latent_row(latent: Described, source: Source) -> Row:
    """Give a row of their table of latents."""
    return {**_place(latent, source), "sourceSetName": source.source_set, **latent.columns}


def activation_rows(latent: Described, source: Source) -> list[Row]:
    """Give rows of their table of texts; their ids are the same whenever this is exported."""
    name = f"{source.facts['job_id']}.{source.facts['cycle_index']}.{latent.sae_index}"
    return [
        {"id": f"{name}.{number}", **_place(latent, source), **text}
        for number, text in enumerate(latent.texts)
    ]


def dashboard_latent(latent: Described, source: Source) -> Row:
    """Give a latent as SAEDashboard's batches hold it; what is not known is empty, and no prompts are 0."""
    kept = {name: value for name, value in latent.columns.items() if name != "maxActApprox"}
    return {
        "feature_index": latent.sae_index,
        **kept,
        **{f"neuron_alignment_{name}": [] for name in ("indices", "values", "l1")},
        **{f"correlated_neurons_{name}": [] for name in ("indices", "l1", "pearson")},
        **{f"correlated_features_{name}": [] for name in ("indices", "l1", "pearson")},
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "decoder_weights_dist": [],
        "n_prompts_total": 0,
        "n_tokens_in_prompt": source.facts["context_size"],
        "dataset": source.dataset or "",
        "activations": [
            {
                "tokens": text["tokens"],
                "values": text["values"],
                "bin_min": text["binMin"],
                "bin_max": text["binMax"],
                "bin_contains": text["binContains"],
                "qualifying_token_index": text["qualifyingTokenIndex"],
            }
            for text in latent.texts
        ],
    }


def _place(latent: Described, source: Source) -> Row:
    named = {"modelId": source.model_id, "layer": source.id, "index": str(latent.sae_index)}
    return {**named, "creatorId": source.creator_id}


def _short(value: float) -> float:
    """Keep six digits: the cycle stored four of each activation."""
    return float(f"{value:.6g}")
