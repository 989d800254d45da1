"""Whatever people or texts put into it, the page runs its own scripts alone, and asks this service alone."""

from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.lab import MARKUP, Lab
from tests.browser.tab import Tab, opened


def was_hacked(tab: Tab) -> bool:
    ran: bool = tab.page.evaluate("window.hacked === true")
    return ran


def test_a_job_whose_name_is_markup_is_shown_as_text(lab: Lab, tab: Tab) -> None:
    page = tab.show("#/jobs", "Jobs")
    page.get_by_label("Text").fill("onerror")
    expect(page.get_by_role("table").get_by_role("link")).to_have_text([f"marked {MARKUP}"])
    tab.show(f"#/jobs/{lab.distillation}", f"marked {MARKUP}")
    assert not was_hacked(tab)


def test_a_strict_policy_is_served_with_the_page_and_all_its_files(lab: Lab, tab: Tab) -> None:
    policies = {}
    tab.page.on(
        "response",
        lambda answer: policies.update({answer.url: answer.headers.get("content-security-policy")}),
    )
    tab.show("#/jobs", "Jobs")
    own = {url: policy for url, policy in policies.items() if urlsplit(url).path.startswith(("/ui/", "/#"))}
    page = lab.site.http.get("/").headers["content-security-policy"]
    assert len(own) > 5
    assert set(own.values()) == {page}
    said = dict(part.strip().split(" ", 1) for part in page.split(";"))
    assert (
        said["default-src"] == said["base-uri"] == said["form-action"] == said["frame-ancestors"] == "'none'"
    )
    assert said["script-src"] == said["style-src"] == said["connect-src"] == "'self'"


@pytest.mark.parametrize(
    "attempt", ["<script>window.hacked = true</script>", MARKUP, '<p style="color: red">']
)
def test_markup_that_came_into_the_page_all_the_same_would_be_stopped_and_noticed(
    browser: Browser, lab: Lab, attempt: str
) -> None:
    def insert(tab: Tab) -> None:
        tab.show("#/jobs", "Jobs")
        tab.page.evaluate(
            "markup => document.body.append(document.createRange().createContextualFragment(markup))", attempt
        )
        assert not was_hacked(tab)

    with pytest.raises(AssertionError, match="Content Security Policy"), opened(browser, lab.url) as tab:
        insert(tab)
