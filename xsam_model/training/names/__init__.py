"""Gives a model with a pretrained trunk the classifier of that trunk, and teaches it what names say of its classes."""
