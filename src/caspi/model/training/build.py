"""From a recipe to everything that the stages share: data, model, plan."""

import logging
from collections import Counter
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import torch
from transformers import Qwen3ASRForConditionalGeneration

from caspi.config import Recipe, Stage, Train
from caspi.model.footprint import estimated_tokens
from caspi.model.packed.attention import choose_backend
from caspi.model.packed.batch import Packer
from caspi.model.packed.forward import take_packed_inputs
from caspi.model.training.adapters import Adapters
from caspi.model.training.batch import Encoder
from caspi.model.training.dev_set import PROFILE, DevSet
from caspi.model.training.fusion import checkpoint_llm_layers, compile_blocks, use_liger_kernels
from caspi.model.training.layers import LORA, assign_groups
from caspi.model.training.memory import plan_memory
from caspi.model.training.parts import PackedParts, PaddedParts, Parts
from caspi.model.training.processes import is_main_process
from caspi.model.training.quarantine import Quarantine, check_audio
from caspi.model.training.run import CheckpointStore, Run, StopSignal, load_base
from caspi.model.training.sampler import Plan, make_pools
from caspi.model.training.stages import LearningRates, stage_spans
from caspi.records import Utterance, read_manifest
from caspi.speech.corpora.split import Split, fixed_subset, split_utterances
from caspi.speech.scoring.score import normalize

QUARANTINE_FILE = "quarantine.jsonl"
NO_SOURCE = "(no source)"
MULTIPLE = 128
"""Rows that a GPU's matrix kernels take at once; compiled blocks are then compiled for no other remainder."""

log = logging.getLogger(__name__)


def load_data(config: Train) -> Split:
    """
    Raises:
        ValueError: the manifest cannot be used, or one side of the split is empty.
    """
    log.info("Loading datasets...")
    split = split_utterances(
        read_manifest(config.manifest),
        min_duration_seconds=config.min_audio_length_seconds,
        max_duration_seconds=config.max_audio_length_seconds,
        evaluation_fraction=config.eval_fraction,
        seed=config.seed,
    )
    for item in split.left_out:
        log.info("  left out: %s (%s)", item.id, item.reason)
    return split


def open_quarantine(config: Train, is_resumed: bool) -> Quarantine:
    quarantine = Quarantine(config.output_dir / QUARANTINE_FILE, config.max_undecodable_fraction)
    if is_resumed:
        quarantine.read_back()
    elif is_main_process():
        quarantine.path.unlink(missing_ok=True)
    return quarantine


def check_data(split: Split, quarantine: Quarantine) -> Split:
    """Look at every clip and print what there is; returns the split without evaluation clips that are broken.

    Raises:
        RunFailed: too many clips are broken.
    """
    split, broken = check_audio(split, quarantine)
    for item in broken if is_main_process() else ():
        log.warning("WARNING: clip %s cannot be decoded (%s): left out; see %s", item.id, item.reason, quarantine.path)
    for source, number in sorted(Counter(one.source or NO_SOURCE for one in split.training).items()):
        log.info("✓ %s: %s samples", source, f"{number:,}")
    log.info("✓ Total training samples: %s", f"{len(split.training):,}")
    log.info("✓ Evaluation samples: %s; left out: %s", f"{len(split.evaluation):,}", f"{len(split.left_out):,}")
    log.info("✓ In quarantine: %s\n", f"{len(quarantine.items):,}")
    return split


def build_run(
    recipe: Recipe,
    split: Split,
    quarantine: Quarantine,
    store: CheckpointStore,
    stop: StopSignal,
    world_size: int,
    limits: Mapping[str, int | None] = MappingProxyType({}),
) -> Run:
    """Load the model and plan the steps. `limits` are the checkpoint's, where memory did not suffice before.

    Raises:
        ValueError: model and recipe do not fit together, or nothing can be evaluated.
    """
    config = recipe.train
    log.info("Loading model...")
    model, processor = load_base(config)
    log.info("✓ Model loaded: %s\n", config.base_model)
    encoder = Encoder(processor, recipe.language.name)
    sources = [item.source or NO_SOURCE for item in split.training]
    pools = make_pools(sources, config.dataset_weights) if config.dataset_weights else ()
    lengths = [estimated_tokens(item.duration, item.text) for item in split.training]
    plan = Plan(len(split.training), config.effective_batch_size(world_size), config.seed, pools, lengths)
    adapters = add_adapters(config, model) if config.lora_rank else None
    spans = stage_spans(stages_of(config), plan.steps_per_epoch)
    on_gpu = torch.cuda.is_available()
    memory_bytes = torch.cuda.get_device_properties(0).total_memory if on_gpu else None
    memory = plan_memory(config, recipe.plan, memory_bytes, world_size)
    fit_out = partial(fuse, config, num_checkpointed=memory.num_checkpointed_llm_layers)
    fit_out(model)
    parts = build_parts(config, model, encoder, memory.token_budget, limits)
    return Run(
        config=config,
        model=model,
        processor=processor,
        encoder=encoder,
        assigned=assign_groups(model, config.num_llm_top_layers, config.num_audio_top_layers),
        utterances=split.training,
        dev_set=build_dev_set(recipe, split.evaluation, encoder, parts),
        plan=plan,
        spans=spans,
        rates=LearningRates(config, spans),
        store=store,
        stop=stop,
        quarantine=quarantine,
        adapters=adapters,
        parts=parts,
        fit_out=fit_out,
    )


def fuse(config: Train, model: Qwen3ASRForConditionalGeneration, num_checkpointed: int) -> None:
    """Make a model that was loaded the one that trains; it may then take packed inputs as well."""
    if num_checkpointed:
        checkpoint_llm_layers(model, num_checkpointed)
        log.info(
            "✓ The lowest %d LLM layers are computed again in the backward pass, to save memory\n", num_checkpointed
        )
    if config.liger:
        use_liger_kernels(model)
        log.info("✓ Liger kernels in the language model\n")
    if config.compile:
        compile_blocks(model)
        log.info("✓ Blocks will be compiled in the first steps of each stage\n")
    if config.step == "packed":
        take_packed_inputs(model)


def build_parts(
    config: Train,
    model: Qwen3ASRForConditionalGeneration,
    encoder: Encoder,
    token_budget: int,
    limits: Mapping[str, int | None],
) -> Parts:
    parts: Parts
    if config.step == "padded":
        parts = PaddedParts(encoder, config.batch_size)
    else:
        on_gpu = torch.cuda.is_available()
        backend = choose_backend("cuda" if on_gpu else "cpu")
        packer = Packer(model.config, encoder.pad_id, MULTIPLE if on_gpu or config.compile else 1)
        parts = PackedParts(encoder, packer, token_budget)
        log.info("✓ Packed step: attention by %s, at most %s positions at once\n", backend.name, f"{token_budget:,}")
    parts.limit = min(parts.limit, limits.get(parts.record_key) or parts.limit)
    return parts


def add_adapters(config: Train, model: Qwen3ASRForConditionalGeneration) -> Adapters:
    adapters = Adapters(model, config.num_llm_top_layers, config.lora_rank, config.lora_alpha, config.seed)
    number = sum(tensor.numel() for tensor in adapters.tensors().values())
    log.info(
        "✓ LoRA: rank %d, alpha %g on %d attention matrices of frozen LLM layers adds %s parameters (LR=%.0e)\n",
        config.lora_rank,
        config.lora_alpha,
        len(adapters.names),
        f"{number:,}",
        config.lora_learning_rate,
    )
    return adapters


def stages_of(config: Train) -> tuple[Stage, ...]:
    """The recipe's stages; adapters train in all of them."""
    if not config.lora_rank:
        return config.stages
    rates = {LORA: config.lora_learning_rate}
    return tuple(one.model_copy(update={"learning_rates": one.learning_rates | rates}) for one in config.stages)


def build_dev_set(recipe: Recipe, utterances: list[Utterance], encoder: Encoder, parts: Parts) -> DevSet:
    config = recipe.train
    scorable = [item for item in utterances if normalize(item.text, PROFILE)]
    if not scorable:
        raise ValueError("no evaluation utterance has a word that can be scored")
    chosen = {scorable[index].id for index in fixed_subset(scorable, config.max_wer_utterances, config.seed)}
    return DevSet(
        utterances,
        [index for index, item in enumerate(utterances) if item.id in chosen],
        encoder,
        parts.to_evaluate(config.eval_batch_size),
        language=recipe.language.name,
        batch_size=config.eval_batch_size,
        max_new_tokens=config.max_new_tokens,
        cache_mib=config.feature_cache_mib,
    )
