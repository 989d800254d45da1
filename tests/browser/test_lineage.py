"""The heart of it: where a job's latents come from, and what became of one of them in another job."""

import re

from playwright.sync_api import Route, expect

from tests.browser.lab import MARKUP, Lab
from tests.browser.tab import Tab

HOSTILE = {
    "density": 0.02,
    "logit_lens": {
        "promoted": [{"token": MARKUP, "value": 3.5}],
        "suppressed": [{"token": "<b onclick=0>", "value": -1.0}],
    },
    "max_activation": 4.0,
    "deciles": [
        {
            "decile": 10,
            "from": 3.6,
            "to": 4.0,
            "snippets": [
                {
                    "kind": "strongest",
                    "tokens": ["a ", MARKUP, " z"],
                    "activations": [0.0, 4.0, 0.0],
                    "peak": 1,
                }
            ],
        }
    ],
}


def test_one_latent_is_followed_from_its_origin_into_the_job_that_reused_its_core(
    finished: Lab, tab: Tab
) -> None:
    latent_id = finished.shared_latent()
    page = tab.show(f"#/jobs/{finished.distillation}", "marked")
    page.get_by_role("main").get_by_role("link", name="Lineage").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Lineage of marked")
    for figure in (
        "Core latents by the cycle that learned them",
        "Latents kept, new and dropped in each cycle",
    ):
        expect(page.get_by_role("figure").filter(has_text=figure).get_by_role("img")).to_be_visible()
    core = page.get_by_role("region", name="Latents of the core")
    origin = re.compile(rf"^{re.escape(latent_id.split('.', 1)[1])}$")
    core.get_by_role("link", name=origin).click()

    expect(page.get_by_role("heading", level=1)).to_contain_text(latent_id[-12:])
    expect(page.get_by_role("main")).to_contain_text("Learned in cycle")
    expect(page.get_by_role("region", name=re.compile("path through the cycles of marked"))).to_be_visible()
    descendants = page.locator("section").filter(has=page.get_by_role("heading", name="Descendants"))
    expect(descendants).to_contain_text("given as part of a core")
    descendants.get_by_role("link", name="around it").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Lineage of around it")
    expect(page.get_by_role("region", name="Latents of the core")).to_contain_text(latent_id.split(".", 1)[1])


def test_the_texts_of_a_latent_are_shown_with_the_tokens_at_which_it_fires(finished: Lab, tab: Tab) -> None:
    page = tab.show(f"#/latents/{finished.shared_latent()}", "Latent")
    texts = page.get_by_role("group").filter(has_text="Tenth 10")
    expect(texts.get_by_role("mark").first).to_be_visible()
    expect(page.get_by_role("region", name="Tokens: promotes")).to_be_visible()


def test_texts_and_tokens_that_are_markup_are_shown_as_text(finished: Lab, tab: Tab) -> None:
    def answer(route: Route) -> None:
        route.fulfill(json=HOSTILE)

    tab.page.route("**/snippets*", answer)
    page = tab.show(f"#/latents/{finished.shared_latent()}", "Latent")
    expect(page.get_by_role("mark").filter(has_text=MARKUP)).to_be_visible()
    expect(page.get_by_role("region", name="Tokens: promotes")).to_contain_text(MARKUP)
    expect(page.get_by_role("region", name="Tokens: suppresses")).to_contain_text("<b onclick=0>")
    assert page.evaluate("window.hacked") is None
