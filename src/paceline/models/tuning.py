"""Parameter-efficient tuning: selection of the trained parameters of a model, and modules added for them.

    full      every parameter
    head      the head
    bias      the head, and the bias of every layer, LayerNorm's included (BitFit)
    norm      the head, and scale and bias of every norm
    adapter   the head, and after each block's network W_up GELU(W_down h) + h, with W_up = 0 initially
    prompt    the head, and tokens inserted before the patches: once (shallow), or new ones before each block (deep)
    ssf       the head, and a scale and a shift of each output of linear layers, convolutions and norms, initially 1 and 0
    lora      low-rank additions B A to the attention layers, with B = 0 initially; without the head by default

A frozen model is completely frozen: running statistics of norms become constants.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.errors import ConfigError, MissingExtraError
from paceline.models.split import head_name
from paceline.models.transformer import Block, VisionTransformer

__all__ = ["Adapter", "Prompts", "Prototype", "ScaleShift", "Tuning", "freeze_statistics", "prompt_reach", "put_scales", "tuned"]

Prototype = Literal["full", "head", "bias", "norm", "adapter", "prompt", "ssf", "lora"]

_BIASED = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "query", "key", "value")


@dataclass(frozen=True)
class Tuning:
    """Selection of the parameters to train.

    Args:
        prototype: see the module docstring.
        width: bottleneck m of adapters.
        tokens: number P of prompts.
        deep: new prompts before each block.
        rank, alpha, dropout: of LoRA, whose additions are scaled by alpha / rank.
        targets: suffixes of the names of LoRA's layers; empty selects the attention projections, else all linear layers
            except the head.
        with_head: whether the head is trained; None trains it, except with LoRA.

    Raises:
        ConfigError: a value is out of range.
    """

    prototype: Prototype = "bias"
    width: int = 8
    tokens: int = 10
    deep: bool = True
    rank: int = 4
    alpha: float = 8.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    with_head: bool | None = None

    def __post_init__(self) -> None:
        for name in ("width", "tokens", "rank", "alpha"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"peft={self.prototype} with {name}={getattr(self, name)} must be above 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"peft={self.prototype} with dropout={self.dropout} must be at least 0 and below 1")

    @property
    def head(self) -> bool:
        """Whether the head is trained."""
        return self.prototype != "lora" if self.with_head is None else self.with_head

    def names(self, module: nn.Module) -> list[str]:
        """Return the names of the trained parameters of a module built by `tuned`."""
        chosen = {name for name, _ in module.named_parameters() if self._trains(module, name)}
        return [name for name, _ in module.named_parameters() if name in chosen]

    def _trains(self, module: nn.Module, name: str) -> bool:
        place, _, leaf = name.rpartition(".")
        if self.prototype == "full" or (self.head and place == head_name(module)):
            return True
        owner = module.get_submodule(place)
        return {
            "bias": leaf == "bias" and isinstance(owner, _BIASED) and place != _head_or_none(module),
            "norm": leaf in ("weight", "bias") and isinstance(owner, _NORMS),
            "adapter": ".after." in name,
            "prompt": place == "prompts",
            "ssf": ".ssf." in name,
            "lora": "lora_" in name,
        }.get(self.prototype, False)


class Adapter(nn.Module):
    """h + W_up GELU(W_down h); initially the identity."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Return shape [N, T, d]."""
        out: Tensor = h + self.up(F.gelu(self.down(h)))
        return out


class Prompts(nn.Module):
    """Learnt tokens between the class token and the patches.

    Args:
        tokens: number of tokens.
        dim: width d.
        blocks: number of blocks with new tokens; 1 inserts them once.
        reach: initial values are drawn from U(-reach, reach).
    """

    def __init__(self, tokens: int, dim: int, blocks: int, reach: float) -> None:
        super().__init__()
        self.tokens = tokens
        self.values = nn.Parameter(reach * (2 * torch.rand(blocks, tokens, dim) - 1))

    def forward(self, x: Tensor, block: int) -> Tensor:
        """Return x with the block's tokens, replacing those of the previous block."""
        if block >= len(self.values):
            return x
        kept = x[:, 1:] if block == 0 else x[:, 1 + self.tokens :]
        return torch.cat([x[:, :1], self.values[block].expand(len(x), -1, -1), kept], 1)


class ScaleShift(nn.Module):
    """h * scale + shift for each output (Lian et al., NeurIPS 2022); initially the identity.

    Args:
        width: number of outputs (the last dimension), or of channels.
        channels_first: outputs are [N, width, H, W].
    """

    def __init__(self, width: int, channels_first: bool = False) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.shape = (-1, 1, 1) if channels_first else (-1,)

    def forward(self, h: Tensor) -> Tensor:
        """Return the shape of `h`."""
        return h * self.scale.view(self.shape) + self.shift.view(self.shape)


def _scaled(layer: nn.Module, given: Any, out: Tensor) -> Tensor:
    """Hook that applies a layer's `ScaleShift` to its output."""
    shifted: Tensor = layer.ssf(out)  # type: ignore[operator]
    return shifted


def put_scales(module: nn.Module, make: Callable[[int, bool], nn.Module] = ScaleShift) -> None:
    """Put a scale and a shift after each linear layer, convolution and norm of a model but its head.

    Args:
        module: changed in place.
        make: makes one from (number of outputs, whether they are channels).
    """
    own = _head_or_none(module)
    for name, layer in list(module.named_modules()):
        if name == own or not isinstance(layer, (nn.Linear, nn.Conv2d, *_NORMS)):
            continue
        if isinstance(layer, nn.LayerNorm):
            layer.ssf = make(layer.normalized_shape[-1], False)
        else:
            bias_like = next(b for b in (layer.bias, layer.weight) if b is not None)
            layer.ssf = make(len(bias_like), not isinstance(layer, nn.Linear | nn.BatchNorm1d))
        layer.register_forward_hook(_scaled)


def tuned(model: Callable[[], nn.Module], tuning: Tuning) -> nn.Module:
    """Build a model and add the modules that a tuning needs, with torch's global random state.

    Raises:
        ConfigError: the model does not support the tuning.
        MissingExtraError: LoRA's library is not installed.
    """
    module = model()
    if tuning.prototype == "full":
        return module
    freeze_statistics(module)
    if tuning.prototype == "adapter":
        blocks = [b for b in module.modules() if isinstance(b, Block)]
        if not blocks:
            raise ConfigError(f"{type(module).__name__} does not support adapters; use vit or char_model, or peft=bias or lora")
        for block in blocks:
            block.after = Adapter(block.fc2.out_features, tuning.width)
    elif tuning.prototype == "prompt":
        if not isinstance(module, VisionTransformer):
            raise ConfigError(f"{type(module).__name__} does not support prompts; use vit, or peft=bias or lora")
        module.prompts = Prompts(tuning.tokens, module.width, len(module.blocks) if tuning.deep else 1, prompt_reach(module))
    elif tuning.prototype == "ssf":
        put_scales(module)
    elif tuning.prototype == "lora":
        _put_lora(module, tuning)
    return module


def prompt_reach(vit: VisionTransformer) -> float:
    """Return the largest initial value of prompts, which depends on the size of a patch and on the width."""
    return math.sqrt(6 / (vit.channels * vit.patch**2 + vit.width))


def _put_lora(module: nn.Module, tuning: Tuning) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("peft", "peft") from error

    linear = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    attention = [n for n in linear if n.rpartition(".")[2] in _ATTENTION]
    wanted = [n for n in linear if any(n == t or n.endswith(f".{t}") for t in tuning.targets)]
    layers = wanted if tuning.targets else attention or [n for n in linear if n != _head_or_none(module)] or linear
    if not layers:
        raise ConfigError(f"targets={list(tuning.targets)} match no linear layer; the model has {linear}")
    given: dict[str, Any] = {"r": tuning.rank, "lora_alpha": tuning.alpha, "lora_dropout": tuning.dropout}
    inject_adapter_in_model(LoraConfig(**given, target_modules=layers, bias="none"), module)


def _head_or_none(module: nn.Module) -> str | None:
    try:
        return head_name(module)
    except ConfigError:
        return None


def freeze_statistics(module: nn.Module) -> None:
    """Convert float buffers to constants, and make norms use them in training as well."""
    for part in list(module.modules()):
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
            part.train = types.MethodType(_stays, part)  # type: ignore[method-assign]
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                del part._buffers[name]
                part.register_parameter(name, nn.Parameter(buffer, requires_grad=False))


def _stays(self: Any, mode: bool = True) -> Any:
    """Replacement of a module's `train` that leaves its mode unchanged."""
    return self
