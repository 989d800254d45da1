"""Opens batches of SAEDashboard by its own classes and writes what these hold.

`python read_with_sae_dashboard.py FOLDER...`, run by the peers' interpreter, which has no DMSAE. Reads
`saedashboard/batch-N.json` of each folder; writes `opened/batch-N.json`.
"""

import json
import sys
from pathlib import Path

from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch

for folder in map(Path, sys.argv[1:]):
    (folder / "opened").mkdir()
    for file in (folder / "saedashboard").iterdir():
        batch = NeuronpediaDashboardBatch(**json.loads(file.read_text(encoding="utf-8")))
        (folder / "opened" / file.name).write_text(json.dumps(batch.to_dict()), encoding="utf-8")
