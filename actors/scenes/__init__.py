"""How well a model does on scenes that nobody trained on."""
