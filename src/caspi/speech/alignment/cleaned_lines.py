"""From choices to lines: the segments of an utterance as utterances, and what is written about each."""

from collections.abc import Sequence
from typing import Any

from caspi.config import Clean
from caspi.records import Action, CleanedUtterance, Utterance
from caspi.speech.alignment.actions import Choice, Clip, tier, verdict
from caspi.speech.alignment.estimate import rounded
from caspi.speech.alignment.resegmentation import Segment


def cut_out(parent: Utterance, choice: Choice, taken: set[str]) -> list[Utterance]:
    """The segments of an utterance as utterances of their own.

    Several of one get a common group, so that no split into training and evaluation tears them. The text before a
    segment is that of the segment before it, or unknown where words were left out.

    Args:
        taken: ids in use; the new ones are added.
    """
    if choice.action == "trim":
        return [_stretch(parent, choice.segments[0])]
    made: list[Utterance] = []
    for number, segment in enumerate(choice.segments):
        id_ = f"{parent.id}-{number + 1:02d}"
        while id_ in taken:
            id_ += "+"
        taken.add(id_)
        own: dict[str, str | None] = {"id": id_, "group_id": parent.group_id or parent.id}
        if segment.first_word:
            before = choice.segments[number - 1] if number else None
            is_next = before is not None and before.last_word == segment.first_word
            own["prev_text"] = before.text if before and is_next else None
        made.append(_stretch(parent, segment).model_copy(update=own))
    return made


def _stretch(parent: Utterance, segment: Segment) -> Utterance:
    changes = {
        "text": segment.text,
        "offset": round(parent.offset + segment.start_seconds, 6),
        "duration": round(segment.end_seconds - segment.start_seconds, 6),
        "segments": (),  # their times are those of the whole
        "needs_resegmentation": False,
    }
    return parent.model_copy(update=changes)


def lines_of(whole: Clip, choice: Choice, segments: Sequence[Clip], settings: Clean) -> list[CleanedUtterance]:
    """What is written about one utterance: one line, or one for each of its segments.

    Args:
        segments: the segments of the choice, aligned and judged.
    """
    if choice.action in ("keep", "review", "drop"):
        return [_line(whole, whole, choice.action, None, choice.why, settings)]
    lines = []
    for segment in segments:
        action = verdict(segment, settings) if segment.reasons else choice.action
        lines.append(_line(segment, whole, action, choice.action, "", settings))
    for number, left_out in enumerate(choice.left_out, start=1):
        rest = _stretch(whole.utterance, left_out).model_copy(update={"id": f"{whole.utterance.id}-rest{number:02d}"})
        clip = Clip(rest, whole.reasons, "around what was rescued")
        lines.append(_line(clip, whole, "drop", choice.action, "", settings))
    return lines


def _line(
    clip: Clip, whole: Clip, action: Action, attempted: Action | None, why: str, settings: Clean
) -> CleanedUtterance:
    is_kept = action not in ("review", "drop")
    values: dict[str, Any] = {}
    if clip.judgement is not None:
        values = {
            "alignment_coverage": clip.judgement.measures.alignment_coverage,
            "speech_coverage": clip.judgement.measures.speech_coverage,
            "alignment_confidence": clip.judgement.confidence,
        }
    return CleanedUtterance.model_validate(
        clip.utterance.model_dump()
        | rounded(values)
        | {
            "parent_id": whole.utterance.id,
            "action": action,
            "attempted": None if is_kept else attempted,
            "reasons_before": whole.reasons,
            "reasons": [] if is_kept else clip.reasons,
            "detail": clip.error or why or None,
            "tier": tier(clip, settings) if is_kept else None,
        }
    )
