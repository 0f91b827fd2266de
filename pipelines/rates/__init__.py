"""How often each prompt finds something, and how surely, in a part of a run: by it runs are compared."""
