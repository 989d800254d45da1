"""What stands is looked at before a claim waits for its turn, and not while others wait for it.

Whether a cycle is starved or of high priority, and whose activations lie elsewhere, may be as old as the wait
for the lock; a pause, who used how much and what is still queued may not. The hours of a week are kept to be
shown, so those of the window are found by an index.
"""

import runpy
from pathlib import Path

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

TAKE_LOCK = "    PERFORM pg_advisory_xact_lock(1684894465);\n"
TAKE_TIME = """    v_now := clock_timestamp();
    v_starved_since := v_now - make_interval(secs => p_starvation_s);
"""
IF_PAUSED = "IF v_is_paused THEN"
IF_PAUSED_NOW = "IF EXISTS (SELECT FROM queue_pauses) THEN"
NO_LONGER_ASKED = (
    "        EXISTS (SELECT FROM queue_pauses),\n",
    "v_is_paused, ",
    "    v_is_paused boolean;\n",
)


def upgrade() -> None:
    op.create_index("ix_usage_slices_began_at", "usage_slices", ["began_at"])
    op.execute(claim_cycle())


def downgrade() -> None:
    op.execute(_before()["CLAIM_CYCLE"])
    op.drop_index("ix_usage_slices_began_at", table_name="usage_slices")


def claim_cycle() -> str:
    """Give the claim of this revision."""
    before = _before()
    stands, claim = before["SAY_WHAT_STANDS"], before["CLAIM_CYCLE"]
    without = claim.replace(f"    {stands}", "").replace(IF_PAUSED, IF_PAUSED_NOW)
    claim = without.replace(TAKE_LOCK, f"{TAKE_TIME}    {stands}{TAKE_LOCK}")
    for text in NO_LONGER_ASKED:
        claim = claim.replace(text, "")
    return claim


def _before() -> dict[str, str]:
    return runpy.run_path(str(Path(__file__).with_name("0007_states_and_claims.py")))
