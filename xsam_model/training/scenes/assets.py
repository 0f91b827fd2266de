"""Compatibility with 0.1.0: `python -m xsam_model.training.scenes.assets` runs `...scenes.art.prepare`."""

from xsam_model.training.scenes.art.assets import SceneAssets
from xsam_model.training.scenes.art.prepare import main

__all__ = ["SceneAssets", "main"]

if __name__ == "__main__":
    main()
