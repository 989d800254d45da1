"""What the API answers about the texts at which a latent fires, field by field."""

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field

from api import examples
from api.schemas import Answer, example_of
from dmsae.service.snippets import SnippetPlace, SnippetRecord

SNIPPETS: dict[str, Any] = {
    "latent": examples.IDENTITY["latent_id"],
    "core": examples.CORE["core_id"],
    "job_id": examples.JOB_ID,
    "cycle_index": 1,
    "n_tokens": 100_000,
    "n_firings": 412,
    "density": 0.00412,
    "min_activation": 0.61,
    "max_activation": 4.61,
    "logit_lens": {
        "final_norm": "folded",
        "promoted": [{"token": " Paris", "value": 2.31}],
        "suppressed": [{"token": "<0xE2>", "value": -1.07}],
    },
    "deciles": [
        {
            "decile": 10,
            "from": 4.21,
            "to": 4.61,
            "n_firings": 3,
            "snippets": [
                {
                    "kind": "strongest",
                    "tokens": ["<|endoftext|>", "The", " capital", " of", " France"],
                    "activations": [None, 0.0, 0.93, 1.2, 4.61],
                    "peak": 4,
                }
            ],
        }
    ],
}


class TokenValueOut(Answer):
    """A token and how far a latent raises its logit."""

    token: str
    value: float
    """Per unit of the decoder row, which has norm 1; only the order means something."""


class LogitLensOut(Answer):
    """Tokens whose logits a latent's decoder row raises and lowers most, if nothing lay between."""

    final_norm: Literal["folded", "left_out"]
    """Whether the gain of the model's last norm is in it; its division by the stream's size never is."""
    promoted: list[TokenValueOut]
    """The most first."""
    suppressed: list[TokenValueOut]
    """The most first."""


class SnippetOut(Answer):
    """Some tokens around one at which a latent fires, of one document."""

    kind: Literal["strongest", "random"]
    """One of the largest activations, of a context each; or drawn at random from its decile."""
    tokens: list[str]
    """Each token's own text; bytes that are no whole character stand as `<0xE2>`."""
    activations: list[float | None]
    """The latent's, at normalised scale, to four digits; null where a token is special or was dropped."""
    peak: int
    """Which token it was taken for."""


class DecileOut(Answer):
    """A tenth of the range from the smallest to the largest nonzero activation, upper end included."""

    model_config = ConfigDict(populate_by_name=True)

    decile: int
    """10 is the strongest."""
    low: float = Field(alias="from")
    high: float = Field(alias="to")
    n_firings: int
    """Tokens at which its activation lies in it."""
    snippets: list[SnippetOut]


class SnippetsOut(Answer):
    """Where a latent fires in text that no SAE was trained on, as one core's cycle saw it."""

    model_config = example_of(SNIPPETS)

    latent: str
    core: str
    job_id: str
    cycle_index: int
    """The cycle that selected this core."""
    n_tokens: int
    """Kept tokens of the evaluation part, on which all was measured."""
    n_firings: int
    """At how many of them it fires."""
    density: float
    """n_firings / n_tokens."""
    min_activation: float
    """The smallest nonzero one; 0 where it never fires."""
    max_activation: float
    logit_lens: LogitLensOut
    deciles: list[DecileOut]
    """From the tenth to the first; none where it never fires."""

    @classmethod
    def of(cls, place: SnippetPlace, record: SnippetRecord) -> Self:
        """Show what is stored."""
        told = record.model_dump(exclude={"latent_id"})
        cycle = {"job_id": place.job_id, "cycle_index": place.cycle_index}
        return cls(latent=place.latent_id, core=place.core_id, **cycle, **told)
