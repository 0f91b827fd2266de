"""What earlier runs have planned, compared with a listing many images at a time."""
