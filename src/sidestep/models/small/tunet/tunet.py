from sidestep import TUNet

__all__ = ["TUNet"]
