"""The networks of the library: those of training and sampling, which a folder or a repository on the Hugging Face hub can hold."""

from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors.torch import save_file
from torch import Tensor

from maskdit.artifacts.atomic import read_json, replacing, write_json
from maskdit.config.base import UserError
from maskdit.model import transformer
from maskdit.model.flops import Sizes
from maskdit.weights.importing import check
from maskdit.weights.reading import files_of, is_safetensors, read_safetensors

SIZES = ("side", "channels", "classes", "encoder", "decoder")
NAMES = (
    "config.json",
    *(f"{stem}*.safetensors{end}" for stem in ("model", "diffusion_pytorch_model") for end in ("", ".index.json")),
)
FILES = [f"{folder}{name}" for folder in ("", "transformer/") for name in NAMES]  # a pattern with * first would match in any folder
CARD = """---
{{ card_data }}
---
A network of [maskdit](https://arxiv.org/abs/2306.09305): `from maskdit import MaskDiT; net = MaskDiT.from_pretrained(NAME)`.
`config.json` has its sizes, the shift and scale of its latents, and its classes.
"""
OF_DOWNLOADS = ("revision", "cache_dir", "force_download", "local_files_only", "token")


class MaskDiT(transformer.MaskDiT, ModelHubMixin, library_name="maskdit", model_card_template=CARD):
    """A MaskDiT that can be saved and shared: F(c_in * y; c_noise, label), the raw network inside EDM's preconditioning.

    side: of a latent, in positions. channels: of a latent. classes: labels are 0 to classes - 1, and -1 is the null label.
    encoder: `patch`, `depth`, `width` and `heads`. decoder: `depth`, `width` and `heads`; None: a DiT, which hides nothing.
    latent_shift, latent_scale: the network sees (latent - shift) * scale, per channel; without them, the latent as it is.
    class_names: of the labels, if they have names.
    """

    def __init__(
        self,
        *,
        side: int,
        channels: int,
        classes: int,
        encoder: Sizes,
        decoder: Sizes | None = None,
        latent_shift: tuple[float, ...] = (),
        latent_scale: tuple[float, ...] = (),
        class_names: tuple[str, ...] = (),
    ) -> None:
        if side % encoder["patch"]:
            raise ValueError(f"side: {side} is not a multiple of the patch of {encoder['patch']}")
        if any(len(factor) not in (0, channels) for factor in (latent_shift, latent_scale)):
            raise ValueError(f"latent_shift, latent_scale: must have one number for each of the {channels} channels")
        if len(class_names) not in (0, classes):
            raise ValueError(f"class_names: {len(class_names)} names for {classes} classes")
        super().__init__(side=side, channels=channels, classes=classes, encoder=encoder, decoder=decoder)
        sizes: dict[str, Any] = {"side": side, "channels": channels, "classes": classes, "encoder": encoder, "decoder": decoder}
        self.architecture, self.class_names = sizes, tuple(class_names)
        self.latent_shift = tuple(latent_shift or [0.0] * channels)
        self.latent_scale = tuple(latent_scale or [1.0] * channels)

    @property
    def tokens(self) -> int:
        """The number of patches of a latent."""
        return int(self.pos_embed.shape[1])

    def scaled(self, latent_BCHW: Tensor) -> Tensor:
        """What the network sees of an autoencoder's latents: (latent - shift) * scale."""
        return (latent_BCHW - self._factor(latent_BCHW, self.latent_shift)) * self._factor(latent_BCHW, self.latent_scale)

    def unscaled(self, seen_BCHW: Tensor) -> Tensor:
        """The inverse of `scaled`: latents that the autoencoder can decode."""
        return seen_BCHW / self._factor(seen_BCHW, self.latent_scale) + self._factor(seen_BCHW, self.latent_shift)

    @staticmethod
    def _factor(like: Tensor, numbers: tuple[float, ...]) -> Tensor:
        return torch.tensor(numbers, dtype=like.dtype, device=like.device).reshape(1, -1, 1, 1)

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], **options: Any) -> Self:  # type: ignore[override]
        """Open a folder that `save_pretrained` or `maskdit export --format diffusers` has written, or a repository with its files.

        Only safetensors are read, and no code of the folder is run. The network is in evaluation mode, on the CPU.
        options: `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` of huggingface_hub.
        Raises UserError for another folder, and for tensors that are not those of the network in its config.json.
        """
        folder = Path(name)
        if not folder.is_dir():
            try:
                chosen = {word: options.pop(word) for word in OF_DOWNLOADS if word in options}
                folder = Path(snapshot_download(str(name), allow_patterns=FILES, library_name="maskdit", **chosen))
            except HFValidationError:
                raise UserError(f"{name}: no such folder, and no name of a repository on the hub") from None
        for place in (folder, folder / "transformer"):
            if (place / "config.json").is_file():
                return super().from_pretrained(place, **options)
        raise UserError(f"{folder}: holds neither config.json nor transformer/config.json; name a folder that maskdit has written")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        folder = Path(model_id)
        config = read_json(folder / "config.json", *SIZES)
        files = files_of(folder)
        if not all(map(is_safetensors, files)):
            raise UserError(f"{folder}: {files[0].name} is not in the format of safetensors, the only one that is read")
        tensors = {key.removeprefix("net."): tensor for key, tensor in read_safetensors(files).items()}
        if "decoder" not in cls._hub_mixin_init_parameters and config["decoder"] is not None:
            raise UserError(f"{folder}: holds a MaskDiT, which has a decoder; open it by MaskDiT")
        try:
            check(folder, tensors, {size: config[size] for size in SIZES})
            net = cls(**{key: value for key, value in options.items() if key not in OF_DOWNLOADS})
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder / 'config.json'}: not as maskdit writes it ({error})") from None
        net.load_state_dict(tensors)
        return net.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.state_dict().items()}
        with replacing(save_directory / "model.safetensors", sum(each.nbytes for each in tensors.values())) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        latent = {"latent_shift": self.latent_shift, "latent_scale": self.latent_scale, "class_names": self.class_names}
        write_json(save_directory / "config.json", self.architecture | latent)


class DiT(MaskDiT):
    """A DiT, which is a MaskDiT without a decoder; see there for the arguments."""

    def __init__(
        self,
        *,
        side: int,
        channels: int,
        classes: int,
        encoder: Sizes,
        latent_shift: tuple[float, ...] = (),
        latent_scale: tuple[float, ...] = (),
        class_names: tuple[str, ...] = (),
    ) -> None:
        latent: dict[str, Any] = {"latent_shift": latent_shift, "latent_scale": latent_scale, "class_names": class_names}
        super().__init__(side=side, channels=channels, classes=classes, encoder=encoder, decoder=None, **latent)
