"""weaver's data YAML: formulas on flat buffers, selection, standardisation, labels, weights, padding."""
