"""Write weight files: layout, quantized weights, row blocks."""
