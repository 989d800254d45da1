"""What does the experiment say, in words and tables, whichever way its records fall?"""

from collections.abc import Iterator
from pathlib import Path

from experiments.plan import ARMS, Plan
from experiments.results import FIGURES, Estimate, Record, differences, of_arm


def write(plan: Plan, found: Record, figures: list[Path]) -> str:
    """Write the report as Markdown."""
    n_seeds = len(plan.seeds)
    n_tokens = {record["n_tokens"] for record in found["trainings"] if record["arm"] == "distilled"}
    lines = [
        f"Size `{plan.name}`: SmolLM2-135M after layer 10, the language reference of `pydoc_data.topics`, "
        f"{' or '.join(f'{n:,}' for n in sorted(n_tokens))} tokens trained on in a cycle, {n_seeds} seeds; "
        "mean ± standard error over seeds. Every row is a training of one cycle; all of one k and seed start "
        "from the same seed.",
        "",
    ]
    for core_sparsity in plan.core_sparsities:
        for k in plan.ks:
            lines += _table(plan, found["trainings"], core_sparsity=core_sparsity, k=k)
            lines += ["", *_verdicts(plan, found["trainings"], core_sparsity=core_sparsity, k=k), ""]
    lines += [*_distilling(found), *_chains(found), ""]
    lines += [f"![{path.stem}]({path.parent.name}/{path.name})" for path in figures]
    return "\n".join(lines) + "\n"


def _table(plan: Plan, records: list[Record], *, core_sparsity: str, k: int) -> Iterator[str]:
    yield f"`{core_sparsity}`, k = {k}:"
    yield ""
    yield f"| around | {' | '.join(FIGURES.values())} |"
    yield f"| --- |{' --- |' * len(FIGURES)}"
    for arm in plan.arms:
        of_this = of_arm(records, arm=arm, core_sparsity=core_sparsity, k=k)
        cells = [Estimate.of(record[figure] for record in of_this) for figure in FIGURES]
        weak = " (a weak control)" if any(record["is_weak_control"] for record in of_this) else ""
        yield f"| {ARMS[arm]}{weak} | {' | '.join('-' if cell is None else str(cell) for cell in cells)} |"


def _verdicts(plan: Plan, records: list[Record], *, core_sparsity: str, k: int) -> Iterator[str]:
    """Compare the distilled core with each control, seed by seed."""
    yield "Differences seed by seed with 95% intervals (Student's t, not corrected for their number):"
    yield ""
    ours = of_arm(records, arm="distilled", core_sparsity=core_sparsity, k=k)
    for arm in plan.arms:
        if arm == "distilled":
            continue
        others = of_arm(records, arm=arm, core_sparsity=core_sparsity, k=k)
        difference = differences(ours, others, "ce_first")
        if difference is not None:
            yield f"- Against {ARMS[arm]}: {_verdict(difference)}."


def _verdict(difference: Estimate) -> str:
    mean, half_width = difference.mean, difference.half_width
    told = f"CE increase of the most nested prefix {mean:+.3f} nats"
    if half_width is None:
        return f"{told}, of one seed: nothing can be said of chance"
    told = f"{told} ± {half_width:.3f}"
    if abs(mean) < half_width:
        return f"{told}, no difference that these seeds can show"
    return f"{told}, the distilled core is {'better' if mean < 0 else 'worse'}"


def _distilling(found: Record) -> Iterator[str]:
    yield "Distillations: core and retention by cycle, median density of the last core:"
    yield ""
    for record in found["distillations"]:
        cores = ", ".join(str(cycle["n_core"]) for cycle in record["cycles"])
        kept = ", ".join(f"{cycle['retention']:.3f}" for cycle in record["cycles"][1:])
        density = record["cycles"][-1]["core_density"]
        yield (
            f"- {record['core_sparsity']}, seed {record['seed']}: cores {cores}; retention {kept}; "
            f"density {density:.3f}"
        )


def _chains(found: Record) -> Iterator[str]:
    for group in found["chains"]:
        match = group["match"]
        shares = ", ".join("-" if share is None else f"{share:.3f}" for share in match["share_reproduced"])
        baseline = max(pair["best_cosine_random"] for pair in match["pairs"])
        yield ""
        yield (
            f"Chains on disjoint documents: {shares} of each final core is reproduced by another chain; the "
            f"best match of random directions has cosine {baseline:.2f}."
        )
