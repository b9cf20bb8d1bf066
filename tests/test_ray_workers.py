"""The battery over a local Ray cluster: the same results, the same counted crashes, nothing listening outside."""

import os
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from hostile_aligner import SEGFAULT, HostileAligner
from test_workers import clips, recipe_for

from caspi.model.aligners import start_workers
from caspi.model.aligners.battery import plan_groups
from caspi.model.aligners.outcome_record import outcome_json
from caspi.model.aligners.ray_workers import RayWorkers, group_json, tasks_of
from caspi.model.aligners.workers import LocalWorkers


@pytest.mark.parametrize("module", ["ray", "ray.data"])
def test_a_missing_extra_is_one_clear_error(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"install the extra `ray`.*or use --engine local"):
        start_workers(recipe_for(engine="ray"))


def test_tasks_travel_unchanged(tmp_path: Path) -> None:
    tasks = clips(tmp_path, [16_000, 8_000])
    assert tasks_of(group_json(tasks)) == tasks


@pytest.mark.slow
def test_a_local_cluster_gives_the_same_outcomes_and_counts_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    tasks = clips(tmp_path, [16_000] * 5 + [SEGFAULT] + [9_000] * 3)
    local = recipe_for(num_processes=1, clip_timeout_seconds=60)
    over_ray = recipe_for(num_processes=1, clip_timeout_seconds=60, engine="ray")
    with LocalWorkers(local, HostileAligner) as workers:
        expected = [o for group in workers.run(plan_groups(tasks, local.audit)) for o in group]
    with RayWorkers(over_ray, HostileAligner) as cluster:
        assert cluster.model["model_id"] == "random"
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        own = {process.pid for process in psutil.Process().children(recursive=True)}
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in own]
        assert listening
        assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}
        found = [o for group in cluster.run(plan_groups(tasks, over_ray.audit)) for o in group]
    assert [o.id for o in found if o.is_crash] == ["c5"]
    assert {o.id: outcome_json(o) for o in found} == {o.id: outcome_json(o) for o in expected}


@pytest.mark.slow
def test_a_backend_that_cannot_be_loaded_is_refused_as_on_one_machine() -> None:
    recipe = recipe_for(engine="ray", backend="qwen", aligner_model="/no/such/folder")
    with pytest.raises(ValueError, match="no such folder"), RayWorkers(recipe):
        pass
