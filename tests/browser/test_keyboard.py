"""Without a mouse: every key that is told does what it says, and one sees where one is."""

from playwright.sync_api import Page, expect

from tests.browser.tab import Tab
from tests.browser.test_pages import serious_faults

FOCUSED = """() => {
  const element = document.activeElement;
  const {outlineStyle, outlineWidth} = getComputedStyle(element);
  const seen = outlineStyle !== "none" && parseFloat(outlineWidth) >= 1;
  return {element: element.outerHTML.slice(0, 120), isBody: element === document.body, seen};
}"""


def focused_text(page: Page) -> str:
    text: str = page.evaluate("document.activeElement.innerText")
    return text


def test_keys_lead_to_the_filter_through_the_list_and_into_a_job(tab: Tab) -> None:
    page = tab.show("#/jobs", "Jobs")
    links = page.get_by_role("table").get_by_role("link")
    expect(links.first).to_be_visible()
    page.keyboard.press("/")
    expect(page.get_by_label("Text")).to_be_focused()
    page.keyboard.type("planted 12")
    expect(links.first).to_contain_text("planted 12")
    names = links.all_inner_texts()
    page.keyboard.press("Escape")
    for key, index in (("j", 0), ("j", 1), ("j", 2), ("k", 1)):
        page.keyboard.press(key)
        assert focused_text(page) == names[index]
    page.keyboard.press("Enter")
    expect(page.get_by_role("main").get_by_role("heading", level=1)).to_contain_text(names[1])


def test_the_keys_are_told_in_a_dialog_that_keeps_the_focus_until_escape(tab: Tab) -> None:
    page = tab.show("#/jobs", "Jobs")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keys")
    expect(dialog).to_be_visible()
    expect(dialog).to_contain_text("Go to the filter")
    assert serious_faults(tab) == []
    for _ in range(4):
        page.keyboard.press("Tab")
        at = "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        assert page.evaluate(at)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_one_sees_where_the_focus_is_all_the_way_down_a_page(tab: Tab) -> None:
    page = tab.show("#/jobs", "Jobs")
    expect(page.get_by_role("table").get_by_role("link").first).to_be_visible()
    passed = []
    for _ in range(20):
        page.keyboard.press("Tab")
        passed.append(page.evaluate(FOCUSED))
    assert [at for at in passed if not at["seen"] and not at["isBody"]] == []
    assert len({at["element"] for at in passed}) > 15
