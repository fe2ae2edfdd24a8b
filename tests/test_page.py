"""The page in a real browser, on a real server: leaves where the model does, by hand and by keyboard."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("playwright")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

import httpx
from playwright import sync_api
from scripted import wait_until
from served import saved, serving

from modeling_pfberxit.evaluation.saved_model import load_model
from modeling_pfberxit.serving.controller import Fixed
from modeling_pfberxit.serving.ladder import ladder_of
from modeling_pfberxit.serving.limits import HttpLimits
from modeling_pfberxit.serving.meter import PrometheusMeter
from modeling_pfberxit.serving.start import Loading, Rule, make_service

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
TEXT = "w1 w2 w3 w4 w5"
NAMES = ("<img src=x onerror=document.title='broken'>", "delivery", "other")
DIFFER = {"claim": "differ", "confidence": 0.95, "whole": True}
POINTS = {
    "careful": {
        "criterion": "divergence_v1", "threshold": 1.5, "patience": 2, "layers": 4.5,
        "certificate": {**DIFFER, "epsilon": 0.02},
    },
    "quick": {"criterion": "entropy", "threshold": 2, "layers": 1.5, "certificate": {**DIFFER, "epsilon": 0.05}},
}  # fmt: skip
LABEL = ".layers .names span:first-child"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = Path(saved(tmp_path_factory.mktemp("page") / "model", names=NAMES))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "operating_points": POINTS}))
    return str(folder)


def watched_service(folder, **http):
    """A server with metrics and a controller."""
    loading = Loading(device="cpu")
    service = make_service(
        loading.first(folder), Rule("careful"), loading, {}, http=HttpLimits(**http), meter=PrometheusMeter()
    )
    service.models.first.controller = Fixed(ladder_of(POINTS), "careful")
    return service


@pytest.fixture(scope="module")
def address(folder):
    with serving(watched_service(folder)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that fails its test if anything is wrong in its script, or fetched from elsewhere."""
    context = browser.new_context(viewport={"width": 1180, "height": 900})
    page, wrong = context.new_page(), []
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda request: wrong.append(request.url) if "127.0.0.1" not in request.url else None)
    yield page
    context.close()
    assert not [each for each in wrong if not each.startswith("data:")]


def opened(page, address, text=TEXT):
    page.goto(address)
    page.locator("#layers li").first.wait_for()
    settled(page, lambda: page.locator("#text").fill(text))


def settled(page, act):
    """Do something that asks the server, and wait for what it says to be drawn."""
    with page.expect_response("**/layers") as answer:
        act()
    walk = answer.value.json()
    until(page, f"state.walk?.tokens === {walk['tokens']}")
    return walk


def until(page, expression):
    """Wait for something in the page; Playwright's own way is a script that the page's policy forbids."""
    wait_until(lambda: page.evaluate(expression), 30)


def left_at(page) -> int:
    return int(page.locator("#layers li.leaves .stop").inner_text())


def test_it_shows_what_each_layer_answers_and_where_the_model_lets_go(page, address, folder):
    opened(page, address)
    model, tokenizer = load_model(folder, "cpu", None)
    tokens = tokenizer(TEXT, return_tensors="pt")
    full = model(**tokens, exit_policy={"criterion": None}).exit_logits[0].softmax(-1)
    assert page.locator(LABEL).all_inner_texts() == [NAMES[number] for number in full.argmax(-1).tolist()]
    shares = page.locator(".layers .names span:last-child").all_inner_texts()
    assert shares == [f"{100 * share:.0f} %" for share in full.amax(-1).tolist()]
    left = model(**tokens, exit_policy="careful")
    assert left_at(page) == left.exit_layer.item()
    assert NAMES[left.logits.argmax().item()] in page.locator("#verdict").inner_text()


def test_moving_tau_and_t_decides_anew_without_asking(page, address, folder):
    opened(page, address)
    model, tokenizer = load_model(folder, "cpu", None)
    tokens, asked, seen = tokenizer(TEXT, return_tensors="pt"), [], set()
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/layers") else None)
    for patience in (1, 2, 3):
        page.locator("#patience").fill(str(patience))
        for tau in ("0", "0.4", "0.9", "1.4", "3", "9"):
            page.locator("#tau-exact").fill(tau)
            page.locator("#tau-exact").press("Enter")
            policy = {"criterion": "divergence_v1", "threshold": float(tau), "patience": patience}
            assert left_at(page) == model(**tokens, exit_policy=policy).exit_layer.item(), policy
            seen.add(left_at(page))
    assert len(seen) > 2 and not asked
    page.get_by_role("button", name="Back to the setting").click()
    assert left_at(page) == model(**tokens, exit_policy="careful").exit_layer.item()


def test_the_line_of_tau_stands_on_its_sliders_thumb_and_dots_left_of_it_count(page, address):
    opened(page, address)
    page.locator("#tau").fill("500")
    line = page.locator("#layers .line").first.bounding_box()
    slider = page.locator("#tau").bounding_box()
    assert abs((line["x"] + line["width"] / 2) - (slider["x"] + slider["width"] / 2)) < 2
    for row in page.locator("#layers li").all():
        if row.locator(".dot").count():
            dot = row.locator(".dot").bounding_box()
            left = dot["x"] + dot["width"] / 2 < line["x"] + 1
            assert left == ("counts" in row.locator(".dot").get_attribute("class"))


def test_other_settings_bring_their_own_rule(page, address, folder):
    opened(page, address)
    settled(page, lambda: page.locator("#setting").select_option("quick"))
    assert "entropy" in page.locator("#when").inner_text() and not page.locator("#t-box").is_visible()
    assert left_at(page) == 1
    settled(page, lambda: page.locator("#setting").select_option("rule:patience"))
    assert "same labels" in page.locator("#when").inner_text() and not page.locator("#tau-row").is_visible()
    settled(page, lambda: page.locator("#setting").select_option("full-depth"))
    assert left_at(page) == 6 and "all 6 layers" in page.locator("#verdict").inner_text()
    settled(page, lambda: page.locator("#setting").select_option("rule:max_prob"))
    page.locator("#tau-exact").fill("0.34")
    page.locator("#tau-exact").press("Enter")
    assert left_at(page) == 1


def test_labels_are_words_and_not_markup(page, address):
    opened(page, address)
    assert page.locator("#layers img").count() == 0 and "leave" in page.title()


def test_it_is_used_by_keyboard_and_says_what_it_is(page, address):
    opened(page, address)
    page.locator("#text").focus()
    reached = ["text"]
    while "patience" not in reached and len(reached) < 12:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", reached
    assert [name for name in reached if name] == ["text", "tau", "tau-exact", "setting", "patience"]
    for role, name in (("textbox", "Text"), ("slider", "τ, the threshold"), ("slider", "t, the patience"),
                       ("combobox", "Setting"), ("list", "Layers")):  # fmt: skip
        assert page.get_by_role(role, name=name, exact=True).count() == 1, name
    page.locator("#tau").focus()
    page.keyboard.press("Home")
    assert left_at(page) == 6 and page.locator("#tau").get_attribute("aria-valuetext") == "0"
    page.keyboard.press("End")
    assert left_at(page) < 6
    assert page.locator("#verdict").get_attribute("aria-live") == "polite"
    assert "the text leaves here" in page.locator("#layers li.leaves .hidden").text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1180])
def test_it_fits_the_window_and_its_words_stand_out(browser, address, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    opened(page, address, text="w1 " * 40)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.1) == (scheme == "dark")
    for place in ("h1", "#about", "#state", "label", "#verdict span", LABEL, ".spared .score", "#when", ".tau label",
                  ".chart dt", ".chart b", "#frontier-about", "summary", "option"):  # fmt: skip
        found = page.locator(place).first
        if found.count():
            assert contrast(*found.evaluate(COLOURS)) >= 4.5, place
    context.close()


COLOURS = """element => {
  let behind = element;
  while (behind && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  return [getComputedStyle(element).color, getComputedStyle(behind ?? document.body).backgroundColor];
}"""


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_traffic_and_frontier_follow_what_is_answered(page, address):
    opened(page, address)
    until(page, "Boolean(state.before)")
    for _ in range(20):
        httpx.post(f"{address}/predict", json={"inputs": TEXT})
    until(page, "history.rate.some(rate => rate > 0) && history.p99.some(seconds => seconds > 0)")
    rate, depth, rung, p99 = page.locator(".chart .big").all_inner_texts()
    assert rung.strip() == "careful" and depth.strip().endswith("of 6") and p99.strip().endswith("ms")
    assert page.locator("#plane .active").text_content() == "careful"
    page.get_by_text("As a table").click()
    rows = [row.inner_text().split() for row in page.locator("#points tr").all()]
    assert [row[0] for row in rows] == ["quick", "careful", "full-depth"] and rows[0][-3:] == ["1.50", "95.0", "%"]
    assert page.evaluate("history.rate.length") >= 1


def test_its_own_looks_are_no_traffic(page, address):
    opened(page, address)
    until(page, "history.rate.length >= 2")
    for _ in range(3):
        settled(page, lambda: page.locator("#text").press("Backspace") or page.locator("#text").press("x"))
    until(page, "history.rate.length >= 4")
    assert page.evaluate("history.rate.slice(1)") == [0] * (page.evaluate("history.rate.length") - 1)


def test_p99_is_what_prometheus_makes_of_the_same_buckets(page, address):
    opened(page, address)
    buckets = {"0.1": 50, "0.2": 90, "0.5": 100, "+Inf": 100}  # rank 99: 9 of the 10 between 0.2 and 0.5
    assert page.evaluate("buckets => quantile(buckets, 0.99)", buckets) == pytest.approx(0.2 + 0.3 * 0.9)
    assert page.evaluate("quantile({'0.1': 0, '+Inf': 0}, 0.99)") is None
    assert page.evaluate("quantile({'0.1': 1, '+Inf': 9}, 0.99)") == 0.1


def test_a_token_is_asked_for_once(page, folder):
    with serving(watched_service(folder, token="secret")) as address:
        page.goto(address)
        page.locator("#token").fill("secret")
        page.get_by_role("button", name="Use it").click()
        page.locator("#layers li").first.wait_for()
        assert not page.locator("#door").is_visible()
        page.reload()
        page.locator("#layers li").first.wait_for()


def test_an_exported_file_still_says_where_a_text_leaves(page, address):
    refused = {"status": 501, "json": {"error": "must be a saved model", "error_type": "NotImplemented"}}
    page.route("**/layers", lambda route: route.fulfill(**refused))
    page.goto(address)
    page.locator("#layers li.leaves").wait_for()
    for setting, layer in (("quick", 1), ("full-depth", 6)):
        page.locator("#setting").select_option(setting)
        page.locator(f"#layers li:nth-child({layer}).leaves").wait_for()
    assert "exported file" in page.locator("#when").inner_text()
    asked = {"inputs": page.locator("#text").input_value(), "parameters": {"exit_policy": "full-depth"}}
    best = httpx.post(address, json=asked, timeout=30).json()[0][0]
    label, share, _ = page.locator("#verdict").locator("strong, span").all_inner_texts()
    assert (label, share) == (best["label"], f"{100 * best['score']:.0f} %")


def test_an_exported_file_may_leave_a_text_as_unsure(page, address):
    page.route("**/layers", lambda route: route.fulfill(status=501, json={"error": "must be a saved model"}))
    unsure = [[{"label": "", "score": None, "exit_layer": 2, "exit_policy": "careful"}]]
    page.route(lambda url: url == f"{address}/", lambda route: answer_posts(route, unsure))
    page.goto(address)
    page.locator("#layers li:nth-child(2).leaves").wait_for()
    assert page.locator("#verdict strong").inner_text() == "unsure" and not page.locator("#trouble").is_visible()


def answer_posts(route, answer):
    """A made-up answer to the Hub's route; the page itself, at the same address, comes from the server."""
    return route.fulfill(json=answer) if route.request.method == "POST" else route.continue_()


def test_values_are_written_as_they_are(page, address):
    opened(page, address)
    values = [-3.2, 3.2, -0.5, 0.0004, -0.0004, 0, 123.4, -123.4, 0.00567]
    words = ["-3.2", "3.2", "-0.5", "4e-4", "-4e-4", "0", "123", "-123", "0.0057"]
    assert page.evaluate("values => values.map(short)", values) == words


def test_what_is_refused_is_said(page, address):
    opened(page, address)
    page.locator("#text").fill("")
    page.get_by_text("Type a text.").wait_for()
    page.route("**/layers", lambda route: route.fulfill(status=413, json={"error": "inputs: must be shorter"}))
    page.locator("#text").fill("w1")
    page.get_by_role("alert").get_by_text("must be shorter").wait_for()
