"""audit.html in a real browser: it plays, filters, reviews, exports, prints; it runs and loads nothing foreign."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_audit import made_corpus, made_text, run_made_audit
from playwright.sync_api import Browser, Page, expect, sync_playwright

from caspi import audit
from caspi.cli import main
from caspi.config import Audit, AuditPage, Recipe, Review
from caspi.ops.audit.audit_page import Shown, audit_page, embedded_json
from caspi.ops.audit.plain_words import CHECKS, CONTROLS, REASONS, reasons_in_words
from caspi.speech.alignment.controls import DECOY, DEFECTS, HARMLESS, REVERSED
from caspi.speech.alignment.quality import REASONS as ALL_REASONS

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"></script>"
REVERSING = "\u202eשלום\u202c הפוך ועוד שלוש מילים"
ENDLESS = "א" * 400
NUM_CLIPS = 120


class Made:
    """An audit of 120 clips of which every sixth is wrongly transcribed; three transcripts are hostile."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bad = frozenset(f"clip-{i:05}" for i in range(0, NUM_CLIPS, 6))
        hostile = {0: f"{EVIL} {made_text(0)}", 6: REVERSING, 12: f"{ENDLESS} מילה"}
        self.manifest, self.output = made_corpus(folder / "corpus", NUM_CLIPS, hostile), folder / "audit"
        settings = {"page": AuditPage(max_clips=24, num_worst=4, num_near=4), "review": Review(num_clips=16)}
        self.code, self.recipe = run_made_audit(self.manifest, self.output, self.bad, monkeypatch, **settings)
        self.page = self.output / "audit.html"
        self.text = self.page.read_text(encoding="utf-8")

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.output / "alignment_report.json").read_text("utf-8"))
        return report


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    with pytest.MonkeyPatch.context() as patch:
        return Made(tmp_path_factory.mktemp("audited"), patch)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        started = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


class Watched:
    """The page in a browser that notes what must not happen."""

    def __init__(self, browser: Browser, path: Path, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1250, "height": 900}, **options)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.note_request(request.url, path))
        self.page.goto(path.as_uri())

    def note_request(self, url: str, path: Path) -> None:
        if not url.startswith("blob:") and url.partition("#")[0] != path.as_uri():
            self.complaints.append(f"request: {url}")


@pytest.fixture
def opened(browser: Browser, made: Made) -> Iterator[Watched]:
    watched = Watched(browser, made.page)
    yield watched
    assert watched.complaints == []
    watched.context.close()


def test_the_same_audit_gives_the_same_page(made: Made) -> None:
    audit.write_page(made.recipe.audit)
    assert made.page.read_text(encoding="utf-8") == made.text


def test_nothing_foreign_can_run(made: Made) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', made.text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert "http" not in policy
    assert made.text.count("<script") == 2, "the data and the page's own"
    assert made.text.count("</script") == 2


def test_data_cannot_end_the_element_that_holds_them() -> None:
    hostile = {"a": "</script><!-- & \u2028"}
    text = str(embedded_json(hostile))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == hostile


def test_every_code_has_words() -> None:
    assert set(REASONS) == set(ALL_REASONS)
    assert set(CONTROLS) == {DECOY, *DEFECTS, REVERSED, *HARMLESS}


def test_every_check_has_words(made: Made) -> None:
    checks = [check["name"] for check in made.report()["calibration"]["checks"]]
    assert checks == [name for name in CHECKS if name != "reversed_auc" or name in checks], "it needs enough pairs"


def test_reasons_say_what_was_measured() -> None:
    row: dict[str, Any] = {
        "reasons": ["LOW_COVERAGE", "UNTRANSCRIBED_SPEECH", "LENGTH_MISMATCH"],
        "alignment_coverage": 0.42,
        "speech_coverage": 0.5,
        "longest_untranscribed_s": 3.14,
        "letters_per_second": 4.0,
        "speech_seconds": 5.0,
        "error": None,
    }
    assert reasons_in_words(row, 10.0, 2.0) == [
        "only 42 % of the text is found in the audio",
        "3.1 s of speech has no text",
        "too little text: 4.0 letters per second of speech, 10.0 are usual here",
    ]
    assert reasons_in_words({**row, "reasons": ["AUDIO_ERROR"], "error": "no header"}, None, 2.0) == [
        "the audio cannot be read: no header"
    ]


def test_the_page_needs_the_files_of_one_audit(made: Made, tmp_path: Path) -> None:
    arguments = ["report", "audit", "--folder", str(made.output), "--manifest", str(tmp_path / "none.jsonl")]
    assert main(arguments) == 2
    assert main([*arguments[:3], str(tmp_path), *arguments[4:]]) == 2


def thousands(made: Made) -> str:
    """The page of 7,358 utterances, the guide's tenth of the corpus: the rows of the small one again and again."""
    report = made.report()
    rows = report["detailed_metrics"]
    report["detailed_metrics"] = [
        {**rows[i % NUM_CLIPS], "sample_id": f"ivrit-ai/crowd-transcribe-v5/{i:08}"} for i in range(7358)
    ]
    ids = [row["sample_id"] for row in report["detailed_metrics"]]
    details = json.loads(re.findall(r'id="data">(.*?)</script>', made.text)[0])["clips"]
    clips = dict(zip(ids, details.values(), strict=False))
    lists = {"worst": ids[:5], "near": [], "good": ids[5:10], "flagged": [], "review": list(clips)}
    review = {"format": "", "tags": [], "manifest_sha256": "", "samples_sha256": ""}
    return audit_page(report, Shown(clips, lists, [0.1] * 7358, ids, review, "review"), "caspi audit")


def test_a_page_of_thousands_of_rows_stays_small(made: Made) -> None:
    growth = (len(thousands(made)) - len(made.text)) / (7358 - NUM_CLIPS)
    assert growth < 200, "characters for each row, 36 of them its id"


@needs_browser
def test_a_page_of_thousands_of_rows_works(browser: Browser, made: Made, tmp_path: Path) -> None:
    (tmp_path / "audit.html").write_text(thousands(made), encoding="utf-8")
    watched = Watched(browser, tmp_path / "audit.html")
    expect(watched.page.locator("#count")).to_contain_text("7,358 of 7,358 clips")
    assert watched.page.locator("#clips tr").count() == 50
    watched.page.locator("#more").click()
    assert watched.page.locator("#clips tr").count() == 100
    watched.page.locator("#clips button").nth(99).click()
    expect(watched.page.locator("#detail")).to_contain_text("are not in this page")
    assert watched.complaints == []
    watched.context.close()


def eventually(page: Page, expression: str, timeout_seconds: float = 20.0) -> None:
    """Asks from outside: the page's own policy forbids the evaluation that `wait_for_function` puts into it."""
    deadline = time.monotonic() + timeout_seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never came true: {expression}"
        page.wait_for_timeout(20)


@needs_browser
def test_a_clip_plays_and_a_word_can_be_heard_alone(opened: Watched) -> None:
    page = opened.page
    page.select_option("#order", "good")
    page.locator("#clips button").first.click()
    audio = page.locator("#detail audio")
    audio.evaluate("player => player.play()")
    eventually(page, "document.querySelector('#detail audio').currentTime > 0.2")
    expect(page.locator("#detail .cursor")).to_be_visible()
    page.locator("#detail .track button").nth(4).click()
    eventually(page, "document.querySelector('#detail audio').currentTime > 1.4")
    expect(page.locator("#detail .track button.now")).to_have_count(1)
    eventually(page, "document.querySelector('#detail audio').paused")
    assert 1.75 <= audio.evaluate("player => player.currentTime") < 1.80, "the fifth word ends at 1.75 s"


@needs_browser
def test_a_looped_word_begins_again_and_the_speed_changes(opened: Watched) -> None:
    page = opened.page
    page.get_by_label("loop the word").check()
    page.get_by_label("1.25×").check()
    seeks = "player => { player.seeks = 0; player.addEventListener('seeking', () => player.seeks++); }"
    page.locator("#detail audio").evaluate(seeks)
    page.locator("#detail .transcript bdi").nth(1).click()
    eventually(page, "document.querySelector('#detail audio').seeks >= 3")
    assert page.locator("#detail audio").evaluate("player => player.playbackRate") == 1.25
    assert not page.locator("#detail audio").evaluate("player => player.paused")


@needs_browser
def test_filters_show_what_they_say(opened: Watched, made: Made) -> None:
    page, report = opened.page, made.report()
    rows = report["detailed_metrics"]
    flagged = [row for row in rows if row["low_quality"]]
    page.select_option("#by-verdict", "1")
    expect(page.locator("#count")).to_contain_text(f"{len(flagged)} of {NUM_CLIPS} clips")
    noisy = [row for row in flagged if row["domain"] == "whatsapp_noisy"]
    page.select_option("#by-domain", label="whatsapp_noisy")
    expect(page.locator("#count")).to_contain_text(f"{len(noisy)} of {NUM_CLIPS} clips")
    page.select_option("#by-domain", "")
    page.select_option("#by-reason", label=REASONS["DECOY_WINS"])
    wins = [row for row in flagged if "DECOY_WINS" in row["reasons"]]
    expect(page.locator("#clips tr")).to_have_count(len(wins))
    page.select_option("#by-reason", "")
    page.select_option("#by-verdict", "")
    page.fill("#by-id", "00042")
    expect(page.locator("#clips tr")).to_have_count(1)
    page.locator("#clips button").click()
    expect(page.locator("#detail h3")).to_contain_text("clip-00042")
    page.fill("#by-id", "")
    for order in ("near", "flagged", "good", "worst"):
        page.select_option("#order", order)
        assert page.locator("#clips tr").count() >= 5
    weakest = min(flagged, key=lambda r: min(r["alignment_coverage"], r["speech_coverage"]) - 0.6)
    expect(page.locator("#clips tr").first).to_contain_text(weakest["sample_id"])


@needs_browser
def test_a_point_of_the_scatter_opens_its_clip(opened: Watched, made: Made) -> None:
    lonely = min(made.report()["detailed_metrics"], key=lambda row: row["alignment_coverage"] + row["speech_coverage"])
    page = opened.page
    page.locator("#scatter svg").scroll_into_view_if_needed()
    where = """row => {
        const data = JSON.parse(document.getElementById('data').textContent);
        const [left, right, floor, top] = data.scatter;
        const at = new DOMPoint(left + (right - left) * row[0], floor + (top - floor) * row[1]);
        const seen = at.matrixTransform(document.querySelector('#scatter svg').getScreenCTM());
        return [seen.x, seen.y];
    }"""
    x, y = page.evaluate(where, [lonely["alignment_coverage"], lonely["speech_coverage"]])
    page.mouse.click(x, y)
    same = [
        row["sample_id"]
        for row in made.report()["detailed_metrics"]
        if (row["alignment_coverage"], row["speech_coverage"])
        == (lonely["alignment_coverage"], lonely["speech_coverage"])
    ]
    assert page.locator("#detail h3 bdi").inner_text() in same


@needs_browser
def test_hostile_transcripts_stay_text(opened: Watched) -> None:
    page = opened.page
    assert page.title() == f"Phase 0 audit: {page.locator('#verdict strong').first.inner_text()}"
    for clip, expected in (("00000", "<script>document.title='owned'"), ("00006", "U+202E"), ("00012", ENDLESS)):
        page.fill("#by-id", clip)
        page.locator("#clips button").click()
        expect(page.locator("#detail .transcript").first).to_contain_text(expected)
        width = page.locator("#detail").evaluate("element => element.scrollWidth - element.clientWidth")
        assert width <= 1, "a long word breaks instead of widening the page"
    assert "owned" not in page.title()
    assert page.locator("#detail script, #detail img").count() == 0


@needs_browser
def test_hebrew_runs_from_the_right_and_time_from_the_left(opened: Watched) -> None:
    page = opened.page
    page.select_option("#order", "good")
    page.locator("#clips button").first.click()
    assert page.locator("#detail .transcript").first.get_attribute("dir") == "rtl"
    spoken = [box["x"] for word in page.locator("#detail .transcript bdi").all()[:3] if (box := word.bounding_box())]
    assert spoken == sorted(spoken, reverse=True)
    blocks = [box["x"] for word in page.locator("#detail .track button").all() if (box := word.bounding_box())]
    assert blocks == sorted(blocks)


@needs_browser
def test_the_keyboard_reaches_everything(opened: Watched) -> None:
    page = opened.page
    page.select_option("#by-verdict", "1")
    page.fill("#by-id", "clip-00018")
    reached: set[str] = set()
    page.locator("body").press("Tab")
    for _ in range(60):
        name = page.evaluate(
            "(e => e.id || e.getAttribute('href') || e.className || e.getAttribute('aria-label') || e.tagName + e.type)"
            "(document.activeElement)"
        )
        reached.add(str(name))
        if page.evaluate("document.activeElement.closest('.track') !== null"):
            before = page.evaluate("document.activeElement.getAttribute('aria-label')")
            page.keyboard.press("ArrowRight")
            assert page.evaluate("document.activeElement.getAttribute('aria-label')") != before
        if name == "by-id":
            page.keyboard.press("End")
        page.keyboard.press("Tab")
    expected = {
        "#samples",
        "#verdict",
        "#review",
        "order",
        "by-domain",
        "by-reason",
        "by-verdict",
        "by-id",
        "only-shown",
    }
    assert expected <= reached, expected - reached
    joined = " ".join(reached)
    for part in ("row", "Clip", "INPUTradio", "INPUTcheckbox", "SUMMARY", "main"):
        assert part in joined, f"{part} is not reached by Tab: {sorted(reached)}"


@needs_browser
def test_a_review_hides_the_verdict_survives_a_reload_and_exports_labels_that_decide(
    browser: Browser, made: Made, tmp_path: Path
) -> None:
    watched = Watched(browser, made.page, accept_downloads=True)
    page = watched.page
    page.locator("#review button.main").click()
    desk = page.locator("#review-desk")
    expect(page.locator("#verdict")).to_be_hidden()
    data = json.loads(page.locator("#data").inner_text())
    plan = data["lists"]["review"]
    assert len(plan) == 16
    for place, index in enumerate(plan):
        expect(page.locator("#review-place")).to_contain_text(f"Clip {place + 1} of 16")
        shown = desk.inner_text()
        assert data["id"][index] not in shown
        assert not re.search("flagged|passed|accepted", shown)
        is_bad = data["id"][index] in made.bad
        if is_bad:
            page.keyboard.press("a")
        page.keyboard.press("3" if place == 7 else "2" if is_bad else "1")
        if place == 9:
            page.reload()
            expect(page.locator("#review-note")).to_contain_text("10 of 16 clips labelled, 1 unsure")
            page.get_by_role("button", name="Go on with the review").click()
    expect(page.locator("#review-note")).to_contain_text("16 of 16 clips labelled, 1 unsure")
    with page.expect_download() as download:
        desk.get_by_role("button", name="Export").click()
    labels = tmp_path / "labels.json"
    download.value.save_as(labels)
    desk.get_by_role("button", name="Leave").click()
    expect(page.locator("#verdict")).to_be_visible()
    assert watched.complaints == []
    watched.context.close()
    copy = tmp_path / "audit"
    shutil.copytree(made.output, copy)
    settings = made.recipe.audit.model_copy(update={"output": copy, "labels": labels})
    audit.run(Recipe(audit=settings))
    report = json.loads((copy / "alignment_report.json").read_text("utf-8"))
    assert report["estimate"]["basis"] == "two_phase"
    assert (report["review"]["num_labels"], report["review"]["unsure"]) == (16, 1)
    assert report["review"]["tags"]["wrong text"] >= 4
    assert "after blind review" in (copy / "audit.html").read_text("utf-8")


@needs_browser
def test_a_browser_that_keeps_nothing_is_told(browser: Browser, made: Made) -> None:
    watched = Watched(browser, made.page)
    watched.context.add_init_script("Storage.prototype.setItem = () => { throw new DOMException('full'); };")
    watched.page.reload()
    expect(watched.page.locator("#review-note")).to_contain_text("This browser keeps nothing")
    watched.page.locator("#review button.main").click()
    watched.page.keyboard.press("1")
    expect(watched.page.locator("#review-place")).to_contain_text("Clip 2 of 16")
    assert watched.complaints == []
    watched.context.close()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_legible_in_light_in_dark_and_on_paper(browser: Browser, made: Made, tmp_path: Path, scheme: Any) -> None:
    watched = Watched(browser, made.page, color_scheme=scheme)
    page = watched.page
    colors = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    paper, ink = page.evaluate(colors)
    assert (luminance(ink) > luminance(paper)) == (scheme == "dark")
    assert contrast(ink, paper) > 7
    page.emulate_media(media="print", color_scheme=scheme)
    paper, ink = page.evaluate(colors)
    assert contrast(ink, paper) > 15, "black on white whatever the scheme"
    assert luminance(paper) > 0.9
    expect(page.locator("#browser")).to_be_hidden()
    expect(page.locator(".paper")).to_contain_text("clip-00000")
    printed = page.pdf(path=tmp_path / "audit.pdf", format="A4")
    assert 3 <= len(re.findall(rb"/Type ?/Page\b", printed)) <= 10
    assert watched.complaints == []
    watched.context.close()


@needs_browser
def test_an_invalid_audit_speaks_of_itself_first(
    browser: Browser, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = frozenset(f"clip-{i:05}" for i in range(NUM_CLIPS))
    settings: dict[str, Any] = {"page": AuditPage(max_clips=2)}
    code, _ = run_made_audit(made.manifest, tmp_path, everything, monkeypatch, **settings)
    assert code == 3
    watched = Watched(browser, tmp_path / "audit.html")
    assert watched.page.title() == "Phase 0 audit: AUDIT INVALID"
    sections = watched.page.locator("main > section").evaluate_all("all => all.map(one => one.id)")
    assert sections[:2] == ["sound", "verdict"]
    expect(watched.page.locator("#sound h2")).to_contain_text("✗ invalid")
    assert watched.complaints == []
    watched.context.close()


def test_a_page_without_audio_has_none(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "audit"
    shutil.copytree(made.output, copy)
    arguments = ["report", "audit", "--folder", str(copy), "--manifest", str(made.manifest), "--embed-audio"]
    assert main([*arguments, "none"]) == 0
    text = (copy / "audit.html").read_text(encoding="utf-8")
    assert "data:audio" not in text
    assert "the voices of 0 clips" in text
    assert main([*arguments, "worst"]) == 0
    data = json.loads(re.findall(r'id="data">(.*?)</script>', (copy / "audit.html").read_text("utf-8"))[0])
    assert data["lists"]["review"] == []
    assert data["lists"]["worst"]
    assert all(data["low"][index] for index in data["lists"]["worst"])


def luminance(color: str) -> float:
    """WCAG 2 relative luminance of `rgb(r, g, b)`."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, two: str) -> float:
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def test_the_default_page_holds_the_whole_review() -> None:
    settings = Audit()
    room = settings.page.max_clips - settings.page.num_worst - settings.page.num_near
    assert room >= settings.review.num_clips
