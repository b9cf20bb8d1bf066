"""The memory of the card this process trains on."""

import torch

OutOfMemory = torch.cuda.OutOfMemoryError
BYTES_OF_MOMENTS = 8
"""Of Adam, per trained parameter: two float32."""


def leaves_room(device: torch.device, num_new_moments: int) -> bool:
    """Whether Adam's moments that the first step will allocate fit beside the peak so far; always, without a GPU."""
    if device.type != "cuda":
        return True
    peak = torch.cuda.max_memory_reserved(device) + BYTES_OF_MOMENTS * num_new_moments
    return peak <= torch.cuda.get_device_properties(device).total_memory


def free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
