"""Transcription through a server, with the prompt that the model was trained on.

The chat route is used, because `/v1/audio/transcriptions` builds another prompt: vLLM's leaves out the system turn, and
on a model that was right on four clips that made three of them wrong. Before the first clip the server is asked for the
prompt of made-up audio: it must equal the processor's, token by token where the server shows its tokens (vLLM), else in
number. Failed requests are outcomes, and when the server is gone the remaining clips are not sent.
"""

import base64
import io
import json
import math
import threading
import wave
from collections.abc import Sequence
from typing import Any

import numpy as np
import openai
from pydantic import ValidationError

from caspi.config import Evaluate, Language, one_line
from caspi.model.prompt import CHAT_TEMPLATE, forced_prefix
from caspi.model.transcribers import WAY_OUT, PromptCheck, Transcription
from caspi.model.transcribers.answers import Answer, TranscriptionAnswer
from caspi.model.transcribers.endpoint import (
    find_endpoint,
    get_json,
    http_client,
    openai_client,
    parse_url,
    quoted,
    reason_of,
)
from caspi.records import RunFailed
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ

CHECKED_SECONDS = (0.5, 3.37)
"""Lengths of the made-up clips; the number of audio tokens in a prompt depends on the length."""
CHECKED_TOKENS = 8
"""Of the answers to them; enough to see whether an answer begins with the language."""
NOT_SENT = "SERVER_GONE"


class ServerTranscriber:
    """A model behind an OpenAI-compatible server, as `Transcriber`. Safe to use from several threads."""

    batch_size = 1
    packages: tuple[str, ...] = ()

    def __init__(self, server: str, section: Evaluate, language: Language) -> None:
        """Find the server and check its prompt.

        Raises:
            RunFailed: the server does not answer as it should.
            ValueError: it serves another model, or its prompt is not the training prompt.
        """
        self.section = section
        self.language = language
        self.is_forced = section.language_forcing != "none"
        if section.route == "transcription" and not self.is_forced:
            raise ValueError("the transcription route does not say which language the model named; use the chat route")
        self.url = parse_url(server)
        self.http = http_client(self.url, section.requests)
        self.client = openai_client(self.url, self.http, section.requests)
        self.gone = threading.Event()
        self.lock = threading.Lock()
        self.num_failures_in_a_row = 0
        try:
            self.endpoint = find_endpoint(section, self.url, self.client, self.http)
            self.check = self.check_prompt()
        except BaseException:
            self.close()
            raise
        self.folder = self.endpoint.folder
        self.num_concurrent = section.requests.num_concurrent

    def close(self) -> None:
        self.client.close()

    def describe(self) -> dict[str, Any]:
        section = self.section
        limits = {}
        if self.limits_beams():
            limits = {name: getattr(section.requests, name) for name in ("beam_tokens", "beam_tokens_per_second")}
        return {
            "kind": "server",
            "dialect": self.endpoint.dialect,
            "server_version": self.endpoint.version,
            "model": self.endpoint.model,
            "route": section.route,
            "prompt": self.check.prompt,
            "prompt_check": self.check.result,
            "language_forcing": section.language_forcing,
            "num_beams": section.num_beams,
            "max_new_tokens": section.max_new_tokens,
            **limits,
        }

    def transcribe(self, audios: Sequence[np.ndarray], language: str | None = None) -> list[Transcription]:
        return [self.transcribe_one(audio, language or self.language.name) for audio in audios]

    def transcribe_one(self, audio: np.ndarray, language: str) -> Transcription:
        """One clip; whatever goes wrong with it is an outcome."""
        if self.gone.is_set():
            return Transcription("", "error", f"{NOT_SENT}: not sent, the server had stopped answering")
        seconds = len(audio) / SAMPLE_RATE_HZ
        if seconds > self.section.requests.max_clip_seconds:
            limit = f"{self.section.requests.max_clip_seconds:g} s (requests.max_clip_seconds)"
            return Transcription("", "error", f"TOO_LONG: not sent, {seconds:.1f} s is more than {limit}")
        result = self.request(audio, language)
        self.take_note(result)
        return result

    def request(self, audio: np.ndarray, language: str) -> Transcription:
        try:
            if self.section.route == "transcription":
                return self.ask_transcription_route(audio)
            best = self.ask(audio, language).choices[0]
            return Transcription.of_output(best.message.content, best.finish_reason, self.is_forced)
        except openai.APIStatusError as error:
            return Transcription("", "error", f"HTTP_{error.status_code}: {quoted(error.response.text)}")
        except openai.APITimeoutError:
            return Transcription("", "error", f"TIMEOUT: no answer within {self.section.requests.timeout_seconds:g} s")
        except openai.APIConnectionError as error:
            return Transcription("", "error", f"CONNECTION: {reason_of(error)}")
        except ValidationError as error:
            return Transcription("", "error", f"BAD_ANSWER: {quoted(one_line(error))}")

    def take_note(self, result: Transcription) -> None:
        """A server that has died or only fails is not asked again, so that the run ends and says so."""
        with self.lock:
            self.num_failures_in_a_row = self.num_failures_in_a_row + 1 if result.error else 0
            hopeless = self.num_failures_in_a_row >= self.section.requests.max_failures_in_a_row
        if hopeless or (result.error and result.error.startswith(("CONNECTION", "TIMEOUT")) and self.is_dead()):
            self.gone.set()

    def is_dead(self) -> bool:
        try:
            get_json(self.http, self.url.copy_with(path="/"), "health")
        except RunFailed:
            return True
        return False

    def ask(self, audio: np.ndarray, language: str, max_tokens: int | None = None, **extra: Any) -> Answer:
        """A chat completion for a clip [num_samples].

        Raises:
            openai.OpenAIError: no answer.
            ValidationError: it is none that a chat completion may be.
        """
        data = base64.b64encode(wav_bytes(audio)).decode("ascii")
        user = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]}
        messages, body = self.forced([user], language)
        options: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_tokens or self.max_tokens(audio)}
        if self.section.num_beams > 1 and max_tokens is None:
            more, extra_body = self.beams()
            options |= more
            body |= extra_body
        raw = self.client.chat.completions.with_raw_response.create(
            model=self.endpoint.model,
            messages=messages,
            extra_body=body | extra,
            **options,
        )
        return Answer.model_validate_json(raw.content)

    def forced(self, messages: list[Any], language: str) -> tuple[list[Any], dict[str, Any]]:
        """Messages and further fields with which the answer begins after `language NAME<asr_text>`, or with it."""
        if not self.is_forced:
            return messages, {}
        variables = {"forced_language": language}
        if self.section.language_forcing == "variable":
            return messages, {"chat_template_kwargs": variables}
        if self.endpoint.dialect == "transformers":
            return messages, {"chat_template_kwargs": {**variables, "chat_template": CHAT_TEMPLATE}}
        begun = {"role": "assistant", "content": forced_prefix(language)}
        return [*messages, begun], {"add_generation_prompt": False, "continue_final_message": True}

    def beams(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.endpoint.dialect == "vllm":
            return {"n": self.section.num_beams}, {"use_beam_search": True}
        return {}, {"generation_config": json.dumps({"num_beams": self.section.num_beams, "do_sample": False})}

    def max_tokens(self, audio: np.ndarray) -> int:
        section = self.section
        if not self.limits_beams():
            return section.max_new_tokens
        seconds = len(audio) / SAMPLE_RATE_HZ
        enough = section.requests.beam_tokens + math.ceil(section.requests.beam_tokens_per_second * seconds)
        return min(section.max_new_tokens, enough)

    def limits_beams(self) -> bool:
        return self.section.num_beams > 1 and self.endpoint.dialect == "vllm"

    def ask_transcription_route(self, audio: np.ndarray) -> Transcription:
        """Text only: this route does not say whether it was cut off, and cuts clips above 30 s into pieces."""
        body: dict[str, Any] = {"max_completion_tokens": self.max_tokens(audio)}
        if self.section.num_beams > 1:
            body |= {"use_beam_search": True, "n": self.section.num_beams}
        raw = self.client.audio.transcriptions.with_raw_response.create(
            model=self.endpoint.model,
            file=("clip.wav", wav_bytes(audio), "audio/wav"),
            language=self.language.iso_code,
            temperature=0.0,
            extra_body=body,
        )
        text = TranscriptionAnswer.model_validate_json(raw.content).text
        return Transcription.of_output(text, "unknown", is_forced=True)

    def check_prompt(self) -> PromptCheck:
        """Compare the server's prompt with the processor's on made-up audio.

        Raises:
            RunFailed: the server does not answer the request.
            ValueError: the prompts differ.
        """
        if self.section.route == "transcription":
            return PromptCheck("not comparable: the transcription route has a prompt of its own", None)
        extra = {"return_token_ids": True} if self.endpoint.dialect == "vllm" else {}
        clips = [made_up_audio(seconds) for seconds in CHECKED_SECONDS]
        try:
            answers = [self.ask(clip, self.language.name, CHECKED_TOKENS, **extra) for clip in clips]
        except openai.OpenAIError as error:
            raise RunFailed(f"{self.endpoint.url} does not take a clip: {reason_of(error)}") from None
        except ValidationError as error:
            raise RunFailed(f"{self.endpoint.url} gives no chat completion: {quoted(one_line(error))}") from None
        names_language = any(one.choices[0].message.content.startswith("language ") for one in answers)
        if self.is_forced and names_language:
            raise ValueError(f"the server's answers begin with a language: {WAY_OUT}")
        if self.endpoint.folder is None:
            return PromptCheck("not checked: the model's processor is not on this machine", None)
        from caspi.model.transcribers.prompt_check import check_prompt

        return check_prompt(self.endpoint.folder, clips, answers, self.language.name if self.is_forced else None)


def made_up_audio(seconds: float) -> np.ndarray:
    """Faint noise, always the same."""
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.01, round(seconds * SAMPLE_RATE_HZ)).astype(np.float32)


def wav_bytes(audio: np.ndarray) -> bytes:
    """A 16-bit WAV of float samples; those that came from 16-bit files come out exactly."""
    samples = np.clip(np.rint(audio * 32768.0), -32768, 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE_HZ)
        writer.writeframes(samples.tobytes())
    return file.getvalue()
