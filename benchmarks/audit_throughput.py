"""C7 (on a GPU G8): how fast the audit aligns with the published aligner's size, against one pair at a time.

Random weights: speed does not depend on their values. Baseline and ours run in the same process, in turn:

* `one pair at a time`: as `Qwen3ForcedAligner.align` in a loop: processor, forward pass with logits at every position,
  official decode;
* `batched`: ours, but every pair comes with an audio of its own, so that nothing can be shared;
* `batched, shared`: ours as the audit calls it, transcript and decoy of a clip together.

    python -m benchmarks.audit_throughput --output docs/results
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Qwen3ASRConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForTokenClassification,
    Qwen3ASRProcessor,
)

from benchmarks.measure import Timing, alternate, environment, markdown_table, ratios, seconds_of, write_result
from caspi.config import Audit
from caspi.model.aligners import AlignmentItem
from caspi.model.aligners.qwen import QwenAligner
from caspi.model.prompt import ALIGNER_TEMPLATE
from caspi.model.tiny_models import build_tokenizer
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ
from caspi.speech.synthetic.synth import lexicon

NUM_PARAMETERS = 917_728_896
"""Of Qwen/Qwen3-ForcedAligner-0.6B, which publishes 918 M."""
VOCABULARY_SIZE = 152_064
WORDS_PER_SECOND = 2.1
"""Of Hebrew speech; a 10 s clip then has about the 85 text and timestamp tokens of SPEED section 4."""
BASELINE, BATCHED, SHARED = "one pair at a time", "batched", "batched, shared"


class Workload(NamedTuple):
    seconds: float
    num_clips: int

    @property
    def name(self) -> str:
        return f"{self.num_clips} clips of {self.seconds:g} s, 2 transcripts each"


WORKLOADS = {"cpu": (Workload(4.3, 4), Workload(10.0, 1)), "cuda": (Workload(4.3, 256), Workload(10.0, 128))}
BATCH_SIZES = {"cpu": (16, 300.0), "cuda": (128, 2000.0)}
"""Clips and seconds of a batch."""


def published_config(tokenizer: Any, num_layers: tuple[int, int] = (24, 28)) -> Qwen3ASRConfig:
    """The published shape, or with fewer layers of the encoder and of the language model."""
    ids = tokenizer.get_vocab()
    audio: dict[str, Any] = {
        "model_type": "qwen3_asr_encoder",
        "num_mel_bins": 128,
        "d_model": 1024,
        "encoder_layers": num_layers[0],
        "encoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "output_dim": 1024,
        "downsample_hidden_size": 480,
    }
    text: dict[str, Any] = {
        "model_type": "qwen3",
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": num_layers[1],
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 65536,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    options: dict[str, Any] = {"num_labels": 5000}
    return Qwen3ASRConfig(
        audio_config=audio,
        text_config=text,
        audio_token_id=ids["<|audio_pad|>"],
        timestamp_token_id=ids["<timestamp>"],
        pad_token_id=ids["<|endoftext|>"],
        tie_word_embeddings=False,
        **options,
    )


def build_aligner(device: str) -> QwenAligner:
    """Random weights of one scale, written where they stay: the usual initialisation takes a minute."""
    tokenizer = build_tokenizer(lexicon(120))
    processor = Qwen3ASRProcessor(
        feature_extractor=Qwen3ASRFeatureExtractor(feature_size=128),
        tokenizer=tokenizer,
        chat_template=ALIGNER_TEMPLATE,
    )
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Qwen3ASRForTokenClassification(published_config(tokenizer))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == NUM_PARAMETERS, f"{count} parameters, published: {NUM_PARAMETERS}"
    model.to_empty(device=device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
        for module in model.modules():
            if "Norm" in type(module).__name__:
                next(module.parameters()).fill_(1.0)
    refill_buffers(model, tokenizer)
    batch_size, batch_seconds = BATCH_SIZES[device]
    settings = Audit(aligner_model="random", model_batch_size=batch_size, model_batch_seconds=batch_seconds)
    return QwenAligner(model, processor, settings)


def refill_buffers(model: Qwen3ASRForTokenClassification, tokenizer: Any) -> None:
    """Tables that are computed, not learned, and that `to_empty` left unwritten: those of a model made in memory."""
    small = Qwen3ASRForTokenClassification(published_config(tokenizer, (1, 1)))
    tables = dict(small.named_buffers())
    for name, buffer in model.named_buffers():
        buffer.copy_(tables[name])


def make_items(workload: Workload) -> list[AlignmentItem]:
    """Transcript and decoy of every clip, one array per clip."""
    rng = np.random.default_rng(0)
    words = lexicon()
    items = []
    for _ in range(workload.num_clips):
        samples = rng.normal(0, 0.1, round(workload.seconds * SAMPLE_RATE_HZ)).astype(np.float32)
        for _ in range(2):
            items.append(AlignmentItem(samples, tuple(rng.choice(words, round(WORDS_PER_SECOND * workload.seconds)))))
    return items


@torch.inference_mode()
def align_one(aligner: QwenAligner, item: AlignmentItem) -> Any:
    inputs, words = aligner.processor.prepare_forced_aligner_inputs(audio=item.samples, transcript=" ".join(item.words))
    inputs = inputs.to(aligner.device, aligner.model.dtype)
    logits = aligner.model(**inputs).logits
    token = aligner.model.config.timestamp_token_id
    return aligner.processor.decode_forced_alignment(logits, inputs["input_ids"], words, token)


def measure(aligner: QwenAligner, workload: Workload, num_rounds: int) -> dict[str, Any]:
    items = make_items(workload)
    alone = [item._replace(samples=item.samples.copy()) for item in items]
    with FlopCounterMode(display=False) as counter:
        align_one(aligner, items[0])
    core_seconds: dict[str, list[float]] = {}
    timings = alternate(
        {
            BASELINE: counted(BASELINE, lambda: [align_one(aligner, item) for item in items], core_seconds),
            BATCHED: counted(BATCHED, lambda: aligner.align(alone), core_seconds),
            SHARED: counted(SHARED, lambda: aligner.align(items), core_seconds),
        },
        num_rounds,
        num_warmups=0,
    )
    cores = {name: Timing(tuple(seconds)) for name, seconds in core_seconds.items()}
    return {
        "workload": workload.name,
        "num_pairs": len(items),
        "gflop_per_pair_alone": counter.get_total_flops() / 1e9,
        "seconds": {name: list(timing.seconds) for name, timing in timings.items()},
        "core_seconds": core_seconds,
        "faster_by_wall_clock": {name: ratios(timings, name)[BASELINE] for name in (BATCHED, SHARED)},
        "faster_by_core_seconds": {name: ratios(cores, name)[BASELINE] for name in (BATCHED, SHARED)},
    }


def counted(name: str, subject: Callable[[], object], core_seconds: dict[str, list[float]]) -> Callable[[], object]:
    """The subject, noting the processor time of all threads: on a machine that others use it says more than a clock."""

    def run() -> object:
        start = time.process_time()
        result = subject()
        core_seconds.setdefault(name, []).append(time.process_time() - start)
        return result

    return run


def matmul_gflop_per_second(device: str) -> float:
    """What the machine does with this model's most frequent shape, 1,000 tokens through the feed-forward layer."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = torch.rand(1000, 1024, dtype=dtype, device=device), torch.rand(1024, 3072, dtype=dtype, device=device)
    seconds_of(lambda: left @ right)
    best = min(seconds_of(lambda: left @ right) for _ in range(10))
    return 2 * 1000 * 1024 * 3072 / best / 1e9


def table(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        for name in result["seconds"]:
            wall, cores = (Timing(tuple(result[kind][name])) for kind in ("seconds", "core_seconds"))
            faster = [result[f"faster_by_{kind}"].get(name) for kind in ("wall_clock", "core_seconds")]
            rows.append(
                [
                    result["workload"],
                    name,
                    f"{wall.median:.1f} s",
                    f"{100 * wall.spread_fraction:.0f} %",
                    f"{cores.median / result['num_pairs']:.2f}",
                    f"{100 * cores.spread_fraction:.0f} %",
                    *("" if ratio is None else f"{ratio:.2f}x" for ratio in faster),
                ]
            )
    header = ["workload", "how", "wall clock", "spread", "core-seconds per pair", "spread"]
    return markdown_table([*header, "faster by the clock", "by core-seconds"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--num-rounds", type=int, default=2)
    parser.add_argument("--num-threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    aligner = build_aligner(device)
    print(
        f"{NUM_PARAMETERS:,} parameters on {device} in {aligner.dtype}, {time.perf_counter() - start:.0f} s", flush=True
    )
    rate = matmul_gflop_per_second(device)
    results = []
    for workload in WORKLOADS[device]:
        results.append(measure(aligner, workload, arguments.num_rounds))
        print(table(results[-1:]), flush=True)
    write_result(
        arguments.output / f"audit_throughput_{device}.json",
        {"matmul_gflop_per_second": rate, "num_rounds": arguments.num_rounds, "workloads": results},
    )
    where = environment()
    print(f"\n{where['date']}, {where['cpu']}, {where['gpu']}, {rate:.0f} GFLOP/s in a matmul of this model's shape")


if __name__ == "__main__":
    main()
