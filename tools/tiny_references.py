"""Reference models that transformers alone cannot load from the published files, and the published forms that it does not write."""
