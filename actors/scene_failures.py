"""Compatibility with 0.1.0: `python -m actors.scene_failures` runs `actors.scenes.failures`."""

from actors.scenes.failures import main

if __name__ == "__main__":
    main()
