"""The synthetic corpus: known words at known times, exact numbers of defects, the same bytes for the same seed."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
from conftest import AsrCorpus, Corpus
from scipy.signal import welch

from caspi.config import Language, SyntheticSpeech
from caspi.speech.corpora.audio import AudioError, load_audio, probe_audio
from caspi.speech.scoring.normalize_he import normalize_he
from caspi.speech.synthetic.defects import AUDIBLE_DEFECTS, DEFECTS, plant_defects, render_planned
from caspi.speech.synthetic.synth import Defect, Domain, UtterancePlan, draw_sentence, lexicon, render, side_of
from caspi.speech.synthetic.synth_corpus import (
    DOMAINS,
    apportion,
    plan_audit_corpus,
    plan_test_sets,
    plan_training_corpus,
    read_truth,
    write_corpus,
)

pytestmark = pytest.mark.espeak

SHARES: dict[Domain, float] = {"kan_clean": 0.4, "whatsapp_noisy": 0.4, "long_tail": 0.2}
SETTINGS = SyntheticSpeech()


def audit_plans(num: int, fraction: float = 0.0, seed: int = 5, **options: object) -> list[UtterancePlan]:
    return plan_audit_corpus(num, fraction, seed, domain_shares=SHARES, **options)  # type: ignore[arg-type]


def first_of(domain: Domain) -> UtterancePlan:
    return next(plan for plan in audit_plans(30) if plan.domain == domain)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(manifest: Path) -> list[dict]:
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def test_a_corpus_is_a_manifest_with_its_audio_and_the_truth(audit_corpus: Corpus) -> None:
    lines = rows(audit_corpus.manifest)
    assert {key for row in lines for key in row} == {
        "id", "audio_filepath", "text", "domain", "group_id", "split", "source"
    }  # fmt: skip
    assert len(lines) == 30
    assert set(audit_corpus.truth) == {row["id"] for row in lines}
    assert Counter(row["domain"] for row in lines) == {"kan_clean": 12, "whatsapp_noisy": 12, "long_tail": 6}
    assert len({row["group_id"] for row in lines}) > 10
    for row in lines:
        truth = audit_corpus.truth[row["id"]]
        if truth.defect != "corrupt_file":
            info = soundfile.info(audit_corpus.folder / row["audio_filepath"])
            assert (info.samplerate, info.channels, info.format) == (16_000, 1, "FLAC")
            assert info.frames / 16_000 == pytest.approx(truth.duration_seconds)


def test_where_there_is_no_defect_text_and_truth_agree(audit_corpus: Corpus) -> None:
    good = [row for row in rows(audit_corpus.manifest) if audit_corpus.truth[row["id"]].defect is None]
    assert len(good) == 24
    for row in good:
        truth = audit_corpus.truth[row["id"]]
        assert row["text"].split() == list(truth.words)
        assert len(truth.words) == len(truth.word_times)
        assert 0 < truth.word_times[0][0] < truth.word_times[-1][1] < truth.duration_seconds


def test_long_tail_lasts_20_to_30_seconds(audit_corpus: Corpus) -> None:
    long = [row["id"] for row in rows(audit_corpus.manifest) if row["domain"] == "long_tail"]
    seconds = [t.duration_seconds for name in long if (t := audit_corpus.truth[name]).defect != "cut_audio"]
    assert len(seconds) >= 5
    assert all(20 < value < 30 for value in seconds)


def test_words_lie_where_the_truth_says() -> None:
    """Words without plosives at their edges, with pauses between: each begins and ends where the power says."""
    plan = replace(first_of("kan_clean"), words=("ילדה", "רוצה", "לילה", "שמש", "סליחה", "מים"))
    utterance = render(plan, SETTINGS.model_copy(update={"word_gaps": (30,), "clean_snr_db": (45.0, 45.0)}))
    num_frames = len(utterance.samples) // 80
    powers = np.mean(utterance.samples[: num_frames * 80].reshape(-1, 80) ** 2, axis=1)
    loud_seconds = np.flatnonzero(powers > powers.max() * 10**-3.5) / 200
    for start, end in utterance.word_times:
        heard = loud_seconds[(loud_seconds > start - 0.1) & (loud_seconds < end + 0.1)]
        assert heard[0] == pytest.approx(start, abs=0.03)
        assert heard[-1] == pytest.approx(end, abs=0.03)


@pytest.mark.parametrize(("domain", "low_db", "high_db"), [("kan_clean", 33, 37), ("whatsapp_noisy", 8, 15)])
def test_domains_have_their_signal_to_noise_ratio(domain: Domain, low_db: float, high_db: float) -> None:
    """Measured from the outside: loud frames against the noise alone, which the same seed renders without speech."""
    for plan in [plan for plan in audit_plans(20) if plan.domain == domain][:4]:
        both, noise = (render(plan, SETTINGS, with_speech=speech).samples for speech in (True, False))
        frames = both[: len(both) // 320 * 320].reshape(-1, 320)
        powers = np.mean(frames**2, axis=1)
        loud = powers[powers > powers.max() / 10**3.5].mean() - np.mean(noise**2)
        assert low_db - 2 < 10 * np.log10(loud / np.mean(noise**2)) < high_db + 2


def test_only_the_noisy_domain_is_a_telephone() -> None:
    quiet = SETTINGS.model_copy(update={"noisy_snr_db": (60.0, 60.0), "clean_snr_db": (60.0, 60.0)})

    def above_4_khz_db(domain: Domain) -> float:
        frequencies, power = welch(render(first_of(domain), quiet).samples, 16_000, nperseg=1024)
        return float(10 * np.log10(power[frequencies > 4200].sum() / power.sum()))

    assert above_4_khz_db("whatsapp_noisy") < -30 < above_4_khz_db("kan_clean") + 10


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.11, 0.25, 1.0])
def test_exactly_the_asked_share_has_a_defect_in_every_domain(fraction: float) -> None:
    plans = audit_plans(300, fraction)
    assert sum(plan.defect is not None for plan in plans) == round(300 * fraction)
    for domain, share in SHARES.items():
        planted = sum(plan.defect is not None for plan in plans if plan.domain == domain)
        assert abs(planted - 300 * share * fraction) <= 1
    kinds = Counter(plan.defect for plan in plans if plan.defect)
    assert max(kinds.values(), default=0) - min((kinds[kind] for kind in AUDIBLE_DEFECTS), default=0) <= 1


def test_a_larger_fraction_keeps_the_defects_of_a_smaller_one_and_moves_nothing_else() -> None:
    few, many = audit_plans(300, 0.02), audit_plans(300, 0.25)
    assert all(b.defect == a.defect for a, b in zip(few, many, strict=True) if a.defect)
    assert [replace(plan, defect=None) for plan in few] == [replace(plan, defect=None) for plan in many]


@pytest.mark.parametrize(("fraction", "kinds"), [(1.5, DEFECTS), (-0.1, DEFECTS), (0.1, ()), (0.1, ("typo",))])
def test_impossible_defects_are_refused(fraction: float, kinds: tuple) -> None:
    with pytest.raises(ValueError, match="cannot plant"):
        plant_defects(audit_plans(10), fraction, 1, kinds)


def test_sentences_of_one_word_are_not_asked_to_lose_one() -> None:
    plans = plan_training_corpus(100, 0, 3, vocabulary_size=40, num_words=(1, 2), domain_shares={"kan_clean": 1})
    num_long = sum(len(plan.words) == 2 for plan in plans)
    spoilt = [plan for plan in plant_defects(plans, 0.3, 3) if plan.defect]
    assert len(spoilt) == 30
    assert all(len(plan.words) == 2 for plan in spoilt)
    with pytest.raises(ValueError, match=f"in {num_long} sentences"):
        plant_defects(plans, 0.9, 3)


def test_wrong_texts_of_training_are_no_test_sentences_either() -> None:
    plans = plan_training_corpus(60, 0, 3, vocabulary_size=40, num_words=(4, 4), domain_shares={"kan_clean": 1})
    texts = [render_planned(plan, SETTINGS).text.split() for plan in plant_defects(plans, 1.0, 3)]
    assert {side_of(text) for text in texts} == {"train"}


def spoiled(defect: Defect, domain: Domain = "kan_clean") -> tuple:
    plan = first_of(domain)
    return render(plan, SETTINGS), render_planned(replace(plan, defect=defect), SETTINGS)


def test_a_wrong_transcript_has_other_words_about_the_same_audio() -> None:
    good, bad = spoiled("wrong_transcript")
    assert np.array_equal(good.samples, bad.samples)
    assert bad.words == good.words
    assert len(bad.text.split()) == len(good.words)
    assert len(set(bad.text.split()) & set(good.words)) <= len(good.words) / 3
    assert len(bad.text) == pytest.approx(len(good.text), rel=0.2)


def test_dropped_words_are_deletions_of_one_stretch() -> None:
    good, bad = spoiled("dropped_words", "long_tail")
    alignment = jiwer.process_words(good.text, bad.text)
    assert (alignment.substitutions, alignment.insertions) == (0, 0)
    assert 0.3 <= alignment.deletions / len(good.words) <= 0.52
    assert bad.words == good.words


def test_extra_words_are_insertions_of_foreign_words() -> None:
    good, bad = spoiled("extra_words")
    alignment = jiwer.process_words(good.text, bad.text)
    assert (alignment.substitutions, alignment.deletions) == (0, 0)
    assert 0.5 <= alignment.insertions / len(good.words) <= 1
    assert bad.words == good.words


def test_cut_audio_lacks_its_end_and_the_truth_lists_what_is_left() -> None:
    good, bad = spoiled("cut_audio")
    assert 0.4 <= len(bad.samples) / len(good.samples) <= 0.7
    assert np.array_equal(bad.samples, good.samples[: len(bad.samples)])
    assert bad.text == good.text
    assert bad.words == good.words[: len(bad.words)]
    assert 0 < len(bad.words) < len(good.words)
    assert bad.word_times[-1][1] <= len(bad.samples) / 16_000


@pytest.mark.parametrize("domain", ["kan_clean", "whatsapp_noisy"])
def test_silence_is_the_noise_of_the_same_recording(domain: Domain) -> None:
    good, bad = spoiled("silence", domain)
    assert bad.text == good.text
    assert (bad.words, bad.word_times) == ((), ())
    assert len(bad.samples) == len(good.samples)
    loudest = [np.abs(x.samples[: len(x.samples) // 320 * 320]).reshape(-1, 320).mean(axis=1) for x in (good, bad)]
    assert 0 < loudest[1].max() < 0.5 * loudest[0].max()
    assert loudest[1].max() < 3 * np.median(loudest[1]), "nothing sticks out of the noise"


def test_a_corrupt_file_cannot_be_decoded(audit_corpus: Corpus) -> None:
    corrupt = [row for row in rows(audit_corpus.manifest) if audit_corpus.truth[row["id"]].defect == "corrupt_file"]
    assert len(corrupt) == 1
    path = audit_corpus.folder / corrupt[0]["audio_filepath"]
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(path)
    for read in (probe_audio, load_audio):
        with pytest.raises(AudioError):
            read(path)


def test_a_sentence_of_one_word_cannot_lose_one() -> None:
    plan = replace(first_of("kan_clean"), words=("שלום",), defect="dropped_words")
    with pytest.raises(ValueError, match=plan.id):
        render_planned(plan, SETTINGS)


def test_training_and_tests_share_no_sentence_and_no_speaker() -> None:
    plans = plan_training_corpus(2000, 200, 3, vocabulary_size=40, num_words=(1, 3), domain_shares={"kan_clean": 1})
    tests = [plan for plans in plan_test_sets(200, 3, vocabulary_size=40, num_words=(2, 3)).values() for plan in plans]
    groups = [[p for p in plans if p.split == "train"], [p for p in plans if p.split == "validation"], tests]
    for kind in (lambda plan: plan.words, lambda plan: plan.speaker.id):
        values = [{kind(plan) for plan in group} for group in groups]
        assert [a & b for a, b in combinations(values, 2)] == [set(), set(), set()]
    assert {plan.words[0] for plan in groups[0] if len(plan.words) == 1} == set(lexicon(40)), (
        "every word is taught alone"
    )
    assert {word for plan in tests for word in plan.words} == set(lexicon(40))


def test_the_four_test_sets_of_the_guide() -> None:
    sets = plan_test_sets(40, 3, vocabulary_size=40)
    assert list(sets) == ["eval-d1", "eval-whatsapp", "hebrew-speech-kan", "saspeech"]
    voices = {name: {plan.speaker.voice for plan in plans} for name, plans in sets.items()}
    assert {name: {plan.domain for plan in plans} for name, plans in sets.items()} == {
        name: {"whatsapp_noisy" if name == "eval-whatsapp" else "kan_clean"} for name in sets
    }
    corpus = set(SETTINGS.speaker_voices(Language()))
    assert not voices["eval-d1"] & corpus
    assert voices["eval-whatsapp"] <= corpus
    assert len({plan.speaker.id for plan in sets["saspeech"]}) == 1
    assert all(2 <= len(plan.words) <= 5 for plans in sets.values() for plan in plans)


def test_written_test_sets_are_marked_as_such(asr_corpus: AsrCorpus) -> None:
    assert Counter(row["split"] for row in rows(asr_corpus.manifest)) == {"train": 32, "validation": 8}
    for name, manifest in asr_corpus.test_sets.items():
        lines = rows(manifest)
        assert len(lines) == 6
        assert {(row["split"], row["source"]) for row in lines} == {("test", name)}


def test_a_sentence_has_one_side_and_no_word_twice_in_a_row() -> None:
    rng = np.random.default_rng(0)
    sentences = [draw_sentence(rng, lexicon(5), 6, "test") for _ in range(50)]
    assert {side_of(sentence) for sentence in sentences} == {"test"}
    assert all(a != b for sentence in sentences for a, b in pairwise(sentence))
    with pytest.raises(ValueError, match="no test sentence of 1 words"):
        draw_sentence(rng, lexicon(5), 1, "test")


def test_decorated_texts_are_the_same_words_once_normalised() -> None:
    plans = audit_plans(20, decorated_fraction=1.0)
    texts = {plan.id: render(plan, SETTINGS) for plan in plans if plan.domain == "kan_clean"}
    assert any("־" in utterance.text for utterance in texts.values())
    assert any("\u05b7" <= char <= "\u05bc" for utterance in texts.values() for char in utterance.text)
    for utterance in texts.values():
        assert utterance.text != " ".join(utterance.words)
        assert normalize_he(utterance.text).split() == list(utterance.words)


def test_shares_become_whole_numbers_that_add_up() -> None:
    assert apportion(10, dict.fromkeys(DOMAINS, 1.0)) == {"kan_clean": 4, "whatsapp_noisy": 3, "long_tail": 3}
    assert apportion(7, SHARES) == {"kan_clean": 3, "whatsapp_noisy": 3, "long_tail": 1}
    assert apportion(0, SHARES) == {"kan_clean": 0, "whatsapp_noisy": 0, "long_tail": 0}
    with pytest.raises(ValueError, match="domain shares"):
        apportion(5, {"studio": 1.0})  # type: ignore[dict-item]


def test_other_processes_and_numbers_of_processes_write_the_same_bytes(tmp_path: Path) -> None:
    script = tmp_path / "build.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from caspi.speech.synthetic.defects import DEFECTS\n"
        "from caspi.speech.synthetic.synth_corpus import plan_audit_corpus, write_corpus\n"
        "if __name__ == '__main__':\n"
        "    shares = {'kan_clean': 0.8, 'whatsapp_noisy': 0.18, 'long_tail': 0.02}\n"
        "    plans = plan_audit_corpus(50, 0.3, 8, domain_shares=shares, kinds=DEFECTS)\n"
        "    write_corpus(Path(sys.argv[1]), plans, num_processes=int(sys.argv[2]))\n"
    )
    for name, num_processes in (("one", 1), ("two", 2)):
        subprocess.run([sys.executable, script, tmp_path / name, str(num_processes)], check=True)
    one, two = hashes(tmp_path / "one"), hashes(tmp_path / "two")
    assert len(one) == 52
    assert one == two


def test_another_seed_is_another_corpus() -> None:
    first, second = (audit_plans(20, seed=seed)[0] for seed in (1, 2))
    assert first.words != second.words
    assert not np.array_equal(render(first, SETTINGS).samples[:5000], render(second, SETTINGS).samples[:5000])


def test_progress_is_told_and_the_manifest_appears_last(tmp_path: Path) -> None:
    plans = [plan for plan in audit_plans(12) if plan.domain == "kan_clean"]
    told: list[tuple[int, int]] = []

    def progress(num_done: int, num_all: int) -> None:
        told.append((num_done, num_all))
        assert not (tmp_path / "corpus.jsonl").exists()

    write_corpus(tmp_path, plans, progress=progress)
    assert told == [(n, len(plans)) for n in range(1, len(plans) + 1)]
    assert len(read_truth(tmp_path)) == len(plans)


def test_a_failed_build_leaves_no_manifest(tmp_path: Path) -> None:
    plans = [plan for plan in audit_plans(12) if plan.domain == "kan_clean"]
    write_corpus(tmp_path, plans)
    with pytest.raises(ValueError, match="בית־ספר"):
        write_corpus(tmp_path, [*plans, replace(plans[0], id="bad", words=("בית־ספר",))])
    assert not (tmp_path / "corpus.jsonl").exists()


def test_empty_and_ambiguous_corpora_are_refused(tmp_path: Path) -> None:
    plan = first_of("kan_clean")
    for plans in ([], [plan, plan]):
        with pytest.raises(ValueError, match="no id twice"):
            write_corpus(tmp_path, plans)


def test_a_vocabulary_larger_than_the_lexicon_is_refused() -> None:
    with pytest.raises(ValueError, match="the lexicon has"):
        lexicon(100_000)
