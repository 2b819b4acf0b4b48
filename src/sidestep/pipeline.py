"""The whole method as a diffusers pipeline: one photo and any number of target cameras in, views out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from sidestep.batches import in_batches
from sidestep.cameras import Camera, distance_scale
from sidestep.consistency import steady
from sidestep.devices import autocast
from sidestep.errors import SidestepError
from sidestep.files import atomic_path
from sidestep.fusion import FusionSettings, Method, choose, fuse
from sidestep.images import load_image, resize_and_crop, to_image, to_tensor
from sidestep.inversion import InversionSettings, Inverted, invert, late_grid, sample
from sidestep.models import BUNDLED, model_folder
from sidestep.prior import LatentPrior
from sidestep.tunet import TUNet, load_tunet

Fusion = Literal["auto", "variance", "addition"]
Progress = Callable[[str, int, int], None]

DEFAULT_FOV = 45.0


@dataclass(frozen=True)
class Views:
    """What a pipeline call returns, one entry a target.

    Attributes:
        images: the synthesised views.
        cameras: theirs, in the world that the targets were given in; sized and cropped like the images.
        coarse: TUNet's predictions, decoded: the right layout without detail.
        fusion: how noise was put back in each: "variance" or "addition".
        source: the photo as the model saw it, scaled and cropped.
        source_camera: its camera, in the targets' world.
    """

    images: list[Image.Image]
    cameras: list[Camera]
    coarse: list[Image.Image]
    fusion: list[str]
    source: Image.Image
    source_camera: Camera


@dataclass
class Reference:
    """A photo inverted once, from which any number of calls may start (`NovelViewPipeline.invert`).

    Attributes:
        image: the photo as the model sees it, scaled and cropped.
        camera: its camera, likewise, in the world that targets are given in.
        scale: what to multiply the world's lengths by to put the subject at distance 1; None: from the targets.
        inverted: the photo's latents at t*, (1, C, h, w).
        late: those at the last step; the first call that needs them fills them in.
    """

    image: Image.Image
    camera: Camera
    scale: float | None
    inverted: Inverted
    late: Inverted | None = None


class NovelViewPipeline(DiffusionPipeline):
    """Synthesises what other cameras would have seen of the scene in one photo.

    Encode, invert to t*, translate the mean to each target view, fuse it with noise, sample, decode (the paper,
    figure 2). The photo is encoded and inverted once, however many targets there are.
    """

    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012 (diffusers reads a list)

    def __init__(
        self, tunet: TUNet, vae: Any, unet: Any, scheduler: Any, text_encoder: Any = None, tokenizer: Any = None
    ) -> None:
        super().__init__()
        self.register_modules(
            tunet=tunet, vae=vae, unet=unet, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.prior = LatentPrior(vae, unet, scheduler, text_encoder, tokenizer)
        _check_fit(tunet, self.prior)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = BUNDLED,
        *,
        prior: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "NovelViewPipeline":
        """Loads a model.

        Args:
            model: "bundled" (the small model inside the package), a folder, or a hub id.
            prior: folder or hub id of the latent diffusion model, for a `model` that holds TUNet alone.
            device: where to run; the best device present where None.
            dtype: precision of the prior's networks; bfloat16 where the processor has it, where None.

        Raises:
            SidestepError: if a part is missing or damaged, or TUNet was trained for another prior.
        """
        folder = model_folder(model)
        loaded = LatentPrior.from_pretrained(model_folder(prior) if prior else folder, device, dtype)
        tunet = load_tunet(folder)
        trained_for = tunet.config.prior_fingerprint
        if trained_for and trained_for != loaded.fingerprint():
            raise SidestepError(
                f"{folder}: TUNet was trained on the latents of another prior than {prior or folder}; name its own"
            )
        tunet.to(loaded.vae.device).requires_grad_(False).eval()
        return cls(tunet, loaded.vae, loaded.unet, loaded.scheduler, loaded.text_encoder, loaded.tokenizer)

    def save_pretrained(self, path: str | Path, **kwargs: Any) -> None:
        """Writes the folder that `from_pretrained` reads, each part whole or not at all; other things in it stay.

        Args:
            kwargs: as in `DiffusionPipeline.save_pretrained`.
        """
        if self.tunet.config.prior_fingerprint:
            # In another precision than they were loaded in, the prior's weights have another fingerprint.
            saved = LatentPrior(self.vae, self.unet, self.scheduler, self.text_encoder, self.tokenizer)
            self.tunet.register_to_config(prior_fingerprint=saved.fingerprint())
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", folder.name)
        with TemporaryDirectory(dir=folder, prefix=".saving-") as whole:
            super().save_pretrained(whole, **kwargs)
            for part in Path(whole).iterdir():
                with atomic_path(folder / part.name) as temporary:
                    part.rename(temporary)

    @torch.no_grad()
    def invert(
        self,
        photo: Image.Image | str | Path,
        source: Camera | None = None,
        *,
        scale: float | None = None,
        progress: Progress | None = None,
    ) -> Reference:
        """Encodes and inverts a photo once, for several calls.

        Args:
            photo, source, scale, progress: as in `__call__`.

        Raises:
            SidestepError: if the photo cannot be read, or its camera has another size.
        """
        image = photo if isinstance(photo, Image.Image) else load_image(photo)
        if source is None:
            source = Camera.from_fov(DEFAULT_FOV, *image.size)
            scale = 1.0 if scale is None else scale
        elif (source.width, source.height) != image.size:
            raise SidestepError(f"the photo is {image.width}x{image.height}, its camera {source.width}x{source.height}")
        size = self.prior.image_size
        source, image = source.resize_and_crop(size), resize_and_crop(image.convert("RGB"), size)
        latents = self.prior.encode(to_tensor(image)[None])
        settings = self._inversion
        inverted = invert(self.prior, latents, settings.grid, settings.timestep, progress=_stage(progress, "invert"))
        return Reference(image, source, scale, inverted)

    @torch.no_grad()
    def coarse(
        self,
        reference: Reference,
        targets: Sequence[Camera],
        category: str | None = None,
        *,
        scale: float | None = None,
        batch_size: int = 8,
    ) -> list[Image.Image]:
        """The coarse views alone, TUNet's means decoded: fast enough to follow a camera that is being dragged.

        Args:
            reference: of `invert`.
            targets, category, scale, batch_size: as in `__call__`.

        Raises:
            SidestepError: if an argument does not fit the model.
        """
        cameras = self._fit_targets(targets, batch_size)
        means = self._translate(reference, self._relative(reference, cameras, scale), category, batch_size)
        return self._decode_means(means, batch_size)

    @torch.no_grad()
    def __call__(
        self,
        photo: Image.Image | str | Path | Reference,
        targets: Sequence[Camera],
        source: Camera | None = None,
        category: str | None = None,
        fusion: Fusion = "variance",
        prompt: str | None = None,
        steps: int = 30,
        seed: int = 0,
        *,
        negative_prompt: str | None = None,
        guidance: float = 3.5,
        settings: FusionSettings | None = None,
        scale: float | None = None,
        batch_size: int = 8,
        consistency: float = 0.0,
        progress: Progress | None = None,
        on_coarse: Callable[[list[Image.Image]], None] | None = None,
    ) -> Views:
        """Synthesises the views of `targets`.

        Args:
            photo: of any size and orientation; its centre square is used. Or what `invert` made of one, which saves
                encoding and inverting it again.
            targets: cameras in one world, each with any pose, intrinsics and size; the centre square of each is made.
            source: the photo's camera in that world. Where None, the photo was taken from the origin, with a field
                of view of 45 degrees across its shorter side and its subject at distance 1.
            category: one that TUNet was trained with, or None.
            fusion: how noise is put back: "variance" (strategy A), "addition" (B), or "auto": both, and for each
                view the better one by a score that never sees the target. It has not been found to choose better than
                always A (docs/method.md).
            prompt: guides the sampling, where the prior has a text encoder.
            steps: of sampling. The inversion's are fixed, because TUNet was trained for them.
            seed: of what noise is drawn; A and B as the paper has them draw none.
            negative_prompt, guidance: of classifier-free guidance; they act only where there is a prompt.
            settings: the readings that the paper leaves open.
            scale: what to multiply the world's lengths by to put the subject at distance 1 from the source. Where
                None: from where the cameras' axes meet, if there is a source.
            batch_size: views made together; fewer where memory is too small for so many.
            consistency: for targets that are a path, from 0 to 1: how much of each view's noise is that of the view
                before it, moved as the camera moved (`sidestep.consistency`). What noise is drawn, all share.
            progress: called with (stage, steps done, steps in all). What it raises ends the call.
            on_coarse: called with all coarse views before the first final one is sampled.

        Raises:
            SidestepError: if an argument does not fit the model.
        """
        if fusion not in get_args(Fusion):
            raise SidestepError(f"fusion {fusion!r} is unknown; use {', '.join(get_args(Fusion))}")
        if isinstance(photo, Reference) and source is not None:
            raise SidestepError("an inverted photo has its camera; leave source out, or give it to invert")
        if not 0 <= consistency <= 1:
            raise SidestepError(f"consistency is {consistency}; it must be from 0 to 1")
        settings = settings or FusionSettings()
        cameras = self._fit_targets(targets, batch_size)
        self.tunet.category_ids([category])
        prompts = self._encode_prompts(prompt, negative_prompt)
        methods: tuple[Method, ...] = get_args(Method) if fusion == "auto" else (fusion,)
        grid = settings.sampling_grid(self._inversion, steps)
        count = len(targets)

        if isinstance(photo, Reference):
            reference = photo
        else:
            reference = self.invert(photo, source, scale=scale, progress=progress)
        if reference.late is None and any(settings.needs_late(method) for method in methods):
            reference.late = self._invert_further(reference.inverted, progress)
        relative = self._relative(reference, cameras, scale)
        means = self._translate(reference, relative, category, batch_size)
        coarse = self._decode_means(means, batch_size)
        if on_coarse is not None:
            on_coarse(coarse)

        drawn = torch.randn(
            1 if consistency else count, *means.shape[1:], generator=torch.Generator().manual_seed(seed)
        ).expand_as(means)
        starts = {method: self._fuse(method, means, reference, settings, drawn, batch_size) for method in methods}
        if consistency:
            starts = {method: means + steady(start - means, relative, consistency) for method, start in starts.items()}

        def synthesise(chosen: slice) -> dict[str, Tensor]:
            named = f"sample {chosen.start + 1}-{chosen.stop} of {count}"
            pictures = {}
            for method, start in starts.items():
                callback = _stage(progress, f"{named}, {method}")
                latents = sample(self.prior, start[chosen], grid, *prompts, guidance=guidance, callback=callback)
                pictures[method] = self.prior.decode(latents).cpu()
            return pictures

        views = Views([], [cameras[i] for i in range(count)], coarse, [], reference.image, reference.camera)
        for candidates in in_batches(synthesise, count, batch_size):
            done = len(views.images)
            batch = coarse[done : done + len(candidates[methods[0]])]
            layout = torch.stack([to_tensor(picture) for picture in batch])
            names = choose(candidates, layout, to_tensor(reference.image)[None])
            views.images.extend(to_image(candidates[name][i]) for i, name in enumerate(names))
            views.fusion.extend(names)
        return views

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @property
    def _inversion(self) -> InversionSettings:
        """How TUNet's latents were inverted."""
        trained = self.tunet.config
        return InversionSettings(
            trained.t_star, trained.inversion_steps, trained.inversion_timestep, trained.inversion_start
        )

    def _fit_targets(self, targets: Sequence[Camera], batch_size: int) -> Camera:
        """The targets as one batch of cameras of the model's size."""
        if isinstance(targets, Camera) or not targets:
            raise SidestepError("targets must be a list of one or more cameras, each a single one")
        if batch_size < 1:
            raise SidestepError(f"batch_size is {batch_size}; it must be 1 or more")
        return Camera.stack([camera.resize_and_crop(self.prior.image_size) for camera in targets])

    def _invert_further(self, inverted: Inverted, progress: Progress | None) -> Inverted:
        settings = self._inversion
        grid = late_grid(settings.t_star, settings.steps, self.prior.num_train_timesteps, settings.start)
        if len(grid) < 2:
            return inverted
        callback = _stage(progress, "invert to the end")
        return invert(self.prior, inverted.latents, grid, settings.timestep, progress=callback)

    def _relative(self, reference: Reference, targets: Camera, scale: float | None) -> Camera:
        """The targets in the reference's frame, with the subject at distance 1; float64, on the CPU."""
        source = reference.camera
        scale = reference.scale if scale is None else scale
        if scale is None:
            scale = distance_scale(source, targets)
        # In double precision: far from a world's origin, small steps are lost in single.
        source, targets = source.to("cpu", torch.float64), targets.to("cpu", torch.float64)
        return targets.relative_to(source).scaled(scale)

    def _translate(self, reference: Reference, relative: Camera, category: str | None, batch_size: int) -> Tensor:
        """TUNet's means of the targets, of `_relative`: (B, C, h, w) float32."""
        device = self.tunet.device
        targets = relative.to(device, torch.float32)
        source = reference.camera.to("cpu", torch.float64)
        own = source.relative_to(source).to(device, torch.float32)
        ids = self.tunet.category_ids([category])
        mean = reference.inverted.mean.to(device)

        def translate(chosen: slice) -> Tensor:
            count = chosen.stop - chosen.start
            # As in training: float32 weights, so that half precision never touches rays and cameras.
            with autocast(device):
                return self.tunet(
                    mean.expand(count, -1, -1, -1), Camera.stack([own] * count), targets[chosen], ids.expand(count)
                ).float()

        return torch.cat(list(in_batches(translate, relative.batch_shape[0], batch_size)))

    def _fuse(
        self,
        method: Method,
        means: Tensor,
        reference: Reference,
        settings: FusionSettings,
        drawn: Tensor,
        batch_size: int,
    ) -> Tensor:
        """The latents that sampling starts from, (B, C, h, w)."""

        def fuse_batch(chosen: slice) -> Tensor:
            return fuse(
                self.prior,
                method,
                means[chosen],
                reference.inverted,
                reference.late,
                self._inversion.t_star,
                settings,
                drawn[chosen],
            )

        return torch.cat(list(in_batches(fuse_batch, len(means), batch_size)))

    def _decode_means(self, means: Tensor, batch_size: int) -> list[Image.Image]:
        star = math.sqrt(self.tunet.config.alpha_star)
        batches = in_batches(lambda chosen: self.prior.decode(means[chosen] / star).cpu(), len(means), batch_size)
        return [to_image(picture) for pictures in batches for picture in pictures]

    def _encode_prompts(self, prompt: str | None, negative_prompt: str | None) -> tuple[Tensor | None, Tensor | None]:
        if not prompt:
            if negative_prompt:
                raise SidestepError("a negative prompt acts only beside a prompt; give both")
            return None, None
        negative = self.prior.encode_prompt([negative_prompt]) if negative_prompt else None
        return self.prior.encode_prompt([prompt]), negative


def _stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(name, done, total)


def _check_fit(tunet: TUNet, prior: LatentPrior) -> None:
    shape = (tunet.config.in_channels, tunet.config.sample_size)
    if shape != (prior.latent_channels, prior.latent_size):
        raise SidestepError(
            f"TUNet translates latents of {shape[0]}x{shape[1]}x{shape[1]}, but the prior's are "
            f"{prior.latent_channels}x{prior.latent_size}x{prior.latent_size}; they do not belong together"
        )
