"""Where `python -m xsam_model.training.scenes.assets` lay until 0.1.0: it is `...scenes.art.prepare` now."""

from xsam_model.training.scenes.art.assets import SceneAssets
from xsam_model.training.scenes.art.prepare import main

__all__ = ["SceneAssets", "main"]

if __name__ == "__main__":
    main()
