"""Questions that people ask of what was found: of a core, of a latent, of several jobs, and of the queue."""

import csv
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.lab import MARKUP, Lab
from tests.browser.tab import PATIENCE_MS, PHONE, Tab

PROBE_MS = 4 * PATIENCE_MS
"""A probe waits for a worker, loads a model and runs."""


def column(page: Page, name: str) -> list[str]:
    """Give what stands in one column of the core's table."""
    core = page.get_by_role("region", name="Latents of the core")
    names = [head.strip(" ▲▼") for head in core.get_by_role("columnheader").all_inner_texts()]
    return core.locator(f"tbody td:nth-child({names.index(name) + 1})").all_inner_texts()


def test_a_core_is_sorted_by_a_column_and_narrowed_to_what_was_selected_often(
    finished: Lab, tab: Tab
) -> None:
    page = tab.show(f"#/jobs/{finished.distillation}/lineage", "Lineage")
    core = page.get_by_role("region", name="Latents of the core")
    core.get_by_role("button", name="Share").click()
    expect(core.get_by_role("columnheader", name="Share")).to_have_attribute("aria-sort", "descending")
    shares = [float(share.rstrip("%")) for share in column(page, "Share")]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) > 1
    page.get_by_label("Selected at least so many times").fill("2")
    page.keyboard.press("Enter")
    expect(page.get_by_text("those selected at least 2 times")).to_be_visible()
    assert set(column(page, "Selected")) == {"2"}
    assert set(column(page, "Origin")) == {"cycle 0"}


def test_a_prompt_of_ones_own_shows_where_a_latent_fires_and_what_the_model_says_without_it(
    finished: Lab, tab: Tab
) -> None:
    page = tab.show(f"#/latents/{finished.shared_latent()}", "Latent")
    settled = tab.shifts()
    page.get_by_role("textbox", name="Prompt").fill(f"A class statement defines {MARKUP}")
    page.get_by_role("button", name="Ask").click()
    plain = page.get_by_role("region", name="Likeliest next tokens: as it is")
    expect(plain).to_be_visible(timeout=PROBE_MS)
    expect(page.get_by_role("region", name="Likeliest next tokens: ablated")).to_be_visible()
    expect(page.get_by_text("Divergence (KL) between the two")).to_be_visible()
    expect(page.locator(".answer .firing-text").first).to_contain_text(MARKUP)
    assert page.evaluate("window.hacked") is None
    page.get_by_label("say it with the latent").press("ArrowDown")  # a choice by input, which may move things
    page.get_by_label("Strength").fill("-2.5")
    page.get_by_role("button", name="Ask").click()
    steered = page.get_by_role("region", name="Likeliest next tokens: steered by -2.5")
    expect(steered).to_be_visible(timeout=PROBE_MS)
    assert tab.shifts() == settled


def test_jobs_are_compared_and_what_is_missing_among_them_is_said(finished: Lab, tab: Tab) -> None:
    page = tab.show("#/compare", "Compare")
    choices = page.get_by_role("checkbox")
    for key, index in (("j", 0), ("j", 1), ("k", 0)):
        page.keyboard.press(key)
        expect(choices.nth(index)).to_be_focused()
    page.get_by_role("searchbox").fill("around it")
    page.get_by_role("checkbox", name="around it").check()
    values = page.get_by_role("region", name="Mean and standard deviation of each measure")
    expect(values.get_by_role("row").filter(has_text="explained variance").first).to_contain_text(
        "distilled core"
    )
    expect(page.get_by_text("A width-matched control without a core is missing.")).to_be_visible()
    assert finished.training in page.url, "the address can be sent to somebody"
    figure = page.get_by_role("figure").filter(has_text="Distilled and its controls")
    with page.expect_download() as download:
        figure.get_by_role("button", name="CSV").click()
    with Path(download.value.path()).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["jobs"] for row in rows if row["measure"]} == {finished.training}


def test_a_device_at_work_is_told_as_the_queue_moves_on_and_nothing_else_moves(lab: Lab, tab: Tab) -> None:
    tab.resize(PHONE)
    page = tab.show("#/queue", "Queue")
    expect(page.get_by_text("behind 1 of ada. It is held").first).to_be_visible()
    settled = tab.shifts()
    job_id = lab.slow_job(name="on a device")
    devices = page.get_by_role("region", name="Devices, and what each runs")
    expect(devices.get_by_role("link", name="on a device")).to_be_visible()
    lab.site.http.post(f"/jobs/{job_id}/cancel").raise_for_status()
    expect(devices.get_by_role("link", name="on a device")).to_have_count(0)
    assert tab.shifts() == settled


def test_the_queue_is_paused_for_a_reason_and_a_job_is_let_go_and_held_again(lab: Lab, tab: Tab) -> None:
    page = tab.show("#/queue", "Queue")
    page.get_by_label("Reason, for those who wait").fill(MARKUP)
    page.get_by_role("button", name="Pause the queue").click()
    try:
        expect(page.get_by_text(f"The queue is paused: {MARKUP}").first).to_be_visible()
        row = page.get_by_role("row").filter(has=page.get_by_role("button", name="Release")).first
        name = row.get_by_role("link").inner_text()
        page.get_by_role("button", name=f"Release {name}", exact=True).click()
        page.get_by_role("button", name=f"Hold {name}", exact=True).click()
        expect(page.get_by_role("button", name=f"Release {name}", exact=True)).to_be_visible()
    finally:
        page.get_by_role("button", name="Let it go on").click()
    expect(page.get_by_role("button", name="Pause the queue")).to_be_visible()
    assert lab.site.get("/queue")["is_paused"] is False
