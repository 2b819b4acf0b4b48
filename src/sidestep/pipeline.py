"""The whole method as a diffusers pipeline: one photo and any number of target cameras in, views out."""

import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageOps
from torch import Tensor

from sidestep.batches import in_batches
from sidestep.caching import cached_features
from sidestep.cameras import Camera, distance_scale
from sidestep.consistency import steady
from sidestep.devices import autocast, execution_device, memory_format
from sidestep.errors import SidestepError
from sidestep.files import atomic_path, sweep, writing
from sidestep.fusion import FusionSettings, Method, choose, fuse
from sidestep.hub import push_folder
from sidestep.images import load_image, resize_and_crop, to_image, to_tensor
from sidestep.inversion import InversionSettings, Inverted, invert, late_grid, sample
from sidestep.models import BUNDLED, model_folder
from sidestep.models.index import INDEX, PIPELINE_FILE, write_index
from sidestep.models.sums import check_sums, write_sums
from sidestep.notebook import pictures_html, views_html
from sidestep.outputs import save_views
from sidestep.prior import PARTS, LatentPrior, forget_path, refuse_foreign
from sidestep.prior_folder import TEXT_PARTS
from sidestep.prompts import EmptyPrompt, PromptEmbeds
from sidestep.tunet import TUNet, load_tunet

Fusion = Literal["auto", "variance", "addition"]
Progress = Callable[[str, int, int], None]
StepEnd = Callable[["NovelViewPipeline", int, int, dict[str, Tensor]], dict[str, Tensor] | None]

DEFAULT_FOV = 45.0


@dataclass(frozen=True, repr=False)
class Views:
    """What a pipeline call returns, one entry a target. In a notebook it shows its pictures.

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

    def save(self, path: str | Path, fps: int = 12) -> None:
        """Writes the views as `sidestep view --out` does.

        Args:
            path: a picture (.png, .jpg; several views: a sheet), an animation (.mp4, .gif, .webp), or a folder (no
                suffix), which holds the views, the photo and their cameras for nerfstudio, gsplat and COLMAP.
            fps: views a second of an animation.

        Raises:
            SidestepError: if the suffix is another, or the folder holds something else.
        """
        save_views(Path(path), self.images, self.cameras, fps, photo=(self.source, self.source_camera))

    def __repr__(self) -> str:
        sizes = {f"{image.width}x{image.height}" for image in self.images}
        return f"Views({len(self.images)} of {', '.join(sizes)}, {', '.join(sorted(set(self.fusion)))})"

    def _repr_html_(self) -> str:
        return views_html(self)


@dataclass(repr=False)
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

    def __repr__(self) -> str:
        return f"Reference({self.image.width}x{self.image.height}, latents {tuple(self.inverted.mean.shape)})"

    def _repr_html_(self) -> str:
        return pictures_html([("photo, inverted", self.image)])


class NovelViewPipeline(DiffusionPipeline):
    """Synthesises what other cameras would have seen of the scene in one photo.

    Encode, invert to t*, translate the mean to each target view, fuse it with noise, sample, decode (the paper,
    figure 2). The photo is encoded and inverted once, however many targets there are.
    """

    _optional_components = [*TEXT_PARTS, "empty_prompt"]  # noqa: RUF012 (diffusers reads a list)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012
    # Each network sends the one before it back to memory. The autoencoder runs between the others; last, it has the
    # most room where it needs it, in decoding.
    model_cpu_offload_seq = "text_encoder->text_encoder_2->tunet->unet->vae"

    def __init__(
        self,
        tunet: TUNet,
        vae: Any,
        unet: Any,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        empty_prompt: EmptyPrompt | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tunet=tunet.float() if tunet.dtype.itemsize < 4 else tunet,
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            empty_prompt=empty_prompt,
        )
        self._interrupt = False
        self._made: tuple[tuple[Any, ...], LatentPrior] | None = None
        _ = self.prior  # refuses parts that do not fit

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = BUNDLED,
        *,
        prior: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> "NovelViewPipeline":
        """Loads a model.

        Args:
            model: "bundled" (the small model inside the package), a folder, or a hub id.
            prior: folder, hub id or .safetensors file of the latent diffusion model, for a `model` that holds TUNet
                alone.
            device: where to run; the best device present where None.
            dtype: precision of the prior's networks; bfloat16 where the processor has it, where None. TUNet's weights
                stay float32.
            torch_dtype: another name of `dtype`.
            variant, revision: of the weights' files ("fp16") and of the hub's repository: `prior`'s where one is
                given, else `model`'s.
            cache_dir, local_files_only, token: of the hub, as in diffusers.

        Raises:
            SidestepError: if a part is missing or damaged, or TUNet was trained for another prior.
        """
        folder = model_folder(model)
        hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        version = {"variant": variant, "revision": revision}
        loaded = LatentPrior.from_pretrained(
            model_folder(prior) if prior else folder, device, dtype or torch_dtype, **version, **hub
        )
        tunet = load_tunet(folder, **({} if prior else version), **hub)
        trained_for = tunet.config.prior_fingerprint
        if trained_for and trained_for != loaded.fingerprint():
            raise SidestepError(
                f"{folder}: TUNet was trained on the latents of another prior than {prior or folder}; name its own"
            )
        device = execution_device(loaded.vae)
        tunet.to(device, memory_format=memory_format(device)).requires_grad_(False).eval()
        return cls(tunet, **loaded.parts)

    def save_pretrained(
        self,
        path: str | Path,
        safe_serialization: bool = True,
        *,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub: Any,
    ) -> Any:
        """Writes the folder that `from_pretrained` reads, each part whole or not at all; other things in it stay.

        A part that is there is replaced; only a variant's weights join those that are there.

        `DiffusionPipeline.from_pretrained(path, trust_remote_code=True)` reads it too.

        Args:
            safe_serialization: True; weights are never pickled.
            variant, max_shard_size: as in `DiffusionPipeline.save_pretrained`.
            push_to_hub: upload it, with a model card.
            repo_id: where to; the folder's name where None.
            hub: `private`, `token`, `commit_message`, `create_pr`, as in `DiffusionPipeline.push_to_hub`.

        Returns:
            What the hub says to the upload; None without one.

        Raises:
            SidestepError: if weights are to be pickled or cannot be written, if those that a variant joins are damaged,
                or if the folder holds a part of a prior that this one has not.
        """
        if not safe_serialization:
            raise SidestepError("weights are written as safetensors only, never pickled; leave safe_serialization out")
        refuse_foreign(path, self._prior_parts)
        if self.tunet.config.prior_fingerprint:
            # In another precision than they were loaded in, the prior's weights have another fingerprint.
            saved = LatentPrior(**self._prior_parts)
            self.tunet.register_to_config(prior_fingerprint=saved.fingerprint())
        for part in self.components.values():
            forget_path(part)
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, {"saving", *self.components, PIPELINE_FILE, INDEX})
        with TemporaryDirectory(dir=folder, prefix=".saving.", suffix=".part") as whole:
            with writing(folder):
                super().save_pretrained(whole, variant=variant, max_shard_size=max_shard_size)
            write_index(whole)
            parts = list(Path(whole).iterdir())
            for part in parts:
                if variant is not None:  # joins the weights that are there
                    check_sums(folder / part.name)
                    for other in (folder / part.name).glob("*"):
                        if not (part / other.name).exists():
                            shutil.copy2(other, part)
                write_sums(part)
                with atomic_path(folder / part.name) as temporary:
                    part.rename(temporary)
        if not push_to_hub:
            return None
        return push_folder(folder, repo_id or folder.resolve().name, [part.name for part in parts], **hub)

    def push_to_hub(self, repo_id: str, **hub: Any) -> Any:
        """Uploads the model, with a card, to the hub.

        Args:
            repo_id: "owner/name", or "name" in one's own namespace.
            hub: what else `save_pretrained` takes.

        Returns:
            What the hub says to it, huggingface_hub's CommitInfo.
        """
        with TemporaryDirectory() as folder:
            return self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, **hub)

    @torch.no_grad()
    def invert(
        self,
        photo: Image.Image | str | Path,
        source: Camera | None = None,
        *,
        scale: float | None = None,
        cache_interval: int = 1,
        progress: Progress | None = None,
    ) -> Reference:
        """Encodes and inverts a photo once, for several calls.

        Args:
            photo, source, scale, cache_interval, progress: as in `__call__`.

        Raises:
            SidestepError: if the photo cannot be read, or its camera has another size.
        """
        image = ImageOps.exif_transpose(photo) if isinstance(photo, Image.Image) else load_image(photo)
        if source is None:
            source = Camera.from_fov(DEFAULT_FOV, *image.size)
            scale = 1.0 if scale is None else scale
        elif (source.width, source.height) != image.size:
            raise SidestepError(f"the photo is {image.width}x{image.height}, its camera {source.width}x{source.height}")
        size = self.prior.image_size
        source, image = source.resize_and_crop(size), resize_and_crop(image.convert("RGB"), size)
        latents = self.prior.encode(to_tensor(image)[None])
        settings = self._inversion
        show = partial(progress or self._bars(), "invert")
        with cached_features(self.unet, cache_interval):
            inverted = invert(self.prior, latents, settings.grid, settings.timestep, progress=show)
        self.maybe_free_model_hooks()
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
        pictures = self._decode_means(means, batch_size)
        self.maybe_free_model_hooks()
        return pictures

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
        cache_interval: int = 1,
        progress: Progress | None = None,
        on_coarse: Callable[[list[Image.Image]], None] | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Views:
        """Synthesises the views of `targets`.

        Args:
            photo: of any size, turned as its EXIF says; its centre square is used. Or what `invert` made of one, which
                saves encoding and inverting it again.
            targets: cameras in one world, each with any pose, intrinsics and size; the centre square of each is made.
            source: the photo's camera in that world. Where None, the photo was taken from the origin, with a field
                of view of 45 degrees across its shorter side and its subject at distance 1.
            category: one that TUNet was trained with, or None.
            fusion: how noise is put back: "variance" (strategy A), "addition" (B), or "auto": both, and for each
                view the better one by a score that never sees the target. It has not been found to choose better than
                always A (docs/method.md).
            prompt: guides the sampling, and nothing before it, where the prior has a text encoder.
            steps: of sampling. The inversion's are fixed, because TUNet was trained for them.
            seed: of what noise is drawn; A and B as the paper has them draw none.
            negative_prompt: what to guide away from; the empty prompt where None.
            guidance: how far to guide, of classifier-free guidance; at 1 and less, as in diffusers, the prompt acts
                but there is no guidance, and no negative prompt.
            settings: the readings that the paper leaves open.
            scale: what to multiply the world's lengths by to put the subject at distance 1 from the source. Where
                None: from where the cameras' axes meet, if there is a source.
            batch_size: views made together; fewer where memory is too small for so many.
            consistency: for targets that are a path, from 0 to 1: above 0 all views share the noise that is drawn, and
                the next view counts so much in a view's mean (`sidestep.consistency`; its worth is in docs/video.md).
            cache_interval: every how manieth step of inversion and sampling runs the whole U-Net, and the others its
                outer levels only (`sidestep.caching`; what that gains and costs is in docs/speed.md). 1: every step.
            progress: called with (stage, steps done, steps in all), in place of diffusers' progress bar. What it raises
                ends the call.
            on_coarse: called with all coarse views before the first final one is sampled.
            generator: draws the noise, in place of one made of `seed`.
            callback_on_step_end: as in diffusers, called with (pipeline, step, timestep, {"latents": ...}) after each
                step of sampling, for each batch of views anew; latents in the dictionary that it returns take the
                place of these. Where it sets `pipeline._interrupt`, the batch stays as it is, and no further is made.
            callback_on_step_end_tensor_inputs: what the dictionary holds: "latents" or nothing.

        Returns:
            One view a target; fewer where the call was interrupted.

        Raises:
            SidestepError: if an argument does not fit the model.
        """
        if fusion not in get_args(Fusion):
            raise SidestepError(f"fusion {fusion!r} is unknown; use {', '.join(get_args(Fusion))}")
        if not -(2**63) <= seed < 2**64:
            raise SidestepError(f"seed is {seed}; it must fit into 64 bits")
        if isinstance(photo, Reference) and source is not None:
            raise SidestepError("an inverted photo has its camera; leave source out, or give it to invert")
        if not 0 <= consistency <= 1:
            raise SidestepError(f"consistency is {consistency}; it must be from 0 to 1")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise SidestepError(f"callback_on_step_end has no {', '.join(unknown)}; it can have latents")
        settings = settings or FusionSettings()
        cameras = self._fit_targets(targets, batch_size)
        self.tunet.category_ids([category])
        prompts = self._encode_prompts(prompt, negative_prompt, guidance)
        methods: tuple[Method, ...] = get_args(Method) if fusion == "auto" else (fusion,)
        grid = settings.sampling_grid(self._inversion, steps)
        count = len(targets)
        progress = progress or self._bars()
        self._interrupt = False

        if isinstance(photo, Reference):
            reference = photo
        else:
            reference = self.invert(photo, source, scale=scale, cache_interval=cache_interval, progress=progress)
        if reference.late is None and any(settings.needs_late(method) for method in methods):
            with cached_features(self.unet, cache_interval):
                reference.late = self._invert_further(reference.inverted, progress)
        relative = self._relative(reference, cameras, scale)
        means = self._translate(reference, relative, category, batch_size)
        if consistency:
            means = steady(means, relative, consistency)
        coarse = self._decode_means(means, batch_size)
        if on_coarse is not None:
            on_coarse(coarse)

        t_star = self._inversion.t_star
        inverted = reference.inverted.to(means.device)
        late = None if reference.late is None else reference.late.to(means.device)
        shape = (1 if consistency else count, *means.shape[1:])
        generator = generator or torch.Generator().manual_seed(seed)
        drawn = randn_tensor(shape, generator, means.device).expand_as(means)

        def on_step_end(step: int, timestep: int, latents: Tensor) -> Tensor | None:
            if callback_on_step_end is not None and not self._interrupt:
                given = {"latents": latents} if callback_on_step_end_tensor_inputs else {}
                latents = (callback_on_step_end(self, step, timestep, given) or {}).get("latents", latents)
            return None if self._interrupt else latents

        def synthesise(chosen: slice) -> dict[str, Tensor]:
            named = f"sample {chosen.start + 1}-{chosen.stop} of {count}"
            pictures: dict[str, Tensor] = {}
            for method in methods:
                start = fuse(self.prior, method, means[chosen], inverted, late, t_star, settings, drawn[chosen])
                show = partial(progress, f"{named}, {method}")
                with cached_features(self.unet, cache_interval):
                    latents = sample(self.prior, start, grid, *prompts, guidance, show, on_step_end)
                pictures[method] = self._decode(latents, len(latents))
                if self._interrupt:
                    break
            return pictures

        images: list[Image.Image] = []
        fused: list[str] = []
        for candidates in in_batches(synthesise, count, batch_size):
            batch = coarse[len(images) :][: len(candidates[methods[0]])]
            layout = torch.stack([to_tensor(picture) for picture in batch])
            names = choose(candidates, layout, to_tensor(reference.image)[None])
            images.extend(to_image(candidates[name][i]) for i, name in enumerate(names))
            fused.extend(names)
            if self._interrupt:
                break
        self.maybe_free_model_hooks()
        made = len(images)
        return Views(images, [cameras[i] for i in range(made)], coarse[:made], fused, reference.image, reference.camera)

    @property
    def interrupt(self) -> bool:
        """Whether the call was told to end (`_interrupt`)."""
        return self._interrupt

    @property
    def prior(self) -> LatentPrior:
        """The latent diffusion model made of the pipeline's parts, as they are now.

        Raises:
            SidestepError: if they do not fit each other.
        """
        parts = (self.tunet, *self._prior_parts.values())
        if self._made is None or any(part is not made for part, made in zip(parts, self._made[0], strict=True)):
            prior = LatentPrior(**self._prior_parts)
            channels, size = self.tunet.config.in_channels, self.tunet.config.sample_size
            if (channels, size) != (prior.latent_channels, prior.latent_size):
                raise SidestepError(
                    f"TUNet translates latents of {channels}x{size}x{size}, but the prior's are "
                    f"{prior.latent_channels}x{prior.latent_size}x{prior.latent_size}; they do not belong together"
                )
            self._made = parts, prior
        return self._made[1]

    @property
    def _prior_parts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in PARTS}

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

    def _bars(self) -> Progress:
        """diffusers' progress bar, one for each stage; `set_progress_bar_config(disable=True)` hides it."""
        bars: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = self.progress_bar(total=total)
                bars[stage].set_description(stage)
            bars[stage].update(done - bars[stage].n)
            if done == total:
                bars[stage].close()

        return show

    def _invert_further(self, inverted: Inverted, progress: Progress) -> Inverted:
        settings = self._inversion
        grid = late_grid(settings.t_star, settings.steps, self.prior.num_train_timesteps, settings.start)
        if len(grid) < 2:
            return inverted
        show = partial(progress, "invert to the end")
        return invert(self.prior, inverted.latents, grid, settings.timestep, progress=show)

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
        device = execution_device(self.tunet)
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

    def _decode_means(self, means: Tensor, batch_size: int) -> list[Image.Image]:
        star = math.sqrt(self.tunet.config.alpha_star)
        return [to_image(picture) for picture in self._decode(means / star, batch_size)]

    def _decode(self, latents: Tensor, batch_size: int) -> Tensor:
        """Pictures (B, 3, H, W) on the CPU. Where memory is too small, they are halved and not what was made before."""
        pictures = in_batches(lambda chosen: self.prior.decode(latents[chosen]).cpu(), len(latents), batch_size)
        return torch.cat(list(pictures))

    def _encode_prompts(
        self, prompt: str | None, negative_prompt: str | None, guidance: float
    ) -> tuple[PromptEmbeds | None, PromptEmbeds | None]:
        """Nothing where there is nothing to guide by, so that sampling takes one pass a step."""
        if not 0 <= guidance < math.inf:
            raise SidestepError(f"guidance is {guidance}; it must be 0 or more")
        if not prompt and not negative_prompt:
            return None, None
        if negative_prompt and guidance <= 1:
            warnings.warn(f"the negative prompt does nothing at a guidance of {guidance:g}, only above 1", stacklevel=2)
        negative = self.prior.encode_prompt([negative_prompt]) if negative_prompt else None
        return self.prior.encode_prompt([prompt or ""]), negative
