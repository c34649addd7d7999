"""Agreement, accuracy and output error: pure functions of two models' outputs."""
