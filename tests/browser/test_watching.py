"""One job's page while something happens to it: cancelled, or the API gone for a while."""

from playwright.sync_api import Request, expect

from tests.browser.lab import HELD_JOB, Lab
from tests.browser.tab import Tab

LOADED_AT = "performance.timeOrigin"


def test_a_running_job_is_cancelled_after_being_asked_for_a_word(lab: Lab, tab: Tab) -> None:
    job_id = lab.slow_job(name="to be cancelled")
    page = tab.show(f"#/jobs/{job_id}", "to be cancelled")
    cancel = page.get_by_role("button", name="Cancel")
    cancel.click()
    asked = page.get_by_role("dialog", name="End this job?")
    asked.get_by_role("button", name="No").click()
    expect(asked).to_have_count(0)
    assert lab.site.get(f"/jobs/{job_id}")["state"] in ("queued", "running")
    cancel.click()
    asked.get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".badge").first).to_contain_text("cancelled")
    expect(cancel).to_be_disabled()
    assert lab.site.get(f"/jobs/{job_id}")["state"] == "cancelled"


def test_who_leaves_a_page_breaks_off_what_it_waits_for(tab: Tab) -> None:
    def waits(request: Request) -> bool:
        return HELD_JOB in request.url and "wait=" in request.url

    with tab.page.expect_request(waits):
        page = tab.show(f"#/jobs/{HELD_JOB}", "planted 50")
    with page.expect_event("requestfailed", waits, timeout=2000):
        page.get_by_role("link", name="Queue").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Queue")


def test_an_open_page_outlives_a_restart_of_the_api(lab: Lab, tab: Tab) -> None:
    page = tab.show(f"#/jobs/{HELD_JOB}", "planted 50")
    loaded_at = page.evaluate(LOADED_AT)
    lab.stop_api()
    away = page.get_by_text("The API does not answer")
    expect(away).to_be_visible()
    lab.start_api()
    expect(away).to_be_hidden()
    lab.site.http.patch(f"/jobs/{HELD_JOB}", json={"name": "renamed since"}).raise_for_status()
    expect(page.get_by_role("heading", level=1)).to_have_text("renamed since")
    assert page.evaluate(LOADED_AT) == loaded_at
    lab.site.http.patch(f"/jobs/{HELD_JOB}", json={"name": "planted 50"}).raise_for_status()
