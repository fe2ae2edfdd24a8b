"""One ONNX file that exits by itself: the model's own modules as small graphs, joined by `If` or `Loop`."""
