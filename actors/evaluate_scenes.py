"""Where `python -m actors.evaluate_scenes` lay until 0.1.0: it is `python -m actors.scenes.evaluate` now."""

from actors.scenes.evaluate import main

if __name__ == "__main__":
    main()
