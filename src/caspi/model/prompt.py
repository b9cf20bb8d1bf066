"""The prompts of Qwen3-ASR: one wording for training, transcription and serving."""

CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
{%- if content is string -%}{{- content -}}
{%- else -%}{%- for part in content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- '<|im_start|>system\\n' -}}
{%- for message in messages if message.role == 'system' -%}{{- text_of(message.content) -}}{%- endfor -%}
{{- '<|im_end|>\\n<|im_start|>user\\n' -}}
{%- for message in messages if message.content is not string -%}
{%- for part in message.content if part.type in ('audio', 'input_audio', 'audio_url') -%}
{{- '<|audio_start|><|audio_pad|><|audio_end|>' -}}
{%- endfor -%}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- for message in messages if message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- generation -%}{{- text_of(message.content) -}}{{- '<|im_end|>' -}}{%- endgeneration -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if forced_language is defined and forced_language -%}
{{- 'language ' + forced_language + '<asr_text>' -}}
{%- endif -%}
{%- endif -%}
"""
"""Renders exactly what the model was trained on, and takes one more variable: with `forced_language` (a name such as
"Hebrew", which the processor's own language table lacks) the assistant's turn begins with `forced_prefix`.
`{% generation %}` marks the assistant's text up to and including `<|im_end|>`."""

ALIGNER_TEMPLATE = """\
{%- for message in messages -%}
{%- for part in message.content if part.type == 'audio' -%}
{{- '<|audio_start|><|audio_pad|><|audio_end|>' -}}
{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}
{{- part.text + '<timestamp><timestamp>' -}}
{%- endfor -%}
{%- endfor -%}
"""
"""The forced aligner's prompt: audio, then each word with the slots of its start and its end; no chat turns."""


def forced_prefix(language: str) -> str:
    """The beginning of the assistant's turn that fixes the language, for example `language Hebrew<asr_text>`."""
    return f"language {language}<asr_text>"
