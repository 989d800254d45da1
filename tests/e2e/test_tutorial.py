"""The tutorial's commands, run in its order on the tests' own stack: a tiny model stands in for SmolLM2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.site import Site
from tests.pages import ROOT, Block, read_page
from tests.tiny import uncompiled_config

TUTORIAL = read_page(ROOT / "docs" / "handbook" / "tutorial.md")
RUN = [block for block in TUTORIAL.blocks if block.language in ("sh", "python")]
BESIDE = [block.text.split("#")[0].strip() for block in TUTORIAL.blocks if not block.language]
"""What needs a fresh checkout or a stack of its own."""
MARK = "== the next block"
MAKE_TINY = 'python -c \'import os, pathlib; pathlib.Path("first.json").write_text(os.environ["TINY"])\''
"""Stands behind the first block, once the real settings were tried dry."""


def in_shell(block: Block) -> str:
    return block.text if block.language == "sh" else f"python - <<'END'\n{block.text}END\n"


@pytest.fixture(scope="module")
def outputs(site: Site, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    head, *rest = [f"echo '{MARK}'\n{in_shell(block)}" for block in RUN]
    script = "\n".join(["set -euo pipefail", head, MAKE_TINY, *rest])
    settings = uncompiled_config(site.model, n_cycles=2, seed=1)
    env = {
        **site.env,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DMSAE_URL": str(site.http.base_url),
        "TINY": json.dumps({**settings, "name": "my first distillation"}),
        "XDG_CONFIG_HOME": str(folder),
        "COLUMNS": "200",
    }
    ran = subprocess.run(
        ["bash"], input=script, cwd=folder, env=env, capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, (ran.stdout[-3000:], ran.stderr[-3000:])
    assert (folder / "first" / "cycle_1" / "sae" / "cfg.json").is_file()
    assert (folder / "first" / "origins.svg").read_text().startswith("<?xml")
    assert (folder / "first" / "lineage.jsonl").read_text().count("latent_id") > 0
    return ran.stdout.split(f"{MARK}\n")[1:]


def test_the_dry_run_of_the_real_settings_tells_the_widths_of_cycle_0(outputs: list[str]) -> None:
    told = json.loads(outputs[0])
    assert [cycle["is_exact"] for cycle in told["cycles"]] == [True, False]
    assert told["cycles"][0]["prefix_widths"] == [128, 256, 512, 768, 1024]


def test_the_job_is_followed_to_its_end_and_the_questions_are_answered(outputs: list[str]) -> None:
    assert len(outputs) == len(RUN)
    watched, origins, alive, dropped, story = outputs[1:6]
    assert "All cycles are done." in watched
    matrix = json.loads(origins)["matrix"]
    n_kept, n_new = matrix[1]
    assert matrix[0] == [matrix[0][0], 0]
    assert 0 < alive.count(".0.") <= min(10, n_kept)
    assert (dropped.count("job_") > 0) == (n_kept < matrix[0][0])
    assert "learned in cycle" in story
    assert "selected" in story
    taken, listed = outputs[6:8]
    assert "cycle_1" in taken
    assert len(listed.splitlines()) == matrix[0][0] + n_new


def test_what_the_test_leaves_to_others_is_the_installation_and_the_stack_of_ones_own() -> None:
    assert BESIDE == ["make demo", 'export PATH="$PWD/.venv/bin:$PATH"\ndmsae up --detach', "dmsae down"]
    assert "make demo" in (ROOT / ".ci" / "run").read_text().splitlines()
