"""What a run costs, and the budget at which it stops: `caspi train --max-budget`."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_training import NUM_STEPS, build_inputs, train, train_in_child, weights_hash

from caspi.config import PRICES, Watch
from caspi.ops.cost import GPUS, find_price, hourly_price, price_table
from caspi.ops.training.artifacts import newest_checkpoint
from caspi.ops.watching.run_view import look

LAST = f"checkpoint-{NUM_STEPS}"
A_DOLLAR_A_SECOND = ("--price", "3600")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    assert train_in_child(recipe, output, *A_DOLLAR_A_SECOND) == 0
    return output


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return record


def test_a_spent_budget_stops_at_a_checkpoint_and_a_larger_one_goes_on_to_the_same_bits(
    recipe: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_in_child(recipe, tmp_path, *A_DOLLAR_A_SECOND, "--max-budget", "0.01") == 3
    newest, torn = newest_checkpoint(tmp_path)
    assert newest is not None
    assert (newest.marker.step, torn) == (2, []), "spent after step 1, saved after the next one"
    assert record_of(tmp_path)["state"] == "interrupted"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (alert,) = [json.loads(line) for line in lines if '"BUDGET_REACHED"' in line]
    assert "the budget of $0.01 is spent" in alert["message"]

    assert train(recipe, tmp_path, *A_DOLLAR_A_SECOND, "--max-budget", "0.01") == 3
    error = capsys.readouterr().err
    assert "were spent by 1 earlier starts, the budget is $0.01" in error
    assert train_in_child(recipe, tmp_path, *A_DOLLAR_A_SECOND, "--max-budget", "1000") == 0
    assert weights_hash(tmp_path / LAST) == weights_hash(finished / LAST)


def test_a_budget_without_a_price_is_refused_before_the_model_is_loaded(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(recipe, tmp_path, "--max-budget", "50") == 2
    assert "--max-budget needs a price" in capsys.readouterr().err
    assert not list(tmp_path.glob("checkpoint-*"))


def test_all_starts_are_paid_for_and_watch_shows_the_same_sum(recipe: Path, finished: Path, tmp_path: Path) -> None:
    first = record_of(finished)["paid_seconds"]
    assert first > record_of(finished)["train_seconds"] > 0, "loading is paid for too"
    view = look(finished, Watch(run_dir=finished), now=2e9)
    assert view.usd_per_hour == 3600.0
    assert view.price_source == "train.price of the recipe"
    assert view.usd_spent == pytest.approx(first, abs=1.5), "a dollar a second; run.json's dates have whole seconds"
    assert train_in_child(recipe, finished, *A_DOLLAR_A_SECOND) == 0
    assert record_of(finished)["paid_seconds"] > first


def test_every_price_names_a_known_card_its_date_and_source() -> None:
    for price in PRICES:
        assert price.gpu in GPUS
        year, month, day = map(int, price.date.split("-"))
        assert (year, 1 <= month <= 12, 1 <= day <= 31) == (2026, True, True)
    on_demand = {(price.provider, price.gpu, price.num_gpus): price for price in PRICES if not price.is_spot}
    for price in PRICES:
        whole = on_demand.get((price.provider, price.gpu, price.num_gpus))
        assert not price.is_spot or whole is None or price.usd_per_hour < whole.usd_per_hour
    assert not [price for price in PRICES if price.provider == "Lambda" and price.is_spot], (
        "Lambda has no spot machines"
    )


def test_a_price_file_comes_before_the_table(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(
        '[[price]]\nprovider = "ours"\ngpu = "A100-40GB"\nnum_gpus = 2\nusd_per_hour = 1.5\n'
        'date = "2026-11-01"\nsource = "contract"\n'
    )
    table = price_table(path)
    assert find_price("A100-40GB", 2, table).provider == "ours"
    assert find_price("H100-80GB", 1, table).provider == "Lambda"
    found = hourly_price([(None, "--price")], ["NVIDIA A100-SXM4-40GB"] * 2, 2, table)
    assert found == (1.5, "ours 2026-11-01, contract")
    assert hourly_price([(None, "--price"), (9.0, "plan")], [], 1) == (9.0, "plan")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[price]]\n", "provider: Field required"),
        ("", "price"),
        ("price = 3", "price"),
        ("[", "cannot be read as TOML"),
    ],
)
def test_a_price_file_that_is_none_is_one_clear_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        price_table(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be read"):
        price_table(tmp_path / "missing.toml")
