"""Signing in with a key, and what one is told whose key does not allow it."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, expect

from dmsae.service import keys
from dmsae.service.database import Database
from dmsae.service.settings import Settings
from tests.browser.tab import Tab, Theme, opened
from tests.browser.test_pages import serious_faults
from tests.finished import finish_cycles
from tests.planting import fresh_class, plant_job
from tests.serving import served
from tests.training_rows import submit_distillations

THEMES: tuple[Theme, ...] = ("light", "dark")


class Guarded(NamedTuple):
    """A tab on a service that asks for keys, one of its jobs, and a reader's key."""

    tab: Tab
    job_id: str
    key: str


@pytest.fixture
def guarded(browser: Browser, settings: Settings, database: Database) -> Iterator[Guarded]:
    with database.session_scope() as session:
        key = keys.create_key(session, "ada", role="reader")[1]
        owner_id = keys.ensure_owner(session, "ada").id
        job_id = plant_job(session, fresh_class(), owner_id=owner_id, name="of ada")
    with served(settings) as client, opened(browser, str(client.base_url).rstrip("/")) as tab:
        yield Guarded(tab, job_id, key)


def sign_in(tab: Tab, key: str) -> None:
    tab.page.get_by_label("API key").fill(key)
    tab.page.get_by_role("main").get_by_role("button", name="Sign in").click()


def test_nothing_is_shown_without_a_key_and_a_wrong_one_is_told_beside_its_field(guarded: Guarded) -> None:
    page = guarded.tab.show("#/jobs", "Sign in")
    sign_in(guarded.tab, "dmsae_no-such-key")
    field = page.get_by_label("API key")
    expect(field).to_have_attribute("aria-invalid", "true")
    for theme in THEMES:
        guarded.tab.see(theme)
        guarded.tab.shoot(f"sign-in-{theme}")
        assert serious_faults(guarded.tab) == []
    expect(field).to_have_accessible_description(re.compile("not a valid key"))
    expect(page.get_by_text("of ada")).to_have_count(0)
    sign_in(guarded.tab, guarded.key)
    expect(page.get_by_role("link", name="of ada")).to_be_visible()


def test_a_key_that_lacks_the_right_is_told_so_in_a_plain_sentence(guarded: Guarded) -> None:
    page = guarded.tab.show(f"#/jobs/{guarded.job_id}", "Sign in")
    sign_in(guarded.tab, guarded.key)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    expect(page.get_by_role("alert")).to_contain_text("This key is a reader's")


def test_a_key_that_may_only_read_is_told_so_in_the_place_of_the_box_for_a_prompt(
    guarded: Guarded, database: Database
) -> None:
    (job,) = submit_distillations(database)
    finish_cycles(database)
    page = guarded.tab.show(f"#/latents/{job.job.id}.0.3", "Sign in")
    sign_in(guarded.tab, guarded.key)
    box = page.locator("section").filter(has=page.get_by_role("heading", name="Try it on a text"))
    expect(box).to_contain_text("this key is a reader's")
    expect(box.get_by_role("button")).to_have_count(0)
