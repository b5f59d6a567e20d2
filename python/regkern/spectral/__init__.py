"""One-read power iteration, and the regularizers that speak of singular values and Jacobians."""
