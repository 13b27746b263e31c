"""How much memory public models need: their published shapes, and what follows from them."""
