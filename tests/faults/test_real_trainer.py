"""The real trainer on a tiny model, its worker killed in mid cycle: the job succeeds, with one lineage."""

import os
import signal
from pathlib import Path

import pytest
from sqlalchemy import select

from dmsae.service.tables import Artifact, Attempt, Cycle, Latent, MetricPoint
from tests.faults.crew import Crew, wait_for
from tests.planting import cycle_states, outcomes, plant_job
from tests.tiny import save_tiny_model, tiny_config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.slow
def test_a_distillation_survives_the_death_of_its_worker_in_training(crew: Crew, model: Path) -> None:
    crew.env["DMSAE_ALLOWED_ROOTS"] = str(model.parent)
    config = tiny_config(model, n_cycles=2)
    job_id = crew.database.run(lambda s: plant_job(s, "cpu", n_cycles=2, config=config))
    crew.start_sweeper()
    worker = crew.start_real_worker()

    def is_training() -> bool:
        with crew.database.session_scope() as session:
            return session.scalars(select(MetricPoint.step)).first() is not None

    wait_for(is_training, seconds=60, what="training begins")
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.wait(5) == -signal.SIGKILL
    wait_for(lambda: crew.orphans() == [], seconds=5, what="the trainer dies with its supervisor")
    crew.start_real_worker()
    crew.wait_until(job_id, "succeeded", seconds=90)

    with crew.database.session_scope() as session:
        assert cycle_states(session, job_id) == ["succeeded"] * 2
        assert outcomes(session, job_id)[-1] == "succeeded"
        assert outcomes(session, job_id).count("succeeded") == 2
        names = session.scalars(select(Artifact.name).join(Cycle, Cycle.id == Artifact.cycle_id)).all()
        assert names.count("manifest.json") == names.count("sae/sae_weights.safetensors") == 2
        origins = set(session.scalars(select(Latent.origin_cycle).where(Latent.origin_job_id == job_id)))
        assert origins <= {0, 1}
        fences = session.scalars(select(Attempt.fence).where(Attempt.outcome == "succeeded")).all()
        assert set(session.scalars(select(MetricPoint.fence))) <= set(fences)
