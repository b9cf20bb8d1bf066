"""comparison.html: the comparison for readers, with the utterances that changed most to read and to hear."""

from collections.abc import Mapping, Sequence
from typing import Any

from caspi.ops.charts import comparison_svg
from caspi.ops.pages import environment, style

BUCKETS = ("short", "medium", "long")


def comparison_page(
    comparison: Mapping[str, Any], wins: Sequence[Any], losses: Sequence[Any], confidence_fraction: float
) -> str:
    """The page of a comparison.json as read, with examples as `speech.examples` gives them."""
    rows = comparison["rows"]
    whole = [row for row in rows if row["bucket"] == "all"]
    return environment().get_template("comparison.html").render(
        style=style(),
        comparison=comparison,
        whole=whole,
        buckets=[row for row in rows if row["bucket"] in BUCKETS],
        words=comparison["word_classes"],
        chart=comparison_svg(whole),
        wins=wins,
        losses=losses,
        confidence=confidence_fraction,
        unverified={name.removeprefix("criterion: ") for name in comparison["ledger"]["unverified"]},
    )  # fmt: skip
