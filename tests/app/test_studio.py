"""The models that all users share."""

from threading import Thread

from sidestep.app.studio import Studio
from sidestep.pipeline import NovelViewPipeline


def test_models_are_loaded_once_and_when_asked_for(tiny: NovelViewPipeline) -> None:
    loaded: list[str] = []
    studio = Studio(["a", "b", "a"], lambda name: loaded.append(name) or tiny)  # type: ignore[func-returns-value]
    assert studio.models == ["a", "b"]
    studio.pipe("b")
    studio.pipe("b")
    assert loaded == ["b"]


def test_a_model_that_is_there_is_used_while_another_is_loaded(tiny: NovelViewPipeline) -> None:
    def load(name: str) -> NovelViewPipeline:
        if name == "b":
            used = Thread(target=lambda: had.append(studio.pipe("a")), daemon=True)
            used.start()
            used.join()  # for ever, where it waits for this
        return tiny

    had: list[NovelViewPipeline] = []
    studio = Studio(["a", "b"], load)
    studio.pipe("a")
    studio.pipe("b")
    assert had == [tiny]
