"""A linear autoencoder: patches of pixels or of sound, onto their principal axes. It is fitted, not trained.

It stands where pipelines expect theirs: what they ask of an autoencoder, under the names they use, it answers.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class LinearAutoencoder(ModelMixin, ConfigMixin):
    """Patches of `patch` frames x rows x columns to `latent_channels` numbers of mean 0 and deviation 1.

    The first frame has a position of its own, as in the autoencoders of video: it is taken `patch[0]` times. Sound is
    one row of samples (one frame, one row, and a patch of one row). Pictures are clips of one frame without the axis.

    Args:
        patch: Frames, rows, columns.
        channels: Of pixels (3) or sound (1).
        latent_channels: Principal axes that are kept.
        axes: Of the data beyond batch and channels: 3 = clips, 2 = pictures, 1 = sound.
        sampling_rate: Of sound, samples a second.
        scale: Latents times this have deviation 1; always 1 here, and asked for by pipelines.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        patch: tuple[int, int, int] = (1, 4, 4),
        channels: int = 3,
        latent_channels: int = 8,
        axes: int = 3,
        sampling_rate: int = 0,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        block_out_channels: tuple[int, ...] = (),
        scale_factor_temporal: int = 1,
        scale_factor_spatial: int = 1,
        z_dim: int = 0,
        latents_mean: tuple[float, ...] = (),
        latents_std: tuple[float, ...] = (),
        audio_channels: int = 1,
        timestep_conditioning: bool = False,
    ):
        super().__init__()
        size = channels * patch[0] * patch[1] * patch[2]
        # Rows are principal axes over their deviation, so that latents have deviation 1.
        self.into = nn.Parameter(torch.zeros(latent_channels, size), requires_grad=False)
        self.back = nn.Parameter(torch.zeros(size, latent_channels), requires_grad=False)
        self.mean = nn.Parameter(torch.zeros(size), requires_grad=False)

    @classmethod
    def fitted(cls, data: Tensor, patch: tuple[int, int, int], latent_channels: int, **more: Any) -> LinearAutoencoder:
        """One for such data.

        Args:
            data: (B, C, T, H, W) clips, (B, C, H, W) pictures or (B, C, N) sound, in [-1, 1].
            patch: Frames, rows, columns.
            latent_channels: Principal axes to keep.
            more: Other fields of the configuration.
        """
        channels = data.shape[1]
        names = {
            # Pipelines of pictures count the halvings.
            "block_out_channels": (1,) * patch[1].bit_length(),
            "scale_factor_temporal": patch[0],
            "scale_factor_spatial": patch[1],
            "z_dim": latent_channels,
            "latents_mean": (0.0,) * latent_channels,
            "latents_std": (1.0,) * latent_channels,
        }
        made = cls(patch, channels, latent_channels, data.dim() - 2, **{**names, **more})
        patches = made._patches(data).flatten(0, 3).double()
        mean = patches.mean(0)
        variances, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
        deviations, axes = variances[-latent_channels:].flip(0).sqrt(), vectors[:, -latent_channels:].flip(1)
        made.into.data.copy_(axes.T / deviations[:, None])
        made.back.data.copy_(axes * deviations)
        made.mean.data.copy_(mean)
        return made.eval()

    @property
    def spatial_compression_ratio(self) -> int:
        """Rows of pixels to one position."""
        return self.config["patch"][1]

    @property
    def temporal_compression_ratio(self) -> int:
        """Frames to one position."""
        return self.config["patch"][0]

    # LTX's pipeline asks for tensors, Wan's for numbers in the configuration.
    @property
    def latents_mean(self) -> Tensor:
        """Mean of each number of a position."""
        return torch.zeros(self.config["latent_channels"])

    @property
    def latents_std(self) -> Tensor:
        """Deviation of each number of a position."""
        return torch.ones(self.config["latent_channels"])

    @property
    def hop_length(self) -> int:
        """Samples of sound to one position."""
        return self.config["patch"][2]

    @property
    def sampling_rate(self) -> int:
        """Samples of sound a second."""
        return self.config["sampling_rate"]

    def encode(self, data: Tensor) -> Tensor:
        """The latents of data in [-1, 1], with as many axes."""
        latents = (self._patches(data) - self.mean) @ self.into.T
        return self._squeezed(latents.permute(0, 4, 1, 2, 3))

    def decode(self, latents: Tensor, timestep: Any = None, generator: Any = None, return_dict: bool = True) -> Any:
        """Data in about [-1, 1] from latents; `timestep` and `generator` mean nothing here."""
        latents = self._whole(latents).permute(0, 2, 3, 4, 1).to(self.back.dtype)
        data = self._joined(latents @ self.back.T + self.mean)
        return DecoderOutput(sample=data) if return_dict else (data,)

    def _whole(self, data: Tensor) -> Tensor:
        """With axes of time, rows and columns, which pictures and sound lack."""
        return data if data.dim() == 5 else data[:, :, None] if data.dim() == 4 else data[:, :, None, None]

    def _squeezed(self, data: Tensor) -> Tensor:
        axes = self.config["axes"]
        return data if axes == 3 else data[:, :, 0] if axes == 2 else data[:, :, 0, 0]

    def _patches(self, data: Tensor) -> Tensor:
        """(B, T', H', W', size)."""
        frames, rows, columns = self.config["patch"]
        data = self._whole(data)
        data = torch.cat([data[:, :, :1]] * (frames - 1) + [data], dim=2)
        batch, channels, length, height, width = data.shape
        split = data.reshape(
            *(batch, channels, length // frames, frames, height // rows, rows, width // columns, columns)
        )
        return split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)

    def _joined(self, patches: Tensor) -> Tensor:
        frames, rows, columns = self.config["patch"]
        batch, length, height, width, _ = patches.shape
        split = patches.reshape(batch, length, height, width, self.config["channels"], frames, rows, columns)
        data = split.permute(0, 4, 1, 5, 2, 6, 3, 7)
        data = data.reshape(batch, -1, length * frames, height * rows, width * columns)
        return self._squeezed(data[:, :, frames - 1 :])
