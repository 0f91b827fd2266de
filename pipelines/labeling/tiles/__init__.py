"""Large pictures are asked in tiles and as a whole, and what was found is put together again."""
