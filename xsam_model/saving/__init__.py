"""What a saved folder holds beside weights and configuration: the code to load it without this package, and a card."""
