"""From the form to the end of a job: what is wrong stands beside its field, what runs is seen to run."""

import re

from playwright.sync_api import Browser, expect

from tests.browser.lab import Lab
from tests.browser.tab import Tab, opened

LISTEN = """() => {
  const bar = document.querySelector("[role=progressbar]");
  window.told = [];
  new MutationObserver(() => window.told.push(Number(bar.ariaValueNow))).observe(bar, {attributes: true});
}"""
"""Keeps what the bar of the whole job says, however shortly it says so."""


def lineage_follows(tab: Tab, job: str) -> None:
    """Look at a running job's lineage in a second tab: it is drawn as the job goes on, and nothing moves."""
    page = tab.open(f"#{job}/lineage")
    expect(page.get_by_text("No cycle has finished yet.").first).to_be_visible()
    expect(page.get_by_role("img")).to_have_count(2, timeout=90_000)
    expect(page.get_by_role("region", name="Latents of the core").get_by_role("link").first).to_be_visible()
    assert tab.shifts() == []


def test_a_job_is_submitted_through_the_form_and_watched_to_its_end_without_reloading(
    browser: Browser, lab: Lab, tab: Tab
) -> None:
    page = tab.show(f"#/submit?clone={lab.distillation}", "Submit")
    page.get_by_label("name", exact=True).fill("from the form")
    page.get_by_label("n_cycles", exact=True).fill("1")
    would_be = page.get_by_role("complementary", name="What it would be")
    widths = would_be.get_by_role("region", name=re.compile("Widths of each cycle"))
    expect(widths.get_by_role("row")).to_have_count(2)
    page.get_by_role("button", name="Submit").click()

    expect(page.get_by_role("heading", level=1)).to_have_text("from the form")
    loaded_at = page.evaluate("performance.timeOrigin")
    state = page.locator(".badge").first
    expect(state).to_contain_text("running")
    settled = tab.shifts()
    page.evaluate(LISTEN)
    with opened(browser, lab.url) as second:
        lineage_follows(second, page.url.partition("#")[2])
    expect(state).to_contain_text("succeeded")
    expect(page.get_by_role("progressbar", name="Of the whole job")).to_have_attribute("aria-valuenow", "100")
    expect(page.get_by_role("region", name="Cycles side by side")).to_contain_text("succeeded")
    expect(page.get_by_role("log", name="Events")).to_contain_text("job_succeeded")
    assert [share for share in page.evaluate("window.told") if 0 < share < 100] != []
    assert tab.shifts() == settled
    assert page.evaluate("performance.timeOrigin") == loaded_at


def test_what_is_wrong_is_said_beside_its_field_as_one_types(lab: Lab, tab: Tab) -> None:
    page = tab.show("#/submit", "Submit")
    page.get_by_label("name", exact=True).fill("never submitted")
    n_cycles = page.get_by_label("n_cycles", exact=True)
    n_cycles.fill("-3")
    expect(n_cycles).to_have_attribute("aria-invalid", "true")
    expect(n_cycles).to_have_accessible_description(re.compile("greater than or equal to 1"))
    k = page.get_by_label("sae.k", exact=True)
    k.fill("many")
    expect(k).to_have_accessible_description(re.compile("valid integer"))
    page.get_by_role("button", name="Submit").click()
    expect(n_cycles).to_be_focused()
    n_cycles.fill("3")
    k.fill("32")
    expect(n_cycles).not_to_have_attribute("aria-invalid", "true")
    assert lab.site.get("/jobs", text="never submitted")["items"] == []
