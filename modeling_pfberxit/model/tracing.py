"""Who watches a forward pass: then Python must decide nothing on the values of tensors, and little on their sizes.

A tracer runs the model once and keeps the operations it saw; what Python decided on the values of that one call would
hold for every later one. Tensors that are fake, or on the meta device, have no values. Reading one on an accelerator
waits for all that is queued there.
"""

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from transformers.utils import is_torchdynamo_exporting, is_tracing


def is_watched(tensor: Tensor) -> bool:
    """Whether the tensor has no values or they belong to a tracer: torch.compile, export, jit, make_fx, CUDA graphs."""
    return is_tracing(tensor) or tensor.is_meta or get_proxy_mode() is not None


def is_recorded(tensor: Tensor) -> bool:
    """Whether one graph is kept for all that follows. `torch.compile` instead comes back where values are asked for."""
    return is_watched(tensor) and (is_torchdynamo_exporting() or not torch.compiler.is_compiling())


def is_readable(tensor: Tensor) -> bool:
    """Whether a check may look at the values: there are some, nobody traces, no accelerator has to be waited for."""
    return tensor.device.type == "cpu" and not is_watched(tensor)
