"""Evaluation through servers: the real `transformers serve`, and vLLM's recorded forms."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_servers import RECORDED, Handler, RecordedVllm, Request, recorded_vllm, transformers_serve, wait_for

from caspi import cli, evaluate
from caspi.config import Evaluate, Language, Recipe
from caspi.model.checkpoints.checkpoint import save_asr
from caspi.model.prompt import forced_prefix
from caspi.model.tiny import tiny_base
from caspi.model.tiny_models import build_tiny_asr
from caspi.model.transcribers.choose import cautions_about
from caspi.model.transcribers.local import prompt_text
from caspi.model.transcribers.prompt_check import load_processor
from caspi.model.transcribers.server import ServerTranscriber
from caspi.records import Prediction, RunFailed, Utterance, read_jsonl, write_jsonl
from caspi.speech.corpora.audio import write_audio
from caspi.speech.scoring.score import wer

NUM_CLIPS = 8
FAST = {"num_concurrent": 3, "timeout_seconds": 60.0, "max_retries": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_asr(*build_tiny_asr(seed=0), folder)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of different lengths, 0.7 to 1.4 seconds."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(1)
    utterances = []
    for index in range(NUM_CLIPS):
        seconds = 0.7 + index / 10
        write_audio(folder / f"{index}.flac", rng.normal(0, 0.1, round(16_000 * seconds)).astype(np.float32))
        fields = {"id": f"u{index}", "audio_filepath": f"{index}.flac", "text": "שלום ילד", "duration": seconds}
        utterances.append(Utterance.model_validate({**fields, "domain": "kan_clean"}))
    write_jsonl(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl"


@pytest.fixture
def vllm(checkpoint: Path) -> Iterator[RecordedVllm]:
    """Serves the checkpoint under its path, with the prompt ids of its own processor."""
    with recorded_vllm(str(checkpoint)) as server:
        server.ids_of = lambda request: prompt_ids(checkpoint, request)
        yield server


def prompt_ids(checkpoint: Path, request: Request) -> list[int]:
    """What vLLM's chat route makes of a request: the template with its variables, like the processor."""
    processor = load_processor(checkpoint)
    language = request.json.get("chat_template_kwargs", {}).get("forced_language")
    (prompt,) = processor.apply_transcription_request(audio=[request.samples], tokenize=False)
    if language or request.json.get("continue_final_message"):
        prompt += forced_prefix(language or "Hebrew")
    ids: list[int] = processor(text=[prompt], audio=[request.samples], sampling_rate=16_000)["input_ids"][0].tolist()
    return ids


def recipe_for(output: Path, manifest: Path, model: Path | str, **fields: Any) -> Recipe:
    requests = FAST | fields.pop("requests", {})
    values = {"model": str(model), "test_sets": (f"d1={manifest}",), "max_new_tokens": 24, "requests": requests}
    return Recipe(evaluate=Evaluate.model_validate({**values, "output": output, **fields}))


def predictions_of(output: Path) -> list[Prediction]:
    return list(read_jsonl(output / "predictions.jsonl", Prediction))


def transcriber_for(server: RecordedVllm, model: Path | str = "caspi-tiny", **fields: Any) -> ServerTranscriber:
    section = recipe_for(Path("unused"), Path("unused"), model, server=server.url, **fields).evaluate
    return ServerTranscriber(server.url, section, Language())


def noise(seconds: float = 1.0) -> np.ndarray:
    return np.random.default_rng(5).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


def test_the_same_checkpoint_gives_the_same_file_in_process_and_through_transformers_serve(
    tmp_path: Path, asr_corpus: Any
) -> None:
    model, manifest = tiny_base(), asr_corpus.test_sets["eval-d1"]
    with transformers_serve(model, tmp_path / "server") as url:
        for num_beams in (1, 3):
            fields = {"num_beams": num_beams, "batch_size": 1}
            local = recipe_for(tmp_path / f"local{num_beams}", manifest, model, **fields)
            served = recipe_for(tmp_path / f"served{num_beams}", manifest, model, server=url, **fields)
            assert evaluate.run(local) == evaluate.run(served) == 0
            texts = [(one.evaluate.output / "predictions.jsonl").read_bytes() for one in (local, served)]
            assert texts[0] == texts[1]
        prefilled = recipe_for(
            tmp_path / "prefilled", manifest, model, server=url, language_forcing="prefill", max_samples=2
        )
        assert evaluate.run(prefilled) == 0
        with pytest.raises(RunFailed, match=r"does not take a clip: HTTP 400 .*pinned to .*requested 'another'"):
            evaluate.run(recipe_for(tmp_path / "other", manifest, "another", server=url))
    rows = {row.id: row for row in predictions_of(tmp_path / "served1")}
    assert len({row.hypothesis for row in rows.values()}) > 1
    assert wer([row.reference for row in rows.values()], [row.hypothesis for row in rows.values()], "he") < 0.5
    assert all(row.hypothesis == rows[row.id].hypothesis for row in predictions_of(tmp_path / "prefilled"))
    described = json.loads((tmp_path / "served1" / "run.json").read_text())["settings"]["transcriber"]
    assert described["prompt"] == prompt_text(load_processor(model), "Hebrew")
    assert (described["dialect"], described["prompt_check"]) == ("transformers", "number of tokens equal")


def test_vllm_is_recognised_and_asked_for_hebrew_with_the_training_prompt(
    tmp_path: Path, vllm: RecordedVllm, checkpoint: Path, manifest: Path
) -> None:
    assert evaluate.run(recipe_for(tmp_path, manifest, checkpoint, server=vllm.url)) == 0
    described = json.loads((tmp_path / "run.json").read_text())["settings"]["transcriber"]
    assert (described["dialect"], described["server_version"]) == ("vllm", "0.32.0")
    assert described["prompt_check"] == "token ids equal"
    assert len(vllm.sent) == NUM_CLIPS
    for request in vllm.sent:
        assert request.json["chat_template_kwargs"] == {"forced_language": "Hebrew"}
        assert (request.json["temperature"], request.json["max_tokens"]) == (0.0, 24)
        assert "n" not in request.json
    rows = predictions_of(tmp_path)
    assert [row.hypothesis for row in rows] == [f"שלום {round(16_000 * row.duration)}" for row in rows]


def test_the_guides_command_works_as_printed(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded_vllm("./some-served-folder") as server:
        (tmp_path / "sets.toml").write_text(f'[evaluate]\ntest_sets = ["d1={manifest}"]\n')
        monkeypatch.chdir(tmp_path)
        flags = ["--recipe", "sets.toml", "--output", str(tmp_path / "qwen3-asr-hebrew-model")]
        assert cli.main(["evaluate", *flags, "--server", server.url, "--max-samples", "200"]) == 0
    out = capsys.readouterr().out
    assert "serves ./some-served-folder; prompt: not checked" in out
    assert "WARNING: the server's prompt was not checked" in out
    assert sorted(path.name for path in (tmp_path / "qwen3-asr-hebrew-model").glob("benchmark_results_*.csv")) == [
        "benchmark_results_he.csv",
        "benchmark_results_ivrit.csv",
    ]


def test_audio_is_sent_exactly_as_it_is(vllm: RecordedVllm, checkpoint: Path) -> None:
    samples = (np.random.default_rng(3).integers(-32768, 32768, 1600) / 32768).astype(np.float32)
    transcriber_for(vllm, checkpoint).transcribe([samples])
    assert np.array_equal(vllm.sent[0].samples, samples)


def test_beams_are_bounded_by_the_audio_and_the_first_choice_counts() -> None:
    with recorded_vllm() as server:
        transcriber = transcriber_for(server, num_beams=5, max_new_tokens=448)
        (result,) = transcriber.transcribe([noise(2.0)])
    (request,) = server.sent
    assert (request.json["use_beam_search"], request.json["n"]) == (True, 5)
    assert request.json["max_tokens"] == 16 + 12 * 2
    assert result == ("שלום 32000", "stop", None, None)


@pytest.mark.parametrize(
    ("dialect", "version", "num_beams", "is_warned"),
    [
        ("vllm", "0.32.0", 5, True),
        ("vllm", "0.33.0rc1", 5, False),
        ("vllm", "0.32.0", 1, False),
        ("vllm", "1.0.0", 5, False),
        ("vllm", None, 5, False),
        ("transformers", None, 5, False),
    ],
)
def test_beams_that_prefer_short_texts_are_warned_of(
    dialect: str, version: str | None, num_beams: int, is_warned: bool
) -> None:
    described = {"dialect": dialect, "server_version": version, "num_beams": num_beams, "prompt_check": "equal"}
    assert any("shorter texts win" in line for line in cautions_about(described)) == is_warned


def test_a_text_that_was_cut_off_is_seen() -> None:
    def truncated(handler: Handler, request: Request) -> bool:
        handler.answer(200, RECORDED["chat truncated"]["body"].encode())
        return True

    with recorded_vllm() as server:
        transcriber = transcriber_for(server)
        server.before_answer = truncated
        assert transcriber.transcribe([noise()]) == [("שלום עולם", "length", None, None)]


def test_only_what_follows_the_last_mark_is_the_text() -> None:
    with recorded_vllm() as server:
        transcriber = transcriber_for(server)
        server.text_of = lambda request: "שלום Hebrew<asr_text>זה משפט"
        assert transcriber.transcribe([noise()])[0].text == "זה משפט"


def test_a_template_that_ignores_the_language_is_found_before_the_first_clip(
    vllm: RecordedVllm, checkpoint: Path
) -> None:
    with recorded_vllm() as server:
        server.text_of = lambda request: "language English<asr_text>hello"
        with pytest.raises(ValueError, match="answers begin with a language: its chat template lacks"):
            transcriber_for(server)
    vllm.ids_of = lambda request: prompt_ids(checkpoint, request)[:-3]
    with pytest.raises(ValueError, match=r"the server's prompt is '.*assistant\\n', the model's is '.*<asr_text>'"):
        transcriber_for(vllm, checkpoint)
    vllm.ids_of = None
    with pytest.raises(ValueError, match="the server's prompt is"):
        transcriber_for(vllm, checkpoint)


def test_the_language_can_be_forced_by_beginning_the_answer(vllm: RecordedVllm, checkpoint: Path) -> None:
    transcriber_for(vllm, checkpoint, language_forcing="prefill").transcribe([noise()])
    body = vllm.sent[0].json
    assert body["messages"][1] == {"role": "assistant", "content": "language Hebrew<asr_text>"}
    assert (body["add_generation_prompt"], body["continue_final_message"]) == (False, True)
    assert "chat_template_kwargs" not in body


def test_a_language_that_is_not_forced_is_counted(
    tmp_path: Path, vllm: RecordedVllm, checkpoint: Path, manifest: Path
) -> None:
    told = json.loads(RECORDED["chat plain"]["body"])["choices"][0]["message"]["content"]
    assert told == "language Hebrew<asr_text>שלום עולם", "as a real vLLM answers"
    long = 16_000
    vllm.text_of = lambda request: told if len(request.samples) > long else told.replace("Hebrew", "English")
    recipe = recipe_for(tmp_path, manifest, checkpoint, server=vllm.url, language_forcing="none")
    assert evaluate.run(recipe) == 0
    predictions = predictions_of(tmp_path)
    assert {one.hypothesis for one in predictions} == {"שלום עולם"}
    assert Counter(one.language_tag for one in predictions) == {"English": 4, "Hebrew": 4}
    (behaviour,) = json.loads((tmp_path / "scores.json").read_text())["behaviour"]
    assert behaviour["language_accuracy"] == 0.5
    assert all(
        request.json.keys().isdisjoint({"chat_template_kwargs", "continue_final_message"}) for request in vllm.sent
    )
    with pytest.raises(ValueError, match="the transcription route does not say which language"):
        transcriber_for(vllm, checkpoint, language_forcing="none", route="transcription")


def test_the_language_of_a_test_set_may_differ(tmp_path: Path, vllm: RecordedVllm, checkpoint: Path) -> None:
    transcriber_for(vllm, checkpoint).transcribe([noise()], "English")
    assert vllm.sent[0].json["chat_template_kwargs"] == {"forced_language": "English"}


@pytest.mark.parametrize(
    ("name", "num_beams", "iso_code", "expected"),
    [
        ("tr he", 1, "he", ("היום מזג האוויר נאה מאוד", "unknown", None)),
        ("tr beam", 5, "he", ("היום מזג האוויר נאה מאוד", "unknown", None)),
        ("tr bad language", 1, "xx", ("", "error", None)),
    ],
)
def test_the_transcription_route_is_used_only_when_asked_and_labelled(
    name: str, num_beams: int, iso_code: str, expected: tuple[str, str, None]
) -> None:
    with recorded_vllm() as server:
        section = recipe_for(
            Path("unused"), Path("unused"), "caspi-tiny", route="transcription", num_beams=num_beams
        ).evaluate
        transcriber = ServerTranscriber(server.url, section, Language(iso_code=iso_code))
        (result,) = transcriber.transcribe([noise()])
    assert result[:2] == expected[:2]
    assert [request.path for request in server.requests] == ["/v1/audio/transcriptions"]
    if iso_code == "xx":
        assert result.error is not None
        assert result.error.startswith("HTTP_400: ")
        assert "Unsupported language: 'xx'" in result.error
    described = transcriber.describe()
    assert (described["route"], described["prompt"]) == ("transcription", None)


def test_outputs_name_the_transcription_route(
    tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded_vllm() as server:
        recipe = recipe_for(tmp_path, manifest, "caspi-tiny", server=server.url, route="transcription")
        assert evaluate.run(recipe) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["route"] == "transcription"
    assert (tmp_path / "benchmark_results_he.csv").read_text().splitlines()[1].endswith(",transcription")
    assert "these are not the model's error rates" in capsys.readouterr().out


def broken(name: str) -> Any:
    """A way in which a server can be wrong."""

    def answer(handler: Handler, request: Request) -> bool:
        bodies = {
            "no json": b"<html>",
            "no choices": b'{"choices": []}',
            "no message": b'{"choices": [{"finish_reason": "stop"}]}',
            "no text": b'{"choices": [{"finish_reason": "stop", "message": {"content": null}}]}',
            "tools": b'{"choices": [{"finish_reason": "tool_calls", "message": {"content": ""}}]}',
            "too long": b'{"choices": [{"finish_reason": "stop", "message": {"content": "' + b"x" * 70_000 + b'"}}]}',
        }
        if name in bodies:
            handler.answer(200, bodies[name])
        elif name == "redirect":
            handler.answer(302, b"", Location="http://127.0.0.1:9/elsewhere")
        elif name == "compressed":
            handler.answer(200, b"", Content_Encoding="gzip")
        elif name == "hangs up":
            handler.close_connection = True
            handler.connection.close()
        else:
            handler.answer(int(name), b'{"detail": "it\x1b[31m failed"}')
        return True

    return answer


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no json", "BAD_ANSWER: value: Invalid JSON"),
        ("no choices", "BAD_ANSWER: choices: List should have at least 1 item"),
        ("no message", "BAD_ANSWER: choices.0.message: Field required"),
        ("no text", "BAD_ANSWER: choices.0.message.content"),
        ("tools", "BAD_ANSWER: choices.0.finish_reason"),
        ("too long", "CONNECTION: the answer is longer than 64 KiB"),
        ("redirect", "HTTP_302"),
        ("compressed", "CONNECTION: the answer is compressed"),
        ("hangs up", "CONNECTION: "),
        ("400", 'HTTP_400: {"detail": "it [31m failed"}'),
        ("500", "HTTP_500: "),
    ],
)
def test_a_broken_answer_is_an_outcome_with_a_reason(name: str, message: str) -> None:
    with recorded_vllm() as server:
        transcriber = transcriber_for(server, requests={"max_answer_kib": 64.0})
        server.before_answer = broken(name)
        (result,) = transcriber.transcribe([noise()])
        assert (result.text, result.finish_reason) == ("", "error")
        assert result.error is not None
        assert result.error.startswith(message)
        server.before_answer = lambda handler, request: False
        assert transcriber.transcribe([noise()])[0].finish_reason == "stop", "one bad answer stops nothing"


def test_a_request_that_can_succeed_later_is_tried_again() -> None:
    num_failures = iter([503, 429])

    def flaky(handler: Handler, request: Request) -> bool:
        status = next(num_failures, None)
        if status:
            handler.answer(status, b"{}")
        return status is not None

    with recorded_vllm() as server:
        transcriber = transcriber_for(server, requests={"max_retries": 3})
        server.before_answer = flaky
        assert transcriber.transcribe([noise()])[0].finish_reason == "stop"
    assert len(server.sent) == 3


def test_an_answer_that_does_not_come_is_a_timeout() -> None:
    release = threading.Event()

    def wait(handler: Handler, request: Request) -> bool:
        release.wait(60)
        return False

    with recorded_vllm() as server:
        transcriber = transcriber_for(server)
        server.before_answer = wait
        transcriber.client = transcriber.client.with_options(timeout=0.5)
        assert transcriber.transcribe([noise()])[0].error == "TIMEOUT: no answer within 60 s"
        release.set()


def test_a_clip_that_is_too_long_is_not_sent() -> None:
    with recorded_vllm() as server:
        transcriber = transcriber_for(server, requests={"max_clip_seconds": 1.0})
        (result,) = transcriber.transcribe([noise(1.1)])
    assert result.error == "TOO_LONG: not sent, 1.1 s is more than 1 s (requests.max_clip_seconds)"
    assert not server.sent


def test_after_too_many_failures_in_a_row_the_others_are_not_sent() -> None:
    with recorded_vllm() as server:
        transcriber = transcriber_for(server, requests={"max_failures_in_a_row": 3})
        server.before_answer = broken("500")
        results = transcriber.transcribe([noise()] * 5)
    assert [(one.error or "").partition(":")[0] for one in results] == ["HTTP_500"] * 3 + ["SERVER_GONE"] * 2
    assert len(server.sent) == 3


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost:8000", "expected an address such as"),
        ("file:///etc/passwd", "expected an address such as"),
        ("http://user:secret@localhost:8000/v1", "give the key in VLLM_API_KEY"),
    ],
)
def test_an_address_that_is_none_is_refused(tmp_path: Path, manifest: Path, address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate.run(recipe_for(tmp_path, manifest, "m", server=address))


def test_a_server_that_is_not_there_ends_the_run_before_anything_is_written(
    tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded_vllm() as server:
        url = server.url
    flags = ["--server", url, "--test-sets", f"d1={manifest}", "--output", str(tmp_path / "out")]
    assert cli.main(["evaluate", *flags]) == 3
    assert "start the server first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_server_with_another_model_is_refused(tmp_path: Path, manifest: Path) -> None:
    with recorded_vllm() as server, pytest.raises(ValueError, match="serves caspi-tiny, not round-7: give --model"):
        evaluate.run(recipe_for(tmp_path, manifest, "round-7", server=server.url))


def test_only_the_key_for_vllm_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with recorded_vllm() as server:
        transcriber_for(server).transcribe([noise()])
        monkeypatch.setenv("VLLM_API_KEY", "local")
        transcriber_for(server).transcribe([noise()])
    keys = [request.headers["Authorization"] for request in server.sent]
    assert keys == ["Bearer none", "Bearer local"]
    assert not [request for request in server.sent if "secret" in str(request.headers)]


def test_a_server_that_dies_in_the_middle_loses_no_row_and_the_rest_is_fetched_later(
    tmp_path: Path, checkpoint: Path, manifest: Path, vllm: RecordedVllm, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = recipe_for(tmp_path / "whole", manifest, checkpoint, server=vllm.url)
    assert evaluate.run(whole) == 0
    output = tmp_path / "halves"
    with recorded_vllm(str(checkpoint)) as dying:
        dying.ids_of = vllm.ids_of

        def die_after_three(handler: Handler, request: Request) -> bool:
            with dying.lock:
                must_die = len([one for one in dying.requests if not one.is_check]) == 4
            if must_die:
                dying.die()
            return False

        dying.before_answer = die_after_three
        requests = {"num_concurrent": 1}
        assert evaluate.run(recipe_for(output, manifest, checkpoint, server=dying.url, requests=requests)) == 3
    rows = predictions_of(output)
    assert len(rows) == NUM_CLIPS
    assert sum(row.finish_reason == "error" for row in rows) == NUM_CLIPS - 3
    out = capsys.readouterr().out
    assert f"MISSING: {NUM_CLIPS - 3} of {NUM_CLIPS} clips have no text (4 SERVER_GONE, 1 CONNECTION)" in out
    scores = json.loads((output / "scores.json").read_text())["scores"]
    assert {row["num_failed"] for row in scores if row["bucket"] == "all"} == {NUM_CLIPS - 3}

    num_before = len(vllm.sent)
    assert evaluate.run(recipe_for(output, manifest, checkpoint, server=vllm.url, requests=requests)) == 0
    assert len(vllm.sent) - num_before == NUM_CLIPS - 3
    assert (output / "predictions.jsonl").read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()


def test_an_evaluation_that_is_killed_sends_no_finished_clip_again_and_ends_with_the_same_file(
    tmp_path: Path, checkpoint: Path, manifest: Path, vllm: RecordedVllm
) -> None:
    assert evaluate.run(recipe_for(tmp_path / "whole", manifest, checkpoint, server=vllm.url)) == 0
    hashes = {round(request.samples.size / 16_000, 3): request.audio_sha256 for request in vllm.sent}
    vllm.requests.clear()
    release = threading.Event()

    def hold_after_four(handler: Handler, request: Request) -> bool:
        if not request.is_check and len(vllm.sent) > 4:
            release.wait(120)
        return False

    vllm.before_answer = hold_after_four
    output = tmp_path / "halves"
    recipe = recipe_for(output, manifest, checkpoint, server=vllm.url)
    flags = ["--model", str(checkpoint), "--server", vllm.url, "--test-sets", f"d1={manifest}"]
    flags += ["--output", str(output), "--max-new-tokens", "24", "--requests.num-concurrent", "3"]
    flags += ["--requests.timeout-seconds", "60", "--requests.max-retries", "0"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "caspi", "evaluate", *flags], env=environment)
    progress = output / "progress.jsonl"
    wait_for(lambda: progress.exists() and progress.read_bytes().count(b"\n") >= 4 and len(vllm.sent) == 7)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = [json.loads(line)["predictions"][0] for line in progress.read_text().splitlines()]
    vllm.before_answer = lambda handler, request: False
    release.set()
    vllm.requests.clear()

    assert evaluate.run(recipe) == 0
    sent = [request.audio_sha256 for request in vllm.sent]
    assert len(finished) == 4
    assert len(sent) == NUM_CLIPS - 4
    assert not {hashes[round(row["duration"], 3)] for row in finished} & set(sent)
    assert (output / "predictions.jsonl").read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()


FAKE_VLLM = """
import sys, time
sys.path.insert(0, {tests!r})
from model_servers import RecordedVllm
import model_servers
from http.server import ThreadingHTTPServer
class Server(RecordedVllm):
    def __init__(self, model, port):
        RecordedVllm.__init__(self, model)
        self.socket.close()
        ThreadingHTTPServer.__init__(self, ("127.0.0.1", port), model_servers.Handler)
open({pids!r}, "a").write(str(__import__("os").getpid()) + "\\n")
Server(sys.argv[1], int(sys.argv[2])).serve_forever()
"""


@pytest.fixture
def serve_command(tmp_path: Path) -> str:
    """Stands for `vllm serve`; notes its pid."""
    program = tmp_path / "fake_vllm.py"
    program.write_text(FAKE_VLLM.format(tests=str(Path(__file__).parent), pids=str(tmp_path / "pids")))
    return f"{sys.executable} {program} {{model}} {{port}} --host 127.0.0.1"


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_with_a_gpu_the_server_is_started_used_and_stopped(
    tmp_path: Path, manifest: Path, serve_command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "has_gpu", lambda: True)
    recipe = recipe_for(tmp_path / "out", manifest, "served-model", serve_command=serve_command)
    assert evaluate.run(recipe) == 0
    assert len(predictions_of(tmp_path / "out")) == NUM_CLIPS
    described = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["transcriber"]
    assert (described["kind"], described["model"]) == ("server", "served-model")
    (pid,) = map(int, (tmp_path / "pids").read_text().split())
    wait_for(lambda: not is_running(pid))


def test_a_server_of_ours_does_not_outlive_an_evaluation_that_is_killed(tmp_path: Path, serve_command: str) -> None:
    program = tmp_path / "owner.py"
    program.write_text(
        "import sys, time\nfrom pathlib import Path\nfrom caspi.ops.release.server import *\n"
        "port = free_port(); command = server_command(sys.argv[1], 'm', port)\n"
        "with running_server(command, port, Path(sys.argv[2]), 60): time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, str(program), serve_command, str(tmp_path / "server.log")])
    wait_for((tmp_path / "pids").exists)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    pid = int((tmp_path / "pids").read_text())
    wait_for(lambda: not is_running(pid))


def test_a_command_that_would_serve_the_whole_network_is_refused(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "has_gpu", lambda: True)
    recipe = recipe_for(tmp_path, manifest, "m", serve_command="vllm serve {model} --port {port}")
    with pytest.raises(ValueError, match=r"must bind to this machine alone: add --host 127\.0\.0\.1"):
        evaluate.run(recipe)


def test_without_a_gpu_the_model_runs_in_process(tmp_path: Path, manifest: Path, checkpoint: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    recipe = recipe_for(tmp_path, manifest, checkpoint, serve_command="no-such-program --host 127.0.0.1 {model}")
    assert evaluate.run(recipe) == 0
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["transcriber"]["kind"] == "local"
