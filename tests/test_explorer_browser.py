"""The explorer in a real JupyterLab and a real browser, with messages over subshells and without."""

from __future__ import annotations

import os
import time
from pathlib import Path

import lab
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(lab.missing()), reason=lab.missing())]
EXPLORE = "from dmcmc_core.workbench.explorer import explore\nexplorer = explore()\nexplorer"
BUSY = "import time\ntime.sleep(9)\nprint('slept')"
COUNT = """import gc, threading
from comm import get_comm_manager
from ipywidgets.widgets.widget import _instances
gc.collect()
ours = [t for t in threading.enumerate() if not t.name.startswith("subshell")]  # JupyterLab ends and begins those
print("counted", len(_instances), len(get_comm_manager().comms), len(ours))"""
AGAIN = "for _ in range(15):\n    explore()\nprint('fifteen')"
PLACES = """async () => {
    const images = [...document.querySelectorAll('.dmcmc-explorer img.dmcmc-pixels')].filter(i => i.offsetParent)
    const places = new Set(), end = performance.now() + 2000
    while (performance.now() < end) {
        await new Promise(requestAnimationFrame)
        for (const i of images) places.add(JSON.stringify(i.getBoundingClientRect()))
    }
    return [images.length, places.size]
}"""
"""How many pictures are shown, and in how many places they are in two seconds of a run, frame by frame."""
WAIT = 60_000


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=lab.CHROMIUM, args=lab.FLAGS)
        yield chromium
        chromium.close()


class Panel:
    """A page with the explorer open, driven as a person would."""

    def __init__(self, page) -> None:
        self.page, self.root = page, page.locator(".dmcmc-explorer")

    def button(self, name):
        return self.root.locator("button.jupyter-button:visible", has_text=name).first

    def field(self, name):
        return self.root.locator(".widget-inline-hbox:visible", has_text=name).first.locator("input, select")

    def write(self, name, value):
        self.field(name).fill(str(value))
        self.page.keyboard.press("Tab")

    def shown(self, control):
        """Wait for a panel by one of its controls."""
        self.says(control)
        self.page.wait_for_timeout(500)

    def says(self, text):
        self.root.get_by_text(text).first.wait_for(timeout=WAIT)

    def pictures(self):
        """Widths of pictures that show something, and whether the first is more than one colour."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll('.dmcmc-explorer img.widget-image')]
                .filter(i => i.offsetParent && i.naturalWidth > 10).map(i => {
                    const c = document.createElement('canvas'); c.width = i.naturalWidth; c.height = i.naturalHeight;
                    const g = c.getContext('2d'); g.drawImage(i, 0, 0);
                    return new Set(g.getImageData(0, 0, c.width, c.height).data).size})"""
        )

    def first_picture(self):
        self.page.wait_for_function(
            "[...document.querySelectorAll('.dmcmc-explorer img.widget-image')].some(i => i.naturalWidth > 10)",
            timeout=WAIT,
        )

    def step(self):
        return int(self.root.locator(".noUi-handle:visible").first.get_attribute("aria-valuenow").split(".")[0])

    def shot(self, name):
        if folder := os.environ.get("DMCMC_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png")


def opened(browser, address):
    page = browser.new_page(viewport={"width": 1400, "height": 1150})
    heard = lab.Heard(page)
    lab.open_notebook(page, address)
    lab.run_cell(page, 0)
    page.wait_for_selector(".dmcmc-explorer button.jupyter-button", timeout=WAIT)
    return Panel(page), heard


def counted(panel):
    lab.run_cell(panel.page, 2)
    output = panel.page.locator(".jp-Notebook .jp-Cell").nth(2).locator(".jp-OutputArea-output", has_text="counted")
    output.wait_for(timeout=WAIT)
    return [int(word) for word in output.inner_text().split()[1:]]


def run_watch_and_cancel(panel):
    """Run to the first picture, back through the steps by the keyboard, what is wrong beside its control, cancel."""
    panel.button("Run").click()
    panel.first_picture()
    panel.says("done in")
    assert min(panel.pictures()) > 20
    handle = panel.root.locator(".noUi-handle:visible").first
    last = panel.step()
    assert last == 11
    handle.focus()
    for _ in range(3):
        panel.page.keyboard.press("ArrowLeft")
    panel.says("call 8")
    assert panel.step() == last - 3
    panel.write("NFE", 0)
    panel.root.locator(".dmcmc-problem-nfe", has_text="at least 1, not 0").wait_for(timeout=WAIT)
    panel.button("Run").click()
    panel.page.wait_for_timeout(500)
    panel.root.locator(".dmcmc-problem-nfe", has_text="at least 1, not 0").wait_for(timeout=WAIT)
    panel.write("NFE", 5000)
    panel.root.locator(".dmcmc-problem-nfe").wait_for(state="hidden", timeout=WAIT)
    panel.button("Run").click()
    panel.says("s left")
    shown, places = panel.page.evaluate(PLACES)
    assert shown == places == 2  # nothing jumps while it draws
    begun = time.monotonic()
    panel.button("Cancel").click()
    panel.says("cancelled")
    assert time.monotonic() - begun < 1
    panel.write("NFE", 6)
    panel.button("Run").click()
    panel.says("6.0 NFE")


def test_a_first_hour_with_subshells(browser, tmp_path):
    lab.write_notebook(tmp_path / "nb.ipynb", EXPLORE, BUSY, COUNT, AGAIN)
    with lab.server(tmp_path, "perCommTarget") as address:
        panel, heard = opened(browser, address)
        run_watch_and_cancel(panel)
        panel.shot("sample")
        chains_and_saving(panel, tmp_path)
        two_side_by_side(panel)
        others(panel)
        while_a_cell_is_busy(panel)
        again_and_again(panel)
        after_a_restart(panel)
        assert not heard.complaints() and not heard.outside()
        panel.page.close()


def chains_and_saving(panel, folder):
    panel.root.locator("input[type=checkbox]:visible").first.check()
    panel.write("NFE", 20)
    panel.button("Run").click()
    panel.says("Chains: noise level and images")
    panel.root.locator("svg:visible").first.wait_for(timeout=WAIT)
    panel.root.locator(".dmcmc-along:visible img").first.wait_for(timeout=WAIT)
    panel.says("finished")
    handle = panel.root.locator(".noUi-handle:visible").first
    assert handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
    panel.shot("chains")
    for what, ending in (("Save picture", "png"), ("Save samples", "npz"), ("Save settings", "yaml")):
        panel.button(what).click()
        panel.says(f"digits-dlg+dpmpp_2m-20-seed0.{ending}")
        assert (folder / "explorer" / f"digits-dlg+dpmpp_2m-20-seed0.{ending}").stat().st_size > 50


def two_side_by_side(panel):
    panel.button("Side by side").focus()
    panel.page.keyboard.press("Enter")  # by the keyboard alone
    panel.shown("sampler A")
    panel.write("images", 8)
    panel.write("NFE", 6)
    panel.button("Compare").click()
    panel.root.locator(".dmcmc-table:visible", has_text="paired error").wait_for(timeout=WAIT)
    assert len(panel.pictures()) == 3 and min(panel.pictures()) > 20
    panel.shot("compare")
    panel.button("When are they").click()
    panel.root.locator("svg:visible").first.wait_for(timeout=WAIT)
    panel.button("Cancel").click()
    panel.says("cancelled")


def others(panel):
    panel.button("Theory in the plane").click()
    panel.shown("mixture")
    panel.root.locator("svg:visible").first.wait_for(timeout=WAIT)
    panel.shot("theory")
    panel.button("One sampler").click()
    panel.shown("DLG chains first")


def while_a_cell_is_busy(panel):
    """With subshells a run begins and ends while a cell of the main shell still sleeps."""
    panel.write("NFE", 7)
    panel.root.locator("input[type=checkbox]:visible").first.uncheck()
    panel.page.wait_for_timeout(500)
    lab.run_cell(panel.page, 1)
    panel.button("Run").click()
    panel.says("7.0 NFE")
    cell = panel.page.locator(".jp-Notebook .jp-Cell").nth(1)
    assert "*" in cell.locator(".jp-InputPrompt").inner_text()
    cell.locator(".jp-OutputArea-output", has_text="slept").wait_for(timeout=WAIT)


def again_and_again(panel):
    """What a cell leaves behind when it runs again, five times by the keyboard and fifteen in a row: nothing."""
    lab.run_cell(panel.page, 0)
    before = counted(panel)
    for _ in range(4):
        lab.run_cell(panel.page, 0)
    lab.run_cell(panel.page, 3)
    panel.page.locator(".jp-OutputArea-output", has_text="fifteen").wait_for(timeout=WAIT)
    lab.run_cell(panel.page, 0)
    assert counted(panel) == before
    assert panel.root.count() == 1


def after_a_restart(panel):
    panel.page.keyboard.press("Escape")
    panel.page.keyboard.press("0")
    panel.page.keyboard.press("0")
    panel.page.locator(".jp-Dialog button", has_text="Restart").click()
    panel.page.wait_for_timeout(2000)
    lab.run_cell(panel.page, 0)
    panel.page.wait_for_selector(".dmcmc-explorer button.jupyter-button", timeout=WAIT)
    panel.button("Run").click()
    panel.first_picture()
    panel.says("done in")


def test_without_subshells_all_works_between_cells(browser, tmp_path):
    lab.write_notebook(tmp_path / "nb.ipynb", EXPLORE, BUSY, COUNT, AGAIN)
    with lab.server(tmp_path, "disabled", "JupyterLab Dark") as address:
        panel, heard = opened(browser, address)
        run_watch_and_cancel(panel)
        panel.shot("dark")
        assert not heard.complaints() and not heard.outside()
        panel.page.close()
