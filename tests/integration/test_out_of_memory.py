"""A trainer that really runs out of memory: what its job is told."""

import re
import sys
from dataclasses import replace
from pathlib import Path

from sqlalchemy import update

from dmsae.config import DistillationConfig
from dmsae.service.tables import Job
from tests.tiny import save_tiny_model, uncompiled_config
from tests.worker_bench import Bench

ADDRESS_SPACE = 6 * 10**9
LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({ADDRESS_SPACE}, {ADDRESS_SPACE}))
from dmsae.cycle import main
sys.exit(main())
"""


def test_a_job_without_the_memory_for_it_is_told_the_estimate_the_device_and_what_to_change(
    bench: Bench, tmp_path: Path
) -> None:
    model = save_tiny_model(tmp_path / "model")
    settings = uncompiled_config(model)
    settings["sae"] = {**settings["sae"], "n_latents": 16_000_000}
    config = DistillationConfig.model_validate(settings).model_dump(mode="json")
    bench.plant()
    with bench.database.session_scope() as session:
        session.execute(update(Job).where(Job.id == bench.job_id).values(config=config))
    bench.runtime.command = (sys.executable, "-c", LIMITED)
    bench.runtime.worker = replace(bench.runtime.worker, memory_bytes=ADDRESS_SPACE)
    bench.runtime.settings = bench.runtime.settings.model_copy(update={"allowed_roots": [tmp_path]})

    assert bench.run() == "crashed"  # and is tried once more, in parts
    error = bench.attempt().error
    assert error is not None
    assert error["code"] == "out_of_memory"
    estimated = re.search(r"estimated to take (\d+\.\d+) GB, most while \w+", error["message"])
    assert estimated is not None
    assert float(estimated[1]) > ADDRESS_SPACE / 1e9
    assert f"The device has {ADDRESS_SPACE / 1e9:.2f} GB" in error["message"]
    assert "use a larger device" in error["message"]
