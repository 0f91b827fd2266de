"""Compatibility with 0.1.0: `python -m actors.evaluate_scenes` runs `actors.scenes.evaluate`."""

from actors.scenes.evaluate import main

if __name__ == "__main__":
    main()
