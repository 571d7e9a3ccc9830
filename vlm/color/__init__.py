"""Associations between colors and concepts: what dual encoders know of them, how close that is to people's ratings, and palettes made from them."""
