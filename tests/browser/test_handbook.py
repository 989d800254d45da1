"""The handbook in a browser, under the policy that it is served with: read, searched, in both themes."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

import api.handbook_site
from api.contract import NOWHERE
from dmsae.service.settings import settings_from
from handbook.building import build_site
from tests.browser.tab import PHONE, opened
from tests.browser.test_pages import serious_faults
from tests.serving import served

PAGES = {
    "docs/handbook/tutorial/": "Tutorial",
    "docs/method/": "The method",
    "docs/handbook/reference/errors/": "Errors",
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An API without anything behind it, which serves a handbook built just now."""
    folder = tmp_path_factory.mktemp("handbook") / "docs"
    assert build_site(folder) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.handbook_site, "FOLDER", folder)
        with served(settings_from(NOWHERE)) as client:
            yield str(client.base_url).rstrip("/")


def test_pages_of_the_handbook_are_open_to_all_in_both_themes_and_fit_a_phone(
    browser: Browser, url: str
) -> None:
    with opened(browser, url) as tab:
        for place, heading in PAGES.items():
            page = tab.show(place, heading)
            tab.shoot(f"handbook-{place.rstrip('/').rpartition('/')[2]}")
            for theme in ("light", "dark"):
                tab.see(theme)
                assert serious_faults(tab) == []
        page = tab.show("docs/method/", "The method")
        assert page.locator("math").first.bounding_box()["height"] > 15
        tab.resize(PHONE)
        page = tab.show("docs/handbook/tutorial/", "Tutorial")
        tab.shoot("handbook-phone")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_handbook_is_searched_by_keyboard_and_asks_nobody_else(browser: Browser, url: str) -> None:
    with opened(browser, url) as tab:
        page = tab.show("docs/handbook/", "Handbook")
        page.keyboard.press("/")
        page.keyboard.type("width-matched")
        found = page.get_by_role("region", name="Found").get_by_role("link", name="same width")
        expect(found).to_be_visible()
        found.press("Enter")
        expect(page.get_by_role("heading", name="Always a control of the same width")).to_be_visible()


def test_the_chosen_theme_holds_on_the_next_page(browser: Browser, url: str) -> None:
    with opened(browser, url) as tab:
        page = tab.show("docs/handbook/", "Handbook")
        for theme in ("light", "dark"):
            page.get_by_role("button", name="Theme").click()
            expect(page.locator("html")).to_have_attribute("data-theme", theme)
        page.get_by_role("link", name="Glossary").first.click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("Glossary")
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
