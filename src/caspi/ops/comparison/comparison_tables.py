"""A comparison as tables: the guide's CSV, and text for the terminal."""

import csv
import io
from collections.abc import Iterator, Sequence

from caspi.records import ComparedControl, ComparedSet, ComparedWords, Criterion

COLUMNS = (
    *("Dataset", "Round 1 WER", "Round 2 WER", "Improvement", "Low", "High", "Verdict", "p", "MAPSSWE p"),
    *("Utterances", "Words", "Blocks", "Utterances needed", "Round 1 CER", "Round 2 CER", "Note"),
)


def comparison_csv(rows: Sequence[ComparedSet]) -> str:
    """The guide's table: whole test sets, their mean, and all pooled."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        if row.bucket == "all":
            numbers = [row.round1_wer, row.round2_wer, row.difference, row.low, row.high]
            tests = [row.verdict, row.p_value, row.mapsswe_p_value]
            sizes = [row.num_utterances, row.num_words, row.num_blocks, row.num_utterances_needed]
            writer.writerow([row.test_set, *numbers, *tests, *sizes, row.round1_cer, row.round2_cer, row.note])
    return text.getvalue()


def table(rows: Sequence[ComparedSet], confidence_fraction: float) -> str:
    """The guide's table on the terminal, in percent, with buckets below their test sets."""
    interval = f"{confidence_fraction:.0%} interval"
    lines = [f"{'Dataset':26} {'Round 1':>8} {'Round 2':>8} {'Improvement':>12}  {interval:20} Verdict"]
    for row in rows:
        name = row.test_set if row.bucket == "all" else f"  {row.bucket}"
        spread = "-" if row.low is None or row.high is None else f"[{row.low:+.2%}, {row.high:+.2%}]"
        needed = f" ({row.num_utterances_needed:,} utterances needed)" if row.num_utterances_needed else ""
        note = f"; {row.note}" if row.note else ""
        rates = f"{row.round1_wer:8.2%} {row.round2_wer:8.2%} {row.difference:+12.2%}"
        lines.append(f"{name:26} {rates}  {spread:20} {row.verdict}{needed}{note}")
    return "\n".join(lines)


def criteria_table(criteria: Sequence[Criterion]) -> str:
    lines = ["", "Success criteria"]
    for one in criteria:
        source = f" ({one.evidence})" if one.evidence else ""
        lines.append(f"  {one.level:6} {one.outcome:11} {one.name}: {one.finding}{source}")
    return "\n".join(lines)


def words_table(words: Sequence[ComparedWords]) -> Iterator[str]:
    """Share of wrong words by class, in all test sets together."""
    for one in words:
        if one.test_set == "pooled_wer":
            rates = f"{one.round1_error:8.2%} {one.round2_error:8.2%} {one.difference:+12.2%}"
            yield f"{f'{one.word_class} words':26} {rates}  {spread(one.low, one.high):20} {one.verdict}"


def controls_table(controls: Sequence[ComparedControl]) -> Iterator[str]:
    """What Round 2 must not spoil."""
    for one in controls:
        as_text = "{:.2%}" if one.measure == "WER" else "{:.3f}"
        rates = " to ".join(as_text.format(value) for value in (one.round1, one.round2))
        yield f"control {one.test_set}: {one.measure} from {rates}, at most {one.bound:g} more allowed: {one.outcome}"


def spread(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"[{low:+.2%}, {high:+.2%}]"
