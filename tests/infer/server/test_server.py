"""The page in a real browser, headless: pictures dropped and chosen, answers streamed, stopped and refused, both color schemes, phone and desktop."""

import base64
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_server import data_url, picture

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DROP = """(url) => {
  const bytes = Uint8Array.from(atob(url.split(",")[1]), letter => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request):
    """A page that fails the test if its script does, or if it asks anybody but its server."""
    settings = getattr(request, "param", {"viewport": {"width": 1100, "height": 800}})
    context = browser.new_context(**settings)
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" and "status of" not in said.text else None)
    page.on("request", lambda asked: faults.append(asked.url) if not asked.url.startswith(("http://127.0.0.1", "data:", "blob:")) else None)
    page.set_default_timeout(60_000)
    yield page
    context.close()
    assert not faults


def file_of(image: Image.Image) -> dict:
    return {"name": "chosen.png", "mimeType": "image/png", "buffer": base64.b64decode(data_url(image).partition(",")[2])}


def seen(page, path: Path, color: tuple[int, int, int]) -> tuple[int, int]:
    """Of a screenshot, kept in the test's folder: how many colors it has, and how many pixels are of this one."""
    page.screenshot(path=path)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return len(np.unique(pixels.reshape(-1, 3), axis=0)), int((np.abs(pixels - color).max(-1) < 4).sum())


def wait_for(page, expression: str) -> None:
    """Until it is true; not `wait_for_function`, whose polling is code from a string, which the page's policy forbids."""
    for _ in range(3000):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"never true: {expression}")


PINK = (250, 20, 120)  # of no part of the page
PHONE = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark", "is_mobile": True, "has_touch": True}


@pytest.mark.parametrize(
    "page", [{"viewport": {"width": 1100, "height": 800}, "color_scheme": "light"}, PHONE], ids=["desktop", "phone"], indirect=True
)
def test_a_conversation_about_dropped_and_chosen_pictures(serve, model, page, tmp_path):
    server, plain = serve(max_new_tokens=8), Image.new("RGB", (32, 32), PINK)
    page.goto(server.url)
    wait_for(page, "document.title === 'tiny'")
    assert seen(page, tmp_path / "empty.png", PINK)[1] == 0
    page.evaluate(DROP, data_url(picture(1)))
    page.wait_for_selector("#tray img")
    page.set_input_files("#files", [file_of(plain)])
    page.wait_for_selector("#tray figure:nth-child(2)")
    colors, pink = seen(page, tmp_path / "attached.png", PINK)
    assert colors > 100 and pink > 500
    page.fill("#words", "Which is red?")
    page.press("#words", "Enter")
    first = page.inner_text(".assistant:has(.note) >> nth=0").splitlines()
    said = model.chat([picture(1), plain], "Which is red?", max_new_tokens=8)
    assert first[-1].startswith("8 tokens after ") and first[-1].endswith("cut at the longest answer")
    assert page.evaluate("messages.at(-1)") == {"role": "assistant", "content": said}
    colors, pink = seen(page, tmp_path / "asked.png", PINK)
    assert colors > 100 and pink > 500
    page.fill("#words", "And this?")
    page.click("#send")
    page.wait_for_selector(".assistant:has(.note) >> nth=1")
    assert page.locator(".user img").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("[...document.querySelectorAll('.user img')].map(image => image.width / image.height)") == [1, 1]  # not squeezed
    ground, ink = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (sum(map(int, ground[4:-1].split(","))) < sum(map(int, ink[4:-1].split(",")))) is dark
    page.click("#anew")
    assert page.locator(".turn").count() == 0 and page.is_visible("#empty")


def test_an_answer_grows_and_can_be_stopped(serve, pace, page):
    server = serve(max_new_tokens=400)
    pace.allow(60)
    page.goto(server.url)
    page.fill("#words", "What color?")
    page.click("#send")
    wait_for(page, "document.querySelector('.assistant span').textContent.length > 5")
    page.click("#stop")
    page.wait_for_selector(".assistant .note")
    assert "stopped" in page.inner_text(".assistant .note")
    wait_for(page, "async () => /vlm_open 0\\b/.test(await (await fetch('/metrics')).text())")
    assert page.is_visible("#send")


def test_what_is_refused_is_said_and_can_be_sent_again(serve, page):
    page.goto(serve(api_key="secret", max_pixels=2_000).url)
    page.set_input_files("#files", [file_of(picture(1)), file_of(picture(2))])
    page.wait_for_selector("#tray figure:nth-child(2)")
    page.fill("#words", "What color?")
    page.click("#send")
    assert "API key is missing or wrong" in page.inner_text(".wrong >> nth=-1")
    page.wait_for_selector("#send:visible")
    assert page.evaluate("document.activeElement.id") == "key"
    page.fill("#key", "secret")
    page.press("#key", "Enter")
    assert page.is_hidden("#settings")
    page.press("#words", "Enter")
    page.wait_for_selector(".wrong >> nth=1")
    assert "this server takes 2,000" in page.inner_text(".wrong >> nth=1")
    page.click("[aria-label='Remove picture 1']")
    page.click("#tune")
    page.fill("#length", "3")
    page.click("text=Done")
    page.click("#send")
    assert "3 tokens" in page.inner_text(".assistant .note") or "tokens after" in page.inner_text(".assistant .note")
    page.set_input_files("#files", [{"name": "a.txt", "mimeType": "text/plain", "buffer": b"no picture"}])
    assert "a.txt is no picture" in page.inner_text(".wrong >> nth=2")


def test_a_large_picture_is_made_smaller_before_it_is_sent(serve, page):
    page.goto(serve(max_body_bytes=2**20).url)
    large = base64.b64decode(data_url(Image.new("RGB", (4000, 3000), "teal")).partition(",")[2])
    page.set_input_files("#files", [{"name": "large.png", "mimeType": "image/png", "buffer": large}])
    page.wait_for_selector("#tray img")
    assert page.evaluate("[document.querySelector('#tray img').naturalWidth, document.querySelector('#tray img').naturalHeight]") == [2048, 1536]
    page.fill("#words", "What color?")
    page.click("#send")
    page.wait_for_selector(".assistant .note")


def test_a_page_stays_usable_when_another_model_is_served_since(serve, page):
    page.goto(serve(max_new_tokens=3).url)
    page.evaluate("model = 'older'")
    page.fill("#words", "What color?")
    page.click("#send")
    assert "There is no model 'older' here; this server has 'tiny'" in page.inner_text(".wrong")
    page.click("#send")
    page.wait_for_selector(".assistant .note")


def test_what_looks_like_html_is_shown_as_it_is(serve, page):
    page.goto(serve(max_new_tokens=3).url)
    evil = "<img src=x onerror=\"document.title='hit'\"><script>document.title='hit'</script> **bold**"
    page.fill("#words", evil)
    page.click("#send")
    page.wait_for_selector(".assistant .note")
    page.evaluate("text => document.querySelector('.assistant span').append(text)", evil)  # as the page appends what comes
    assert page.inner_text(".user") == evil
    assert page.locator("#talk img, #talk script").count() == 0
    assert page.title() == "tiny"
