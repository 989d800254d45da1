"""Every link, command and block of code of the handbook, docs/ and the README is right."""

import pytest

from tests.page_rules import SHELL, commands_in, complaints
from tests.pages import ROOT, Page, page_paths, parse, read_page

PAGES = {path.relative_to(ROOT).as_posix(): path for path in page_paths()}
HOW_TOS = ("bring_a_model", "bring_a_text", "slurm_gpu", "own_s3", "reuse_a_core", "export", "read_a_result")


def page_of(text: str) -> Page:
    return parse(ROOT / "docs" / "handbook" / "made_up.md", text)


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wrong_with_a_page(name: str) -> None:
    assert complaints(read_page(PAGES[name])) == []


def test_the_handbook_has_the_tutorial_and_a_page_for_each_how_to_with_something_to_check() -> None:
    for name in ("tutorial", *HOW_TOS):
        page = read_page(PAGES[f"docs/handbook/{name}.md"])
        assert page.blocks
        assert name == "read_a_result" or any(
            block.request or any(commands_in(block.text)) for block in page.blocks
        )


def test_commands_are_found_wherever_they_stand_in_a_block() -> None:
    text = "JOB=$(dmsae submit a.json)\n$ make demo  # make nothing\n"
    text += 'X=1 dmsae down && curl -s "$DMSAE_URL/queue"\n'
    text += "dmsae latents --json |\n  python -c 'print()'\n .venv/bin/dmsae up   dmsae queue resume\n"
    assert [" ".join(words) for words in commands_in(text)] == [
        "dmsae submit a.json",
        "make demo",
        "dmsae down",
        "curl -s $DMSAE_URL/queue",
        "dmsae latents --json",
        ".venv/bin/dmsae up",
        "dmsae queue resume",
    ]
    found = [read_page(path) for path in PAGES.values()]
    shell = [block.text for page in found for block in page.blocks if block.language in SHELL]
    assert sum(len(list(commands_in(text))) for text in shell) > 50


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[here](nowhere.md)", "nowhere.md leads nowhere"),
        ("[here](../method.md#11-dream)", "there is no such part"),
        ("[here](reference/errors.md#no-such)", "there is no such part"),
        ("![figure](nowhere.svg)", "nowhere.svg leads nowhere"),
        ("[there](http://example.org)", "is no https link"),
        ("`dmsae watches JOB`", "watches"),
        ("`dmsae watch --fast`", "--fast"),
        ("    dmsae watch\n", "issing"),
        ("    dmsae submit demo --dry-ran\n", "--dry-ran"),
        ("    dmsae latents --most 0\n", "--most"),
        ("`make everything`", "there is no such target"),
        ("`GET /latent/{id}`", "the API has no GET /latent/{id}"),
        ("    curl -s localhost:8000/origins\n", "the API has no GET /origins"),
        ("    curl -s -X POST localhost:8000/trainings -d '{\"kore\": {}}'\n", "kore"),
        ('```json\n{"preset": demo}\n```', "json that cannot be read"),
        ('<!-- request: POST /distillations -->\n```json\n{"sae": {"k": "32"}}\n```', "$.sae.k"),
        (
            '<!-- request: POST /distillations -->\n```json\n{"preset": "demo", "sae": {"k": 2000}}\n```',
            "at most",
        ),
        ("```python\nwith Client() as client\n```", "python that cannot be read"),
        ("```python\nfrom dmsae.client.client import Klient\n```", "has no Klient"),
        ("```python\nimport no_such_library\n```", "there is no such module"),
        ("```yaml\na: [\n```", "yaml that cannot be read"),
        ("`DMSAE_LEASE`", "DMSAE_LEASE is no setting"),
        ("`no_such_file.py`", "there is no file"),
    ],
)
def test_what_is_wrong_is_found(text: str, complaint: str) -> None:
    assert [found for found in complaints(page_of(text)) if complaint in found]
