"""A worker whose trainers are fake: `celery -A tests.faults.fake_worker worker ...`."""

import sys
from pathlib import Path

from worker.app import make_app

app = make_app(command=(sys.executable, str(Path(__file__).parents[1] / "fake_trainer.py")))
