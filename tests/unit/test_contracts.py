"""The import contracts speak of every module: one that nobody listed would be free of them."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_module_of_the_method_stands_in_the_import_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    listed = next(c["source_modules"] for c in contracts if c["name"].startswith("the method knows"))
    forbidden = next(c["forbidden_modules"] for c in contracts if "by command only" in c["name"])
    modules = {f"dmsae.{file.stem}" for file in (ROOT / "dmsae").glob("*.py")} - {
        "dmsae.__init__",
        "dmsae.cli",
        "dmsae.version",
    }
    assert set(listed) == modules
    shared = {"config", "errors", "presets", "probe_config", "sources"}
    assert set(forbidden) == modules - {f"dmsae.{name}" for name in shared}
