"""The ``lienzo-train`` command line and what only training needs."""
