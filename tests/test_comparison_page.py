"""comparison.html: what it shows, that foreign text stays text, and that it needs nothing from elsewhere."""

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from caspi import compare
from caspi.config import Compare, Gate, Recipe
from caspi.records import Clip, Prediction, sha256_of_file, write_json, write_jsonl
from caspi.speech.corpora.audio import write_audio
from caspi.speech.corpora.ogg import checksum, opus_bytes
from caspi.speech.scoring.examples import diff_words

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "<script>document.title='owned'</script>"
NUM_CLIPS = 40


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with two wins, one loss, audio for one of the three, and hostile texts in every place."""
    folder = tmp_path_factory.mktemp("pages")
    write_audio(folder / "clip.flac", tone())
    audio: dict[str, Any] = {"audio_filepath": str(folder / "clip.flac"), "offset": 0.0, "duration": 1.0}
    clips = [
        Clip(test_set="d1", id="u0", source_sha256=sha256_of_file(folder / "clip.flac"), **audio),
        Clip(test_set="d1", id="u1", source_sha256="0" * 64, **audio),
        Clip(test_set="d1", id="u2", source_sha256="", **{**audio, "duration": 99.0}),
    ]
    first, second = predictions(1), predictions(2)
    for name, rows in (("r1", first), ("r2", second)):
        write_jsonl(folder / name / "predictions.jsonl", rows)
        write_jsonl(folder / name / "clips.jsonl", clips)
        transcriber = {"prompt": EVIL, "num_beams": 1}
        write_json(folder / name / "run.json", {"model": EVIL, "settings": {"transcriber": transcriber}})
    for name in ("a", "b"):
        section = Compare(
            round1_model=str(folder / "r1"),
            round2_model=str(folder / "r2"),
            output=folder / name / "round2_comparison.csv",
            num_bootstrap_draws=500,
            num_permutations=200,
        )
        assert compare.run(Recipe(compare=section, gate=Gate(report=folder / "none.json"))) == 1
    return folder


def tone() -> np.ndarray:
    samples: np.ndarray = (0.3 * np.sin(np.arange(16_000) * 0.2)).astype(np.float32)
    return samples


def predictions(round_number: int) -> list[Prediction]:
    """Round 2 repairs u0 (by three words) and u1 (by one), and spoils u2."""
    good = 'צה"ל אמר שלום לכל 12 הילדים'
    texts = {0: ("צהל שלום כל 13 הילדים", good), 1: ("צהל אמר שלום לכל 12 ילדים", good), 2: (good, "")}
    rows = []
    for index in range(NUM_CLIPS):
        hypothesis = texts.get(index, (good, good))[round_number - 1]
        reference = f"{good} {EVIL}" if index == 1 else good
        fields = {"id": f"u{index}", "test_set": "d1", "reference": reference, "hypothesis": hypothesis}
        more = {"domain": "x", "group_id": None, "duration": 2.0, "finish_reason": "stop"}
        rows.append(Prediction.model_validate({**fields, **more}))
    return rows


class Elements(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def elements(pages: Path) -> Elements:
    return Elements((pages / "a" / "comparison.html").read_text(encoding="utf-8"))


def test_the_same_comparison_gives_the_same_page(pages: Path) -> None:
    texts = [(pages / name / "comparison.html").read_text(encoding="utf-8") for name in ("a", "b")]
    assert texts[0].replace("/a/", "/b/") == texts[1]


def test_a_transcript_that_is_a_script_stays_text(elements: Elements) -> None:
    assert "script" not in {tag for tag, _ in elements.tags}
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert EVIL in "".join(elements.text)


def test_the_page_takes_nothing_from_elsewhere(elements: Elements) -> None:
    (policy,) = [one["content"] for tag, one in elements.tags if tag == "meta" and "http-equiv" in one]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy
    sources = [one.get("src") or one.get("href") or "" for _, one in elements.tags]
    assert {source.partition(":")[0] for source in sources if source} == {"data"}
    assert "http" not in re.sub(r"http-equiv", "", " ".join(str(one) for _, one in elements.tags))


def test_wins_come_before_losses_and_the_biggest_first(pages: Path) -> None:
    text = (pages / "a" / "comparison.html").read_text(encoding="utf-8")
    wins, _, losses = text.partition("Biggest losses")
    assert re.findall(r"d1/(u\d+)", wins.partition("Biggest wins")[2]) == ["u0", "u1"]
    assert re.findall(r"d1/(u\d+)", losses) == ["u2"]
    assert "(nothing)" in losses


def test_hebrew_is_set_from_right_to_left_and_each_word_stands_alone(elements: Elements) -> None:
    cells = [one for tag, one in elements.tags if tag == "dd"]
    assert len(cells) == 9
    assert all(cell == {"dir": "rtl", "lang": "he"} for cell in cells)
    assert {"bdi", "del", "ins"} <= {tag for tag, _ in elements.tags}


def test_players_hold_the_audio_and_a_missing_one_says_why(elements: Elements) -> None:
    (player,) = [one for tag, one in elements.tags if tag == "audio"]
    head, _, data = (player["src"] or "").partition(",")
    assert head == "data:audio/ogg;base64"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert (rate, len(samples)) == (16_000, 16_000)
    assert np.corrcoef(samples, tone())[0, 1] > 0.95
    text = "".join(elements.text)
    assert "No player: the file has changed since it was transcribed." in text
    assert "No player: longer than 30 s." in text


def test_opus_is_the_same_every_time_and_its_pages_are_valid() -> None:
    encoded = opus_bytes(tone())
    assert encoded == opus_bytes(tone())
    assert encoded[14:18] == bytes(4)
    soundfile.read(io.BytesIO(encoded))
    # the check value of CRC-32/MPEG-2's polynomial with initial value 0, as Ogg uses it
    assert checksum(b"123456789") == 0x89A1897F


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("א ב ג", "א ד ג", [("equal", "א", "א"), ("substitute", "ב", "ד"), ("equal", "ג", "ג")]),
        ("א ב", "א", [("equal", "א", "א"), ("delete", "ב", "")]),
        ("א", "א ב", [("equal", "א", "א"), ("insert", "", "ב")]),
        ("א ב", "", [("delete", "א", ""), ("delete", "ב", "")]),
        ("", "א", [("insert", "", "א")]),
    ],
    ids=["substituted", "deleted", "inserted", "empty", "no reference"],
)
def test_words_are_compared_along_the_scored_alignment(
    reference: str, hypothesis: str, expected: list[tuple[str, str, str]]
) -> None:
    assert [tuple(word) for word in diff_words(reference, hypothesis)] == expected


def test_every_number_carries_the_file_and_its_hash(pages: Path) -> None:
    comparison: dict[str, Any] = json.loads((pages / "a" / "comparison.json").read_text(encoding="utf-8"))
    ledger = comparison["ledger"]
    for file in ledger["files"].values():
        assert sha256_of_file(Path(file["path"])) == file["sha256"]
    claims = {claim["name"]: claim for claim in ledger["claims"]}
    for row in comparison["rows"]:
        for field in ("round1_wer", "round2_wer", "difference", "p_value", "num_words"):
            assert claims[f"{row['test_set']}/{row['bucket']} {field}"]["value"] == row[field]
    assert claims["d1/all round1_wer"]["files"] == ["round1"]
    assert claims["d1/all difference"]["files"] == ["round1", "round2"]
    assert claims["d1/number words round2_error"]["files"] == ["round2"]
    assert all(set(claim["files"]) <= set(ledger["files"]) for claim in claims.values())
    judged = {f"criterion: {one['name']}" for one in comparison["criteria"] if one["outcome"] != "cannot tell"}
    assert judged <= set(claims)
    assert ledger["unverified"] == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_running_anything(pages: Path, tmp_path: Path, scheme: str) -> None:
    address = (pages / "a" / "comparison.html").as_uri()
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=900,2400"]
    if scheme == "dark":
        command.append("--blink-settings=preferredColorScheme=0")
    shot = tmp_path / "page.png"
    done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=240, check=True)
    shown = Elements(done.stdout)
    assert "<title>Round 1 against Round 2</title>" in done.stdout, "the script in a transcript did not run"
    assert len([tag for tag, _ in shown.tags if tag == "article"]) == 3
    assert "Content Security Policy" not in done.stderr
    subprocess.run([*command, f"--screenshot={shot}", address], capture_output=True, timeout=240, check=True)
    assert shot.stat().st_size > 20_000


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_the_page_prints_with_its_text(pages: Path, tmp_path: Path) -> None:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    printed = tmp_path / "page.pdf"
    page = (pages / "a" / "comparison.html").as_uri()
    options = ["--no-pdf-header-footer", f"--print-to-pdf={printed}"]
    subprocess.run([*command, *options, page], capture_output=True, timeout=240, check=True)
    pdf = printed.read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert re.search(rb"/Type ?/Page\b", pdf)
    assert text_pieces(pdf) > 100, "tables, criteria and examples"


def text_pieces(pdf: bytes) -> int:
    """How often its pages write something."""
    streams = re.findall(rb"/FlateDecode.{0,80}?>>\s*stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    return sum(len(re.findall(rb"\bT[jJ]\b", zlib.decompress(stream))) for stream in streams)
