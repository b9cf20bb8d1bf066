"""A check that the page had no words for, `reversed_auc`, ended every audit with enough controls in a KeyError."""

import re
from pathlib import Path

from caspi.ops.audit.plain_words import CHECKS
from caspi.speech.alignment import validity


def test_every_check_that_an_audit_may_make_has_words_for_the_page() -> None:
    source = Path(validity.__file__).read_text(encoding="utf-8")
    made = re.findall(r'_at_(?:least|most)\(\s*"(\w+)"', source)
    assert len(made) >= 11
    assert set(made) == set(CHECKS)
