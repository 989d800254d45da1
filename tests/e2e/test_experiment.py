"""The experiment on a plan of seconds: every job over HTTP, once, and a report of what they found."""

from pathlib import Path

from dmsae.client.client import Client
from experiments import figures, jobs, report, results
from experiments.plan import Plan
from tests.e2e.site import Site
from tests.tiny import uncompiled_config


def test_an_experiment_runs_to_its_report_and_finds_what_was_done_before(site: Site, tmp_path: Path) -> None:
    plan = Plan(
        name="tiny",
        base=uncompiled_config(site.model, n_cycles=1),
        core_sparsities=("batch_topk",),
        seeds=(0,),
        ks=(4,),
        n_chains=2,
        arms=("distilled", "none", "energy"),
    )
    with Client(str(site.http.base_url)) as client:
        distilled, trained = jobs.run(client, plan, print, poll_s=0.2)
        chains = list(jobs.wait_for_chains(client, plan, print, poll_s=0.2))
        again = jobs.run(client, plan, print, poll_s=0.2)
        found = results.collect(client, plan, distilled=distilled, trained=trained, chains=chains)

    assert [{job["id"] for job in part.values()} for part in again] == [
        {job["id"] for job in part.values()} for part in (distilled, trained)
    ]
    assert (len(distilled), len(trained), len(found["chains"])) == (1, 3, 1)
    by_arm = {(record["arm"], record["seed"]): record for record in found["trainings"]}
    assert by_arm["none", 0]["p_1"] == by_arm["distilled", 0]["p_1"]
    assert by_arm["none", 0]["retention"] is None
    assert by_arm["energy", 0]["overlap"] is not None
    told = report.write(plan, found, figures.draw(plan, found, tmp_path))
    assert told.count("- Against") == 2
    assert "of each final core is reproduced by another chain" in told
