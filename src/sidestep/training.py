"""TUNet's training: pairs of inverted means from a store of latents (the paper, eq. 7)."""

import logging
import math
from collections import OrderedDict
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from sidestep.cameras import Camera
from sidestep.captures.pairs import any_pairs, paper_pairs
from sidestep.captures.splits import split_scenes
from sidestep.config import settings
from sidestep.devices import autocast, halve
from sidestep.errors import SidestepError
from sidestep.files import atomic_path, sweep
from sidestep.images import to_image
from sidestep.latents import LatentStore, StoredScene
from sidestep.loop import LoopConfig, fit, this_process
from sidestep.models import model_folder
from sidestep.models.index import write_index
from sidestep.models.sums import write_sums
from sidestep.prior import LatentPrior, copy_prior
from sidestep.tunet import TUNet, load_tunet

logger = logging.getLogger(__name__)

PAIRS_PER_SCENE = 10
SIZES: dict[str, dict[str, Any]] = {"paper": TUNet.PAPER, "small": TUNet.SMALL}


@settings
class TrainConfig(LoopConfig):
    """What `sidestep train` does.

    Attributes:
        latents: the store that `sidestep encode` made.
        out: the run's folder; the finished model lies in `out/model`.
        steps, epochs: how long; give one. An epoch is 10 pairs of each scene.
        size: "paper" or "small".
        tunet: arguments of TUNet that replace the size's, such as `{conditioning: concat}`.
        pairs: "paper": frames 1-10 with frames 15-25; "any": any two frames, either as the reference; "forward": any
            two, the earlier as the reference.
        max_gap: of `any` and `forward` pairs, how many frames apart they are at most; 0: no limit. Near pairs teach
            what the camera does much sooner than far ones, of which little is alike.
        mirror: show half of the pairs mirrored, with their cameras.
        category_dropout: share of the samples whose category is hidden, so that TUNet can do without one.
        split: which scenes train: "model", "paper-3class", "paper-167class", or a split's JSON file.
        init: start from the weights (and the size and categories) of this model folder, or of the bundled model
            ("bundled"). It may have been trained on other latents, of another t* say.
    """

    latents: Path = Path("data/latents")
    out: Path = Path("runs/tunet")
    steps: NonNegativeInt = 0
    epochs: NonNegativeInt = 0
    learning_rate: NonNegativeFloat = 1e-5
    size: Literal["paper", "small"] = "paper"
    tunet: dict[str, Any] = field(default_factory=dict)
    pairs: Literal["paper", "any", "forward"] = "paper"
    max_gap: int = 0
    mirror: bool = False
    category_dropout: float = 0.1
    split: str = "model"
    init: str | None = None


def train(config: TrainConfig) -> Path:
    """Trains TUNet; returns the folder of the finished model. Run again to resume.

    The folder holds `tunet/`, and the prior as well if that was a folder or a file. Of several processes the first
    one writes it, and the others may return before it is there.

    Raises:
        SidestepError: if the store is incomplete, has no scene to train on, or settings do not fit.
    """
    task, loop = prepare(config)
    store = task.store
    fit(task, loop, config.out, config)
    model = config.out / "model"
    if not this_process().is_main_process:
        return model
    sweep(model)
    halve(task.model, str(config.out))
    prior = Path(model_folder(store.prior))
    whole = prior.exists()
    if whole:
        try:
            copy_prior(prior, model)
        except SidestepError as error:
            logger.warning("%s", error)
            whole = False
    if not whole:
        logger.info("%s holds TUNet alone; to use it, name its prior, %s", model, store.prior)
    with atomic_path(model / "tunet") as temporary:
        task.model.save_pretrained(temporary)
        write_sums(temporary)
    if whole:
        write_index(model)
    return model


def prepare(config: TrainConfig) -> tuple["_TUNetTask", TrainConfig]:
    """What `train` trains, and its settings with `steps` worked out. The seed alone decides the first weights.

    Raises:
        SidestepError: as `train`.
    """
    store = LatentStore(config.latents)
    if (config.steps > 0) == (config.epochs > 0):
        raise SidestepError("give either steps=N or epochs=N, the length of the run")
    if config.max_gap < 0:
        raise SidestepError(f"max_gap is {config.max_gap}; give a number of frames, or 0 for no limit")
    torch.manual_seed(config.seed)
    task = _TUNetTask(store, config)
    if config.epochs:
        return task, replace(config, steps=math.ceil(config.epochs * task.pairs_per_epoch / config.batch_size))
    return task, config


def build_tunet(store: LatentStore, config: TrainConfig, categories: tuple[str, ...], elevation: float) -> TUNet:
    """The untrained TUNet for a store's latents; it carries all that its use depends on in its config."""
    initial = load_tunet(model_folder(config.init)) if config.init is not None else None
    base = {**SIZES[config.size], "categories": categories}
    if initial is not None:
        base = {key: value for key, value in initial.config.items() if not key.startswith("_")}
    first = store.mean(store.scenes[0], 0)
    arguments = {
        **base,
        "in_channels": first.shape[0],
        "sample_size": first.shape[-1],
        "alpha_star": store.alpha_star,
        "t_star": store.settings.t_star,
        "inversion_steps": store.settings.steps,
        "inversion_timestep": store.settings.timestep,
        "inversion_start": store.settings.start,
        "prior_fingerprint": store.prior_fingerprint,
        "elevation": elevation,
        **config.tunet,
    }
    try:
        tunet = TUNet(**arguments)
    except TypeError as error:
        raise SidestepError(f"tunet: {error}") from None
    if initial is not None:
        try:
            tunet.load_state_dict(initial.state_dict())
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise SidestepError(f"init={config.init}: its weights do not fit this TUNet ({reason})") from None
    return tunet


class _TUNetTask:
    """TUNet's part of `loop.fit`: pairs of stored means with their cameras."""

    def __init__(self, store: LatentStore, config: TrainConfig) -> None:
        self.store = store
        self.config = config
        splits = split_scenes(store.scenes, config.split)
        self.scenes = [scene for scene in splits["train"] if self._pairs(scene, np.random.default_rng(0))]
        self.held_out = [scene for scene in splits["val"] if self._pairs(scene, np.random.default_rng(0))]
        pairing = {scene.id for scene in self.scenes}
        self.too_short = [scene for scene in splits["train"] if scene.id not in pairing]
        if self.too_short:
            logger.warning("%d scenes have too few frames for a pair and are left out", len(self.too_short))
        if not self.scenes or not self.held_out:
            empty = "train" if not self.scenes else "val"
            raise SidestepError(
                f"{store.path}: no scene of split {config.split!r} is in {empty}; add scenes or name a split's file"
            )
        categories = tuple(sorted({scene.category for scene in self.scenes if scene.category}))
        elevation = float(np.median([scene.elevation for scene in self.scenes]))
        self.model = build_tunet(store, config, categories, elevation)
        self.pairs_per_epoch = len(self._epoch(0))
        self._epochs: OrderedDict[int, list[tuple[int, int, int]]] = OrderedDict()
        self._prior: LatentPrior | None = None

    def draw(self, step: int) -> list[Any]:
        config = self.config
        rng = np.random.default_rng((config.seed, step))
        mirrored = rng.random(config.batch_size) < (0.5 if config.mirror else 0.0)
        hidden = rng.random(config.batch_size) < config.category_dropout
        samples = []
        for index in range(config.batch_size):
            epoch, position = divmod(step * config.batch_size + index, self.pairs_per_epoch)
            if epoch not in self._epochs:
                self._epochs[epoch] = self._epoch(epoch)
                while len(self._epochs) > 2:
                    self._epochs.popitem(last=False)
            samples.append((*self._epochs[epoch][position], bool(mirrored[index]), bool(hidden[index])))
        return samples

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        return self._batch([(self.scenes[scene], *rest) for scene, *rest in samples])

    def name(self, sample: Any) -> str:
        index, reference, target, *_ = sample
        scene = self.scenes[index]
        return f"{scene.id} ({scene.frames[reference]} to {scene.frames[target]})"

    def loss(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        predicted = model(batch["mean"], *self._cameras(batch), batch["category"])
        return F.mse_loss(predicted.float(), batch["target"]), {}  # eq. 7

    @torch.no_grad()
    def validate(self, model: torch.nn.Module) -> tuple[dict[str, float], Image.Image | None]:
        """Eq. 7 over fixed held-out pairs, beside the same for the reference's own mean and for a wrong camera."""
        device = next(model.parameters()).device
        rng = np.random.default_rng(0)
        rows = [(scene, *pair, False, False) for scene in self.held_out for pair in self._pairs(scene, rng)[:4]]
        batch = {name: tensor.to(device) for name, tensor in self._batch(rows).items()}
        reference, target = self._cameras(batch)

        def predict(cameras: Camera) -> Tensor:
            with autocast(device):
                parts = [
                    model(batch["mean"][chunk], reference[chunk], cameras[chunk], batch["category"][chunk]).float()
                    for chunk in torch.arange(len(rows), device=device).split(16)
                ]
            return torch.cat(parts)

        predicted = predict(target)
        wrong = predict(target[torch.arange(len(rows)).roll(1)])  # each pair is given its neighbour's
        figures = {
            "mse": float(F.mse_loss(predicted, batch["target"])),
            "mse_copy": float(F.mse_loss(batch["mean"], batch["target"])),
            "mse_wrong_camera": float(F.mse_loss(wrong, batch["target"])),
        }
        prior = self._decoder()
        if prior is None:
            return figures, None
        shown = slice(0, len(rows), max(1, len(rows) // 8))
        scale = math.sqrt(self.store.alpha_star)
        pictures = [prior.decode(means[shown] / scale).cpu() for means in (batch["mean"], predicted, batch["target"])]
        return figures, to_image(torch.cat([torch.cat(list(row), dim=-1) for row in pictures], dim=1))

    def _pairs(self, scene: StoredScene, rng: np.random.Generator) -> list[tuple[int, int]]:
        if self.config.pairs == "paper":
            return paper_pairs(len(scene.frames), rng)
        pairs = any_pairs(len(scene.frames), PAIRS_PER_SCENE, rng, self.config.max_gap or None)
        return [(min(pair), max(pair)) for pair in pairs] if self.config.pairs == "forward" else pairs

    def _epoch(self, epoch: int) -> list[tuple[int, int, int]]:
        """All (scene, reference, target) of an epoch, shuffled."""
        rng = np.random.default_rng((self.config.seed, epoch, 1))
        triples = [(i, *pair) for i, scene in enumerate(self.scenes) for pair in self._pairs(scene, rng)]
        return [triples[i] for i in rng.permutation(len(triples))]

    def _batch(self, rows: list[tuple[StoredScene, int, int, bool, bool]]) -> dict[str, Tensor]:
        """The tensors of pairs: (scene, reference, target, whether mirrored, whether the category is hidden) each.

        All arithmetic is done for the batch at once: pair by pair it would take longer than a GPU's training step.
        """
        stored = [(scene, (reference, target)) for scene, reference, target, _, _ in rows]
        for scene, frames in stored:
            self.store.expect("mean", scene, frames)
        means, intrinsics, poses, scales = (
            torch.stack([self.store.rows(name, scene, frames) for scene, frames in stored])
            for name in ("mean", "intrinsics", "world_to_camera", "distance_scale")
        )
        size = self.store.image_size
        cameras = Camera(intrinsics, poses, size, size)
        cameras = cameras.relative_to(cameras[:, :1]).scaled(scales[:, :1])
        means = means.float()
        flip = torch.tensor([mirrored for *_, mirrored, _ in rows])
        other, flip = cameras.mirrored(), flip.view(-1, 1, 1, 1)
        known = set(self.model.config.categories)
        categories = [scene.category if scene.category in known and not hidden else None for scene, *_, hidden in rows]
        return {
            "mean": torch.where(flip, means[:, 0].flip(-1), means[:, 0]),
            "target": torch.where(flip, means[:, 1].flip(-1), means[:, 1]),
            "intrinsics": torch.where(flip, other.intrinsics, cameras.intrinsics),
            "world_to_camera": torch.where(flip, other.world_to_camera, cameras.world_to_camera),
            "category": self.model.category_ids(categories),
        }

    def _cameras(self, batch: dict[str, Tensor]) -> tuple[Camera, Camera]:
        size = self.store.image_size
        pair = Camera(batch["intrinsics"], batch["world_to_camera"], size, size)
        return pair[:, 0], pair[:, 1]

    def _decoder(self) -> LatentPrior | None:
        """The prior, for pictures to look at; training goes on without them where it cannot be had."""
        if self._prior is None:
            try:
                self._prior = LatentPrior.from_pretrained(model_folder(self.store.prior))
            except SidestepError as error:
                logger.warning("no sample pictures: %s", error)
        return self._prior
