"""The models that all users share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

from sidestep.app.turns import Turns
from sidestep.captions import caption
from sidestep.errors import SidestepError
from sidestep.pipeline import NovelViewPipeline


class Studio:
    """The models, loaded when they are first asked for, and whose turn it is to use them."""

    def __init__(
        self,
        models: Sequence[str],
        load: Callable[[str], NovelViewPipeline],
        describe: Callable[[Path], str] = caption,
    ) -> None:
        """
        Args:
            models: folders or hub ids; the first is the one that a page starts with.
            load: makes a pipeline of one.
            describe: tells what a photo shows.
        """
        self.models = list(dict.fromkeys(models))
        self.turns = Turns()
        self.decoding = Lock()  # a photo of MAX_PIXELS takes a few hundred MB, so one at a time
        self.describe = describe
        self._load = load
        self._loaded: dict[str, NovelViewPipeline] = {}
        self._loading = Lock()

    def pipe(self, model: str) -> NovelViewPipeline:
        """
        Raises:
            SidestepError: if the model was not offered, or cannot be loaded.
        """
        if model not in self.models:
            raise SidestepError(f"model {model!r} is not offered here; choose one of {', '.join(self.models)}")
        if (loaded := self._loaded.get(model)) is not None:
            return loaded  # also while another is loaded
        with self._loading:
            if model not in self._loaded:
                self._loaded[model] = self._load(model)
            return self._loaded[model]

    def elevation(self, model: str) -> float:
        """Degrees by which a model's photos are taken to look down."""
        return float(self.pipe(model).tunet.config.elevation)
