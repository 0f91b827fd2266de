"""`python -m actors.evaluate_photos` runs `actors.scenes.evaluate_photos`."""

from actors.scenes.evaluate_photos import main

if __name__ == "__main__":
    main()
