from sidestep import NovelViewPipeline

__all__ = ["NovelViewPipeline"]
