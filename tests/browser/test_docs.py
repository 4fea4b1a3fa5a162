"""The page at `/docs`, as somebody sees it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.engines.base import Tab
from tests.serving import ServerProcess

OpenTab = Callable[..., Tab]


@pytest.mark.engines("chromium")
def test_it_is_readable_on_a_screen_and_on_a_phone(server: ServerProcess, open_tab: OpenTab) -> None:
    page = open_tab(f"http://127.0.0.1:{server.port}/docs").page
    ground = "getComputedStyle(document.body).backgroundColor"
    # Its style is applied, so the policy that the server sends knows it.
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.append(page.evaluate(ground))
    assert len({*grounds, "rgba(0, 0, 0, 0)"}) == 3
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    contents = page.get_by_role("navigation", name="Contents")
    contents.get_by_role("link", name="POST /events").click()
    operation = page.locator("#post-events")
    expect(operation).to_be_in_viewport()
    expect(operation.get_by_text("publish_rate_per_key")).to_have_count(1)
    operation.get_by_role("link", name="Event", exact=True).click()
    expect(page.locator("#event")).to_be_in_viewport()
