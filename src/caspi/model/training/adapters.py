"""LoRA on the attention of the LLM layers that stay frozen: a few parameters more, merged wherever weights are written.

A checkpoint holds the merged model, which every reader takes for any other, and beside it the adapters, with which
training goes on. The weights under the adapters never change; a resumed run has them from the base model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen3ASRForConditionalGeneration

from caspi.model.training.layers import LORA_PART, frozen_attention
from caspi.speech.seeds import seeded_generator

ADAPTER_FILE = "lora.safetensors"


class Adapters:
    """The adapters of one model, injected into it."""

    def __init__(
        self, model: Qwen3ASRForConditionalGeneration, num_llm_top_layers: int, rank: int, alpha: float, seed: int
    ) -> None:
        """Adapters change nothing until they have trained: their second matrix is zero."""
        self.model = model
        self.names = [name.removesuffix(".weight") for name in frozen_attention(model, num_llm_top_layers)]
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=self.names, lora_dropout=0.0),  # type: ignore[arg-type]
            model,
        )
        for name, layer in self.layers().items():
            first = cast(nn.Parameter, layer.lora_A["default"].weight)
            bound = first.shape[1] ** -0.5  # Kaiming's for a = sqrt(5), as peft and torch have it
            rng = seeded_generator(seed, "lora", name)
            drawn = torch.from_numpy(rng.uniform(-bound, bound, tuple(first.shape))).to(torch.float32)
            first.data = drawn.to(first.device)
            second = cast(nn.Parameter, layer.lora_B["default"].weight)
            second.data = torch.zeros_like(second, dtype=torch.float32)

    def layers(self) -> dict[str, LoraLinear]:
        return {name: module for name in self.names if isinstance(module := self.model.get_submodule(name), LoraLinear)}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters() if LORA_PART in name}

    @contextmanager
    def merged(self) -> Iterator[None]:
        """While the block runs, the model is a plain one whose weights hold what the adapters learnt."""
        layers = self.layers()
        kept = {name: cast(nn.Parameter, layer.get_base_layer().weight) for name, layer in layers.items()}
        for name, layer in layers.items():
            plain = layer.get_base_layer()
            change = layer.get_delta_weight("default")
            plain.weight = nn.Parameter(kept[name].detach().float() + change, False)
            self.replace(name, plain)
        try:
            yield
        finally:
            for name, layer in layers.items():
                layer.get_base_layer().weight = kept[name]
                self.replace(name, layer)

    def remove(self) -> None:
        """Leave the plain model, as it was before."""
        for name, layer in self.layers().items():
            self.replace(name, layer.get_base_layer())

    def replace(self, name: str, module: nn.Module) -> None:
        parent, _, attribute = name.rpartition(".")
        setattr(self.model.get_submodule(parent), attribute, module)

    def save(self, folder: Path) -> None:
        save_file({name: tensor.cpu().contiguous() for name, tensor in self.tensors().items()}, folder / ADAPTER_FILE)

    def load(self, folder: Path) -> None:
        """
        Raises:
            ValueError: the file is damaged or holds other adapters.
        """
        try:
            found = load_file(folder / ADAPTER_FILE)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"adapters {folder / ADAPTER_FILE} cannot be read: {error}") from None
        wanted = self.tensors()
        if {name: tensor.shape for name, tensor in found.items()} != {n: t.shape for n, t in wanted.items()}:
            raise ValueError(f"adapters {folder / ADAPTER_FILE} are not those of this recipe")
        for name, tensor in wanted.items():
            tensor.copy_(found[name])
