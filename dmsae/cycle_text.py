"""Which tokens does a cycle work on, and how many of a text must be read for it?

A text is read only as far as its parts need, with a margin for tokens whose norm will drop them. What needs
no model is refused before one is loaded.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dmsae.activations import SCALE_TOKENS, Harvester, require_tokens
from dmsae.config import CoreTrainingConfig, CycleConfig, DataConfig, DistillationConfig, RunConfig
from dmsae.contexts import TokenisedText, TokenRequest, check_ids, read_in_memory
from dmsae.documents import WHOLE, BuiltinDocuments, Chain, Documents, Part, open_documents
from dmsae.errors import CycleFailed
from dmsae.reporting import Report
from dmsae.sources import StoredActivations
from dmsae.stored_activations import StoredShards
from dmsae.survey import token_budget
from dmsae.token_files import has_tokens, open_tokens

MARGIN = 1 / 8
"""How much more than is needed is read at first; doubled where more tokens than that turn out too loud."""

OpenText = Documents | StoredShards
"""A text that was tried out and not yet read."""


def open_text(
    data: DataConfig, *, inputs_dir: Path | None, allowed_roots: Sequence[Path] | None, cache_dir: Path
) -> OpenText:
    """Open a text and try it out; what this worker has read before is not asked for again.

    Raises: CycleFailed with `data_unreadable`, `activations_mismatch` or a code of the hub.
    """
    if isinstance(data.text, StoredActivations):
        shards = StoredShards(data.text, context_length=data.context_length, allowed_roots=allowed_roots)
        shards.check()
        return shards
    documents = open_documents(data.text, inputs=inputs_dir, allowed_roots=allowed_roots)
    if not has_tokens(documents, cache_dir=cache_dir):
        documents.check()
    return documents


def read_text(
    text: OpenText, harvester: Harvester, config: RunConfig, *, margin: float, cache_dir: Path
) -> TokenisedText:
    """Give the contexts of the parts that are used, refusing at once one that is plainly too small.

    Raises: CycleFailed with `dataset_exhausted`, `data_unreadable`, `model_unreadable`,
    `activations_mismatch` or a code of the hub.
    """
    loaded, chain = harvester.loaded, chain_of(config)
    if isinstance(text, StoredShards):
        tokens: TokenisedText = text.read(harvester, config.data.split, chain=chain)
    elif isinstance(text, BuiltinDocuments):
        needs: dict[Part, int | None] = {"training": None, "attribution": None, "evaluation": None}
        request = TokenRequest(loaded.tokenizer, config.data, loaded.special_ids, needs, chain)
        tokens = read_in_memory(text, request)
    else:
        needs = tokens_needed(config, margin=margin)
        request = TokenRequest(loaded.tokenizer, config.data, loaded.special_ids, needs, chain)
        tokens = open_tokens(text, request, cache_dir=cache_dir)
    for contexts in tokens.parts.values():
        check_ids(contexts, vocab_size=loaded.vocab_size)
    with telling_counts(tokens, config):
        require_enough(tokens, config)
    return tokens


def chain_of(config: RunConfig) -> Chain:
    """Say which training documents settings mean."""
    if isinstance(config, DistillationConfig | CoreTrainingConfig):
        return Chain(config.chain_index, config.chains)
    return WHOLE


def tokens_needed(config: RunConfig, *, margin: float) -> dict[Part, int | None]:
    """Say how many tokens of each part to read; null is all there are. What trains nothing only evaluates.

    Training reads as many as the scale is taken from, at least, so that a small budget has the same scale.
    Beyond a single epoch it reads those of the inference threshold, which are not to be trained on.
    """
    wanted: dict[Part, int | None] = {"training": 0, "attribution": 0}
    if isinstance(config, CycleConfig):
        training = config.training
        n_training = None if training.n_tokens is None else math.ceil(training.n_tokens / training.epochs)
        if n_training is not None and training.epochs == 1:
            n_training += training.threshold_tokens
        wanted["training"] = None if n_training is None else max(n_training, SCALE_TOKENS)
        wanted["attribution"] = config.attribution.n_tokens
    wanted["evaluation"] = config.evaluation.n_tokens
    return {part: None if n is None else math.ceil(n * (1 + margin)) for part, n in wanted.items()}


def require_enough(tokens: TokenisedText, config: RunConfig) -> None:
    """Refuse a part that holds fewer tokens than are asked for, whatever their norms.

    Raises: CycleFailed with `dataset_exhausted`.
    """
    n_wanted: dict[Part, int] = {"evaluation": config.evaluation.n_tokens}
    if isinstance(config, CycleConfig):
        token_budget(config.training, n_available=tokens.n_candidates["training"])
        n_wanted = {"attribution": config.attribution.n_tokens, **n_wanted}
    for part, n_tokens in n_wanted.items():
        require_tokens(tokens.n_candidates[part], n_tokens=n_tokens, part=part)


@contextmanager
def telling_counts(tokens: TokenisedText, config: RunConfig) -> Iterator[None]:
    """Add to a refusal for too little text what was seen of it."""
    try:
        yield
    except CycleFailed as failure:
        if failure.failure != "dataset_exhausted":
            raise
        n_tokens = sum(tokens.n_candidates.values())
        seen = f"Seen: {tokens.n_documents} documents, {n_tokens} tokens, {_rows(tokens)}."
        chain = chain_of(config)
        if chain.n_chains > 1:
            seen += (
                f" Training documents of other chains are not among them: chain_index = {chain.chain_index}, "
            )
            seen += f"chains = {chain.n_chains}."
        raise CycleFailed(failure.failure, f"{failure.message} {seen}", param=failure.param) from failure


def tell_skipped(tokens: TokenisedText, report: Report) -> None:
    """Report the rows that were left out, if any."""
    if tokens.n_rows_skipped:
        report.event("rows_skipped", f"Of the text, {_rows(tokens)}.", dict(tokens.n_rows_skipped))


def _rows(tokens: TokenisedText) -> str:
    skipped = tokens.n_rows_skipped
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(skipped.items()))
    return f"{sum(skipped.values())} rows skipped" + (f" ({reasons})" if reasons else "")
