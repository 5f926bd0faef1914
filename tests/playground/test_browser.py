"""The playground's page in a real browser: typing, streaming, the gate, every setting, the phone, and no record."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from playground_setting import OTHER, PROMPT, tiny_session
from tiny_topic import save_adapters

from sae_unlearn.playground.settings import Settings
from sae_unlearn.playground.space import write_space


BROWSER = os.environ.get("SAE_UNLEARN_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if BROWSER else ["chromium"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (a browser's path: SAE_UNLEARN_BROWSER)"),
]
TOKENS = 16
WAIT = 120  # seconds at most; a browser on a loaded machine is slow
SHOWN = """wanted => ['bare', 'guarded'].every(
    (name, at) => document.querySelector(`#${name} textarea`).value.trim() === wanted[at])"""
INSIDE = """part => { const box = part.getBoundingClientRect(), text = document.createRange();
    text.selectNodeContents(part); return [...text.getClientRects()].every(one => one.right <= box.right + 1); }"""
"""Returns whether no text of an element is cut off at its right end."""
STORED = """async () => {
    const found = [JSON.stringify(localStorage), JSON.stringify(sessionStorage)];
    for (const {name} of await indexedDB.databases()) {
        const base = await new Promise(done => {
            const open = indexedDB.open(name); open.onsuccess = () => done(open.result);
        });
        for (const store of base.objectStoreNames) {
            const rows = await new Promise(done => {
                const all = base.transaction(store).objectStore(store).getAll(); all.onsuccess = () => done(all.result);
            });
            found.push(JSON.stringify(rows));
        }
    }
    return found.join(" ");
}"""
"""Returns all that a page has stored in its browser."""


@pytest.fixture(scope="module")
def session():
    return tiny_session()


@pytest.fixture(scope="module")
def address(session):
    from sae_unlearn.playground.page import build_page, serve

    page = build_page(session, "Guardrail tiny", [OTHER, PROMPT], {7: "a label"})
    _, url, _ = serve(page, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield url
    page.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


def new_context(browser, **options):
    """Return a browser's context that waits as long as the tests do."""
    found = browser.new_context(**options)
    found.set_default_timeout(1000 * WAIT)
    return found


@pytest.fixture
def page(browser, address):
    context = new_context(browser, viewport={"width": 1280, "height": 900})
    found = context.new_page()
    found.asked = []
    found.on("request", lambda request: found.asked.append(request.url))
    found.goto(address)
    found.wait_for_selector("#prompt textarea")
    put(found, "length", TOKENS)
    yield found
    context.close()


def put(page, setting, value):
    """Set a slider."""
    field = page.locator(f"#{setting} input[type=number]")
    field.fill(str(value))
    field.blur()


def answers(page, prompt=None):
    """Type a prompt, wait for both answers, and return them."""
    if prompt is not None:
        page.fill("#prompt textarea", prompt)
    page.evaluate("""() => { window.before = document.querySelector('#bare textarea').value; window.changed = false;
        clearInterval(window.watch); window.watch = setInterval(() => {
            window.changed ||= document.querySelector('#bare textarea').value !== window.before; }, 5); }""")
    page.click("#ask")
    page.wait_for_function("window.changed")
    page.wait_for_selector("#gate .su-plot")
    previous, until = None, time.monotonic() + WAIT
    while time.monotonic() < until:
        found = tuple(page.input_value(f"#{name} textarea") for name in ("bare", "guarded"))
        if all(found) and found == previous and not page.locator(".generating").count():
            return found
        previous = found
        time.sleep(0.2)
    raise AssertionError(f"no end of the answers: {previous}")


def expected(session, prompt, **settings):
    given = {"max_new_tokens": TOKENS, "chat_template": False} | settings
    *_, last = session.answers(prompt, Settings(**given))
    return last.bare.strip(), last.guarded.strip()


def test_each_token_is_on_the_page_before_the_next_one_is_decoded(session, page, monkeypatch):
    given = Settings(max_new_tokens=TOKENS, chat_template=False)
    first, *states = [[found.bare.strip(), found.guarded.strip()] for found in session.answers(PROMPT, given)]
    assert first == ["", ""]
    assert len({bare for bare, _ in states}) > 4
    allowed, step = threading.Semaphore(0), session._step

    def when_allowed(*args, **options):
        assert allowed.acquire(timeout=WAIT)
        step(*args, **options)

    monkeypatch.setattr(session, "_step", when_allowed)
    page.fill("#prompt textarea", PROMPT)
    page.click("#ask")
    try:
        for state in states:
            allowed.release(2)  # a token of each answer
            page.wait_for_function(SHOWN, arg=state)
    finally:
        allowed.release(2 * TOKENS)
    assert states[-1][0] != states[-1][1]
    assert page.locator("footer").count() == 0 or "Runs" not in page.inner_text("footer")


def test_the_gate_is_drawn_with_its_threshold_and_tokens_are_shaded(session, page):
    answers(page, PROMPT)
    assert page.inner_text("#gate p").startswith("The gate fires")
    assert f"threshold {session.config.tau:.3g}" in page.inner_text("#gate figcaption")
    box = page.locator("#gate svg").bounding_box()
    assert box["width"] > 600
    shades = page.eval_on_selector_all(".su-tokens span", "all => all.map(one => one.style.background)")
    assert len({*shades}) > 2
    token = page.locator(".su-tokens span[data-says]").first
    token.hover()
    shown = "one => getComputedStyle(one, '::after').content"
    assert "feature" in token.evaluate(shown)
    page.mouse.move(0, 0)
    token.focus()  # by the keyboard
    assert "feature" in token.evaluate(shown)
    red = page.eval_on_selector(".su-fired", "one => getComputedStyle(one).color")
    assert red == "rgb(178, 60, 0)"


def test_each_setting_changes_the_next_answer_alone(session, page):
    bare, guarded = expected(session, PROMPT)
    page.uncheck("#enabled input")
    assert answers(page, PROMPT)[1].strip() == bare
    page.check("#enabled input")
    page.check("#action input[value=record]")
    assert answers(page)[1].strip() == bare
    assert "fires" in page.inner_text("#gate p")
    page.check("#action input[value='as fitted']")
    put(page, "dose", 4)
    assert answers(page)[1].strip() == expected(session, PROMPT, dose=4.0)[1]
    put(page, "dose", 1)
    fitted = page.input_value("#threshold input[type=number]")
    assert float(fitted) == pytest.approx(session.config.tau, rel=1e-3)
    most = float(page.get_attribute("#threshold input[type=number]", "max"))
    put(page, "threshold", most)
    assert answers(page)[1].strip() == bare
    assert "does not fire" in page.inner_text("#gate p")
    put(page, "threshold", fitted)
    put(page, "length", 8)
    assert answers(page)[0].strip() == expected(session, PROMPT, max_new_tokens=8)[0] != bare
    put(page, "length", TOKENS)
    assert answers(page)[1].strip() == guarded
    assert page.is_disabled("#template input")  # the tokenizer has none


def test_an_example_is_taken_over_and_other_text_is_left_alone(session, page):
    page.click(f"#examples >> text={OTHER[:20]}")
    page.wait_for_function("want => document.querySelector('#prompt textarea').value === want", arg=OTHER)
    bare, guarded = answers(page)
    assert bare == guarded
    assert page.inner_text("#gate p").startswith("The gate does not fire")


def test_an_empty_prompt_is_an_error_that_says_so(page):
    page.click("#ask")
    assert "expected a text" in page.wait_for_selector(".toast-body").inner_text()


def test_nothing_of_what_is_typed_is_kept_or_sent_elsewhere(page, address):
    answers(page, PROMPT)
    assert PROMPT not in page.evaluate(STORED)
    page.reload()
    page.wait_for_selector("#prompt textarea")
    assert page.input_value("#prompt textarea") == ""
    assert PROMPT not in page.evaluate(STORED)
    assert all(url.startswith((address, "data:", "blob:")) for url in page.asked), page.asked


def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser, address):
    context = new_context(browser, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#prompt textarea")
    put(page, "length", TOKENS)
    answers(page, PROMPT)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for part in ("bare", "guarded", "gate", "tokens", "settings"):
        box = page.locator(f"#{part}").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    for setting in ("enabled", "template", "action"):
        assert page.eval_on_selector(f"#{setting}", INSIDE), setting
    token = page.locator(".su-tokens span[data-says]").first
    token.tap()
    assert "feature" in token.evaluate("one => getComputedStyle(one, '::after').content")
    context.close()


def test_a_space_runs(tmp_path, browser):
    from hub_repositories import Repository
    from hub_stand_in import HubStandIn

    save_adapters(tmp_path)
    hub = HubStandIn()
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    hub.repositories["me/tiny"] = Repository("me/tiny")
    hub.repositories["me/tiny"].commit("main", "all", files)
    write_space(tmp_path / "space", "me/tiny", str(tmp_path / "guardrail"), "A Space", [PROMPT])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
    own |= {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(Path(__file__).parents[2]), "NO_PROXY": "127.0.0.1"}
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path / "space", env=os.environ | own, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        context = new_context(browser)
        page = context.new_page()
        for _ in range(240):
            assert process.poll() is None, (tmp_path / "log").read_text()
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        page.goto(f"http://127.0.0.1:{port}")
        page.wait_for_selector("#prompt textarea")
        put(page, "length", TOKENS)
        page.click(f"#examples >> text={PROMPT[:20]}")
        assert answers(page, PROMPT)[0]
        config = json.loads(page.request.get(f"http://127.0.0.1:{port}/config").text())
        assert config.get("run_history", False) is False
        context.close()
    finally:
        process.terminate()
        process.wait(30)
        hub.stop()
        log.close()
