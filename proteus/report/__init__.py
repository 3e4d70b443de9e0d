"""Pages and curves: self-contained HTML, with nothing of a model in it."""
