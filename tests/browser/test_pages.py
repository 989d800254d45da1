"""Every page, in both themes and on a phone: open to all, light to load, and looked at."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from tests.browser.lab import Lab
from tests.browser.tab import DESK, PHONE, Tab

MOST_BYTES = 500_000


class Place(NamedTuple):
    """A page: what its heading says, where it is, and what is seen once all of it is there."""

    heading: str
    address: Callable[[Lab], str]
    whole: Callable[[Page], Locator]


PLACES = {
    "jobs": Place(
        "Jobs", lambda _: "#/jobs", lambda page: page.get_by_role("link", name="planted 1", exact=True)
    ),
    "job": Place(
        "marked",
        lambda lab: f"#/jobs/{lab.distillation}",
        lambda page: page.get_by_role("log").get_by_text("job_succeeded"),
    ),
    "queue": Place("Queue", lambda _: "#/queue", lambda page: page.get_by_role("link", name="planted 10000")),
    "lineage": Place(
        "Lineage",
        lambda lab: f"#/jobs/{lab.distillation}/lineage",
        lambda page: page.get_by_role("img").nth(1),
    ),
    "latent": Place(
        "Latent", lambda lab: f"#/latents/{lab.shared_latent()}", lambda page: page.get_by_role("mark").last
    ),
    "compare": Place(
        "Compare",
        lambda lab: f"#/compare?jobs={lab.distillation},{lab.training}",
        lambda page: page.get_by_role("img").nth(2),
    ),
    "submit": Place(
        "Submit", lambda _: "#/submit", lambda page: page.get_by_role("region", name="Widths of each cycle")
    ),
}


def serious_faults(tab: Tab) -> list[str]:
    """Give what axe finds that keeps somebody from using the page."""
    found = Axe().run(tab.page).response["violations"]
    return [
        f"{fault['id']} ({fault['impact']}): {fault['help']}: {node['html']}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


@pytest.mark.parametrize("name", PLACES)
def test_a_page_is_open_to_all_in_both_themes_fits_a_phone_and_is_light(
    finished: Lab, tab: Tab, name: str
) -> None:
    place = PLACES[name]
    page = tab.show(place.address(finished), place.heading)
    expect(place.whole(page).first).to_be_attached()
    expect(page.get_by_role("main").locator(".loading")).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(0)
    assert tab.shifts() == []
    tab.shoot(f"{name}-light")
    assert serious_faults(tab) == []
    drawn = [(image, image.get_attribute("src") or "") for image in page.locator("main img").all()]
    tab.see("dark")
    for image, source in drawn:
        expect(image).not_to_have_attribute("src", source)
    tab.shoot(f"{name}-dark")
    assert serious_faults(tab) == []
    tab.resize(PHONE)
    tab.shoot(f"{name}-phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    tab.resize(DESK)
    assert 0 < tab.n_bytes <= MOST_BYTES


def test_the_theme_that_was_chosen_holds_when_one_comes_back(tab: Tab) -> None:
    page = tab.show("#/jobs", "Jobs")
    button = page.get_by_role("button", name="Theme")
    for theme in ("light", "dark"):
        button.click()
        expect(button).to_have_text(f"Theme: {theme}")
    tab.show("#/queue", "Queue")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
