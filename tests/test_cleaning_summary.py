"""No second goes missing between the manifest and the files, and a domain that is emptied is warned of."""

from collections import Counter
from typing import Any

import pytest

from caspi.ops.audit.cleaning_summary import Account, console_block, microseconds, summary_of


def made_summary(accounts: list[Account], residual: dict[str, Any] | None = None) -> dict[str, Any]:
    return summary_of(accounts, {"dropped.jsonl": Counter(LOW_COVERAGE=2)}, Counter(strong=1), residual, 0.30)


def account(domain: str, action: Any, seconds: float, kept: float, dropped: float = 0, review: float = 0) -> Account:
    whole, *fates = (microseconds(part) for part in (seconds, kept, dropped, review))
    return Account(domain, action, whole, fates[0], fates[1], fates[2], int(kept > 0))


def test_hours_add_up_for_all_domains_and_actions() -> None:
    accounts = [
        account("a", "keep", 0.1 + 0.2, 0.1 + 0.2),
        account("a", "rescue", 10.0, 4.1, 3.3, 2.2),
        account("b", "drop", 7.000001, 0, 7.000001),
    ]
    summary = made_summary(accounts)
    assert summary["seconds"] == {"in": 17.300001, "kept": 4.4, "trimmed": 0.4, "dropped": 10.300001, "review": 2.2}
    assert summary["by_domain"]["a"]["by_action"]["rescue"]["seconds"]["trimmed"] == 0.4
    assert summary["by_action"]["trim"]["num_utterances"] == 0
    assert summary["num_kept"] == 2


@pytest.mark.parametrize(("dropped", "review", "warned"), [(2.0, 1.0, False), (2.0, 1.1, True), (0.0, 3.1, True)])
def test_a_domain_that_loses_more_than_30_percent_is_warned_of(dropped: float, review: float, warned: bool) -> None:
    kept = 10.0 - dropped - review
    accounts = [account("whatsapp_noisy", "rescue", 10.0, kept, dropped, review), account("b", "keep", 90.0, 90.0)]
    summary = made_summary(accounts)
    assert [warning.split()[0] for warning in summary["warnings"]] == ["whatsapp_noisy"] * warned
    assert ("WARNING: whatsapp_noisy loses" in console_block(summary)) == warned


def test_trimmed_silence_is_no_loss() -> None:
    assert made_summary([account("a", "trim", 10.0, 4.0)])["warnings"] == []


def test_segments_that_overlap_are_our_own_error() -> None:
    with pytest.raises(AssertionError):
        made_summary([account("a", "resegment", 10.0, 10.1)])


def test_the_console_says_when_there_is_no_residual_estimate() -> None:
    assert "Residual estimate: none" in console_block(made_summary([account("a", "keep", 1.0, 1.0)]))
