"""The list of jobs, of which there are ten thousand."""

from playwright.sync_api import Page, expect

from tests.browser.lab import Lab
from tests.browser.tab import PHONE, Tab

LATE_MS = 5000
"""A first paint later than this is broken; how fast it is stands in `make bench`."""


def rows(page: Page) -> list[str]:
    """Give the names of the jobs that are shown."""
    return page.get_by_role("table").get_by_role("link").all_inner_texts()


def test_ten_thousand_jobs_are_painted_at_once_and_one_is_found_among_them(tab: Tab) -> None:
    page = tab.show("#/jobs", "Jobs")
    expect(page.get_by_role("link", name="planted 1", exact=True)).to_be_visible()
    paint_ms = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint_ms < LATE_MS
    assert len(rows(page)) <= 50
    page.get_by_label("Text").fill("planted 9876")
    expect(page.get_by_role("table").get_by_role("link")).to_have_text(["planted 9876"])


def test_jobs_are_narrowed_by_owner_and_state_and_turned_page_by_page(tab: Tab) -> None:
    page = tab.show("#/jobs", "Jobs")
    page.get_by_label("Owner").fill("ada")
    page.get_by_label("State").select_option("failed")
    shown = page.get_by_role("table").get_by_role("row").filter(has=page.get_by_role("link"))
    expect(shown.filter(has_text="grace")).to_have_count(0)
    expect(shown.filter(has_text="succeeded")).to_have_count(0)
    expect(shown.first).to_contain_text("the disk of its worker is full")
    newest = rows(page)
    page.get_by_role("button", name="Older").click()
    expect(page.get_by_role("link", name=newest[0], exact=True)).to_have_count(0)
    assert len(rows(page)) == len(newest) == 50
    page.get_by_role("button", name="Newest").click()
    expect(page.get_by_role("link", name=newest[0], exact=True)).to_be_visible()


def test_a_failed_job_says_why_and_what_to_do(tab: Tab) -> None:
    page = tab.show("#/jobs/dst_00000002", "planted 2")
    expect(page.get_by_text("Cycle 0 failed: the disk of its worker is full.")).to_be_visible()
    expect(page.get_by_text("Make room on the worker's disk, then retry.")).to_be_visible()
    expect(page.get_by_role("button", name="Retry")).to_be_enabled()


def test_what_comes_while_one_reads_waits_for_a_click_and_what_changes_moves_nothing(
    lab: Lab, tab: Tab
) -> None:
    page = tab.show("#/jobs", "Jobs")
    expect(page.get_by_role("link", name="planted 1", exact=True)).to_be_visible()
    loaded_at = page.evaluate("performance.timeOrigin")
    page.get_by_role("table").hover()
    before = rows(page)
    job_id = lab.slow_job(name="soon to change")
    fresh = page.get_by_role("button", name="Show 1 new", exact=True)
    expect(fresh).to_be_visible()
    assert rows(page) == before
    fresh.click()
    expect(page.get_by_role("table").get_by_role("link").first).to_have_text("soon to change")
    expect(fresh).to_be_hidden()
    row = page.get_by_role("row").filter(has_text="soon to change")
    expect(row).to_contain_text("running")
    settled = tab.shifts()
    lab.site.http.post(f"/jobs/{job_id}/cancel").raise_for_status()
    expect(row).to_contain_text("cancelled")
    assert tab.shifts() == settled
    assert page.evaluate("performance.timeOrigin") == loaded_at


def test_on_a_phone_the_filters_are_folded_and_say_how_many_are_set(tab: Tab) -> None:
    tab.resize(PHONE)
    page = tab.show("#/jobs?owner=ada", "Jobs")
    fold = page.get_by_role("button", name="Filters: 1")
    expect(page.get_by_label("Owner")).to_be_hidden()
    fold.click()
    expect(fold).to_have_attribute("aria-expanded", "true")
    page.get_by_label("Owner").clear()
    expect(page.get_by_role("table")).to_contain_text("grace")
    expect(page.get_by_role("button", name="Filters", exact=True)).to_be_visible()
