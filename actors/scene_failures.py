"""Where `python -m actors.scene_failures` lay until 0.1.0: it is `python -m actors.scenes.failures` now."""

from actors.scenes.failures import main

if __name__ == "__main__":
    main()
