"""Labels to images by EDM's Heun sampler, as a diffusers pipeline. `export` copies this file."""

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from maskdit.model.diffusion import guided
from maskdit.model.samplers import heun, sigma_steps


class MaskDiTPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A MaskDiT network and the autoencoder that made its latents."""

    def __init__(self, transformer: Any, vae: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae)

    @torch.inference_mode()
    def __call__(
        self,
        class_labels: list[int | str],
        guidance_scale: float = 1.5,
        num_inference_steps: int = 40,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """One image per label, which is a class's number or name.

        `latents` is standard normal noise (B, C, H, W); if omitted it is drawn from `generator`. A guidance scale of 1 turns
        guidance off. The network is evaluated 2 * num_inference_steps - 1 times. `output_type` is pil, np (B, H, W, 3 in [0, 1])
        or latent. Raises ValueError for a label that is not a number of a class.
        """
        config = self.transformer.config
        where = self._execution_device
        names = {name: number for number, name in enumerate(config.class_names)}
        labels = torch.tensor([names[label] if isinstance(label, str) else label for label in class_labels], device=where)
        if labels.min() < 0 or labels.max() >= config.classes:
            raise ValueError(f"class_labels: expected numbers from 0 to {config.classes - 1}")
        if latents is None:
            shape = (len(labels), config.channels, config.side, config.side)
            latents = torch.randn(shape, generator=generator, device=generator.device if generator else where)
        denoiser = guided(self.transformer, labels, guidance_scale)
        found = heun(denoiser, latents.to(where), sigma_steps(num_inference_steps)).float()
        factors = (config.latent_shift, config.latent_scale)
        shift, scale = (torch.tensor(list(factor), device=where).reshape(1, -1, 1, 1) for factor in factors)
        images: Any = found / scale + shift
        if output_type != "latent":
            decoded = self.vae.decode(images.to(self.vae.dtype)).sample.float()
            images = (decoded * 127.5 + 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).cpu().numpy() / 255
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)
