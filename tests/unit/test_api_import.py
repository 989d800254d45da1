"""The API process stays light, and importing it does nothing."""

import os
import subprocess
import sys

HEAVY = ("torch", "transformers", "numpy", "scipy", "safetensors", "gguf", "matplotlib")


def test_importing_the_api_loads_no_torch_and_needs_no_settings() -> None:
    code = f"import sys, api.main, api.__main__; print([name for name in {HEAVY!r} if name in sys.modules])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DMSAE_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
